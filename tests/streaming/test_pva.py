"""Frames over real pvAccess between two processes, in and out of the edge."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ptycho_bluesky.callbacks.edge import EdgeInference
from ptycho_bluesky.config import EdgeSettings
from ptycho_bluesky.inference import ModelSlot
from ptycho_bluesky.streaming.closing import ClosingOptions
from ptycho_bluesky.streaming.sinks_pva import PvaSink, id_ranges
from ptycho_bluesky.streaming.sources_pva import PvaFrameSource, frame_of

from .conftest import GEOMETRY, SIZE
from .test_core import model

pva = pytest.importorskip("pvaccess")


class Publisher:
    """The publishing program, told what to publish."""

    def __init__(self, channel: str, size: int = SIZE):
        self.channel = channel
        self.start(size)

    def start(self, size=SIZE):
        script = Path(__file__).with_name("pva_publisher.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script), self.channel, str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout.readline().strip() == "READY"

    def publish(self, first: int, count: int, period_s: float = 0.001):
        self.process.stdin.write(f"{first} {count} {period_s}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline().strip() == "DONE"

    def stop(self):
        if self.process.poll() is None:
            self.process.stdin.write("\n")
            self.process.stdin.close()
            self.process.wait(10)
        self.process.stdout.close()


@pytest.fixture
def publisher(epics_settings):
    made = Publisher(f"{epics_settings.prefix}{time.monotonic_ns()}:Image")
    yield made
    made.stop()


def wait_for(condition, timeout_s=10.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def documents(uid: str, channel: str, first: int, count: int):
    """A run as documents, made as they are asked for; ``frames`` says that it is time for the frames."""
    segment = {"segment_index": 0, "first_unique_id": first, "first_frame_index": 0, "num_frames": count}
    end = {"segment_index": 0, "frames_generated": count, "last_unique_id": first + count - 1}

    def event(stream, data):
        return "event", {"descriptor": f"{uid}-{stream}", "time": time.time(), "seq_num": 1, "data": data}

    def descriptor(stream):
        return "descriptor", {"uid": f"{uid}-{stream}", "run_start": uid, "name": stream}

    ptycho = {
        "geometry": GEOMETRY.as_dict(),
        "frame_shape": [SIZE, SIZE],
        "scan": {"num_points": count},
        "detector": {"channel": channel, "image_key": "det_image"},
    }
    yield "start", {"uid": uid, "time": time.time(), "ptycho": ptycho}
    yield descriptor("segments")
    yield descriptor("segment_ends")
    yield event("segments", segment)
    yield "frames", {}
    yield event("segment_ends", end)
    yield "stop", {"run_start": uid, "exit_status": "success"}


def test_nothing_is_lost_between_two_processes(publisher):
    frames = []
    source = PvaFrameSource(frames.extend)
    source.open(publisher.channel)
    source.open(publisher.channel)
    try:
        wait_for(lambda: frames)  # the value on connection
        publisher.publish(100, 1000, 0.0005)
        wait_for(lambda: len(frames) >= 1001)
        waiting, lost = source.counters()
    finally:
        source.close()
    assert [f.unique_id for f in frames[1:]] == list(range(100, 1100))
    assert [f.image[0, 0] for f in frames[1:]] == list(range(1000))
    assert (waiting, lost, source.faulty) == (0, 0, 0)
    assert frames[5].position_m == pytest.approx((1e-6 + 4e-8, -2e-6))
    assert frames[5].i0 == 1.0
    assert abs(frames[5].arrival_s - frames[5].timestamp_s) < 5.0


def test_edges_that_share_a_stream_each_read_their_own_frames(publisher):
    taken = [[], [], []]
    sources = [PvaFrameSource(frames.extend, (k, 3)) for k, frames in enumerate(taken)]
    for source in sources:
        source.open(publisher.channel)
    try:
        wait_for(lambda: any(taken))  # the value on connection, of number 0
        time.sleep(0.5)
        publisher.publish(100, 90)
        wait_for(lambda: sum(len(frames) for frames in taken) >= 91)
    finally:
        for source in sources:
            source.close()
    for k, frames in enumerate(taken):
        assert [f.unique_id for f in frames if f.unique_id >= 100] == [n for n in range(100, 190) if n % 3 == k]


def test_a_publisher_that_comes_back_is_heard_again(publisher):
    frames = []
    source = PvaFrameSource(frames.extend)
    source.open(publisher.channel)
    try:
        wait_for(lambda: frames)
        publisher.process.kill()
        publisher.process.wait()
        publisher.process.stdout.close()
        publisher.process.stdin.close()
        time.sleep(0.5)
        frames.clear()
        publisher.start()
        wait_for(lambda: frames, 30.0)
        publisher.publish(1, 50)
        wait_for(lambda: len(frames) >= 51)
    finally:
        source.close()
    assert [f.unique_id for f in frames[-50:]] == list(range(1, 51))


def test_a_scan_through_pvaccess_and_out_again(publisher, epics_settings):
    prefix = f"{epics_settings.prefix}edge{time.monotonic_ns()}:"
    settings = EdgeSettings(batch_size=8, display_period_s=0.05)
    quick = ClosingOptions(settle_s=0.2, wait_s=1.0, grace_s=0.1, poll_s=0.02)
    listed, seen = [], []
    monitor = pva.Channel(prefix + "Mosaic:Image")
    sink = PvaSink(prefix)
    with EdgeInference(settings, ModelSlot(model()), [sink], channels=[publisher.channel], closing=quick) as edge:
        queue = pva.PvObjectQueue(1000)
        monitor.qMonitor(queue, "record[queueSize=100]field()")
        wait_for(lambda: edge.source.received >= 1 and len(queue) >= 1)
        for name, doc in documents("run-pva", publisher.channel, 7, 400):
            if name == "frames":
                publisher.publish(7, 400, 0.001)
            else:
                edge(name, doc)
        result = edge.wait_result("run-pva", 20)
        state = pva.Channel(prefix + "State")
        wait_for(lambda: state.get("field(value)")["value"] == "ready")
        counts = {
            name: pva.Channel(f"{prefix}Counts:{name}").get("field(value)")["value"]
            for name in ("Generated", "Received", "Inferred", "Lost", "Unaccounted")
        }
        texts = {name: pva.Channel(prefix + name).get("field(value)")["value"] for name in ("Model:Id", "Run:Uid")}
        latency = pva.Channel(prefix + "Latency:P50_ms").get("field(value)")["value"]
        bright = pva.Channel(prefix + "Mosaic:BrightField").get("field()")
        time.sleep(0.3)
        while len(queue):
            seen.append(queue.get(0.1))
    monitor.stopMonitor()
    assert result.counts.inferred == result.counts.received == 400
    assert counts == {"Generated": 400, "Received": 400, "Inferred": 400, "Lost": 0, "Unaccounted": 0}
    assert texts == {"Model:Id": "m", "Run:Uid": "run-pva"}
    assert 0 < latency < 5000
    for structure in seen:
        attributes = {a["name"]: a["value"][0].get("value") for a in structure["attribute"]}
        listed += _ids(attributes.get("NewUniqueIds", ""))
    assert sorted(listed) == list(range(7, 407))  # every frame is listed once by the image that first holds it
    last = seen[-1]
    image = frame_of(last, "", 0.0).image
    assert image.shape == result.mosaic.phase_rad.shape
    np.testing.assert_allclose(image[result.mosaic.coverage > 0], result.mosaic.phase_rad[result.mosaic.coverage > 0])
    assert frame_of(bright, "", 0.0).image.shape == image.shape


def _ids(text):
    ids = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        ids += range(int(first), int(last or first) + 1)
    return ids


def test_ranges():
    assert id_ranges(np.array([5, 3, 4, 9, 11, 12])) == "3-5,9,11-12"
    assert id_ranges(np.array([], dtype=int)) == ""


def test_corrupt_structures_are_frames_with_a_fault():
    from pvapy.utility.adImageUtility import AdImageUtility

    structure = AdImageUtility.generateNtNdArray2D(4, np.ones((4, 6), dtype=np.uint16))
    assert frame_of(structure, "c", 1.0).image.shape == (4, 6)
    structure["dimension"] = [pva.PvDimension(6, 0, 6, 1, False), pva.PvDimension(5, 0, 5, 1, False)]
    assert "truncated" in frame_of(structure, "c", 1.0).fault
    structure["dimension"] = [pva.PvDimension(6, 0, 6, 1, False)]
    assert "dimensions" in frame_of(structure, "c", 1.0).fault
    structure["codec"] = pva.PvCodec("nonsense", pva.PvInt(3))
    assert "decompressed" in frame_of(structure, "c", 1.0).fault
    assert frame_of(pva.NtNdArray(), "c", 1.0) is None
    assert os.environ["EPICS_PVA_ADDR_LIST"] == "127.0.0.1"


def test_a_process_that_forgets_to_close_its_monitor_ends_in_peace(publisher):
    script = (
        "import sys, time\n"
        "from ptycho_bluesky.streaming.sources_pva import PvaFrameSource\n"
        "frames = []\n"
        "source = PvaFrameSource(frames.extend)\n"
        f"source.open({publisher.channel!r})\n"
        "deadline = time.monotonic() + 20\n"
        "while not frames and time.monotonic() < deadline: time.sleep(0.01)\n"
        "sys.exit(0 if frames else 3)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "FATAL" not in done.stderr
