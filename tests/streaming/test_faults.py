"""Faults between detector and edge, over real pvAccess: the final mosaic and its log are complete and say what was."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ptycho_bluesky.callbacks.edge import EdgeInference
from ptycho_bluesky.config import EdgeSettings
from ptycho_bluesky.inference import LoadedModel, ModelSlot
from ptycho_bluesky.records import FrameOrigin, FrameState, PositionSource
from ptycho_bluesky.streaming.closing import ClosingOptions

from .test_core import model

pytest.importorskip("pvaccess")

N = 300
TENTH = N // 10
QUICK = ClosingOptions(settle_s=0.3, wait_s=3.0, grace_s=0.1, poll_s=0.02)


class Stream:
    """A run, its publisher, and an edge that watches."""

    def __init__(self, run, folder, prefix, slot=None, **settings):
        self.run, self.channel = run, f"{prefix}{time.monotonic_ns()}:Image"
        self.path = folder / "frames.npz"
        frames = run.frames
        np.savez(
            self.path,
            image=run.image,
            unique_id=[frame.unique_id for frame in frames],
            timestamp_s=[frame.timestamp_s for frame in frames],
            position_m=[frame.position_m for frame in frames],
        )
        self.start()
        options = EdgeSettings(batch_size=8, **settings)
        self.edge = EdgeInference(options, slot or ModelSlot(model()), channels=[self.channel], closing=QUICK)

    def start(self):
        script = Path(__file__).with_name("faulty_publisher.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script), self.channel, str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout.readline().strip() == "READY"

    def publish(self, plan):
        self.process.stdin.write(json.dumps([[int(row), fault] for row, fault in plan]) + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline().strip() == "DONE"

    def kill(self):
        self.process.kill()
        self.close_process()

    def close_process(self):
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()

    def wait(self, condition, timeout_s=20.0):
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def documents(self, docs):
        for name, doc in docs:
            self.edge(name, doc)

    def result(self, plans, between=None):
        """Everything in order; ``between`` is called between two plans."""
        run = self.run
        self.wait(lambda: self.edge.source.received >= 1)  # the value on connection
        self.documents([*run.head, run.parts[0]["begun"]])
        for k, plan in enumerate(plans):
            if k and between is not None:
                between()
            self.publish(plan)
        self.documents([run.parts[0]["ended"], *run.resources, *run.datums(N), run.stop])
        result = self.edge.wait_result(run.uid, 30)
        assert result is not None
        assert result.complete
        return result

    def close(self):
        self.edge.close()
        if self.process.poll() is None:
            self.process.stdin.write("\n")
            self.close_process()


@pytest.fixture
def stream(fake_run, tmp_path, epics_settings):
    made = []

    def make(slot=None, settings=None, **options):
        prefix = epics_settings.prefix
        run = fake_run(num_points=N, start_s=time.time(), channel="", **options)
        run.write_file()
        made.append(Stream(run, tmp_path, prefix, slot, **(settings or {})))
        return made[-1]

    yield make
    for each in made:
        each.close()


def assert_complete(result):
    counts, log = result.counts, result.mosaic.frame_log
    assert (counts.generated, counts.inferred, counts.lost, counts.unaccounted) == (N, N, 0, 0)
    np.testing.assert_array_equal(log["frame_index"], np.arange(N))
    assert (log["state"] == FrameState.INFERRED).all()
    assert counts.missed == counts.recovered == int((log["origin"] == FrameOrigin.FILE).sum())
    assert np.isfinite(log["position_y_m"]).all()


def whole(rows):
    return [(row, "") for row in rows]


def test_a_tenth_is_dropped(stream):
    gone = set(np.random.default_rng(0).choice(N, TENTH, replace=False).tolist())
    result = stream().result([whole(row for row in range(N) if row not in gone)])
    assert_complete(result)
    assert result.counts.missed == TENTH
    assert set(np.flatnonzero(result.mosaic.frame_log["origin"] == FrameOrigin.FILE).tolist()) == gone


def test_a_tenth_comes_twice(stream):
    twice = set(np.random.default_rng(1).choice(N, TENTH, replace=False).tolist())
    plan = [(row, "") for row in range(N) for _ in range(2 if row in twice else 1)]
    result = stream().result([plan])
    assert_complete(result)
    assert (result.counts.duplicates, result.counts.missed) == (TENTH, 0)


def test_a_tenth_comes_out_of_order(stream):
    rng = np.random.default_rng(2)
    key = np.arange(N, dtype=float)
    late = rng.choice(N, TENTH, replace=False)
    key[late] += rng.uniform(5, 60, TENTH)
    made = stream()
    result = made.result([whole(np.argsort(key))])
    assert_complete(result)
    assert result.counts.missed == 0
    # each frame lies where it belongs: positions follow the index, not the order of arrival
    log = result.mosaic.frame_log
    found = np.stack([log["position_y_m"], log["position_x_m"]], axis=1)
    np.testing.assert_allclose(found, made.run.position_m)


@pytest.mark.parametrize(("faults", "dtype"), [(("shape", "truncated"), np.uint16), (("nan",), np.float32)])
def test_a_tenth_is_corrupt(stream, faults, dtype):
    bad = np.random.default_rng(3).choice(N, TENTH, replace=False).tolist()
    plan = [(row, faults[bad.index(row) % len(faults)] if row in bad else "") for row in range(N)]
    result = stream(dtype=dtype).result([plan])
    assert_complete(result)
    assert result.counts.missed == TENTH
    assert result.counts.rejected == 0  # the file has them whole


def test_the_server_dies_and_comes_back(stream):
    made = stream()

    def restart():
        made.wait(lambda: made.edge.source.received >= 100)
        made.kill()
        time.sleep(0.3)
        before = made.edge.source.received
        made.start()
        made.wait(lambda: made.edge.source.received > before, 40.0)

    result = made.result([whole(range(100)), whole(range(150, N))], restart)
    assert_complete(result)
    assert result.counts.missed == 50


class SlowEngine:
    """Reads a tenth of what arrives."""

    def __init__(self, engine):
        self._engine = engine
        self.name, self.manifest = "slow", engine.manifest
        self.image_shape, self.patch_shape = engine.image_shape, engine.patch_shape

    def infer(self, counts, count_scale=None):
        time.sleep(0.01 * len(counts))
        return self._engine.infer(counts, count_scale)


def test_a_consumer_that_is_too_slow_counts_what_it_lets_go_and_reads_it_later(stream):
    fast = model()
    slow = ModelSlot(LoadedModel(fast.model_id, SlowEngine(fast.engine), fast.weight))
    made = stream(slow, {"queue_frames": 20})
    result = made.result([whole(range(N))])
    assert_complete(result)
    assert result.counts.missed > TENTH
    assert made.edge.latest.latest.status.dropped == result.counts.missed


@pytest.mark.parametrize("planned", [True, False])
def test_positions_that_come_late(stream, planned):
    made = stream(positions_in_frames=False, offset_px=3.0)
    if not planned:
        made.run.head = [each for each in made.run.head if "trajectory" not in str(each[1].get("descriptor", ""))]
    result = made.result([whole(range(N))])
    assert_complete(result)
    log = result.mosaic.frame_log
    assert (log["position_source"] == PositionSource.FILE).all()
    np.testing.assert_allclose(log["position_y_m"], made.run.position_m[:, 0])
    assert result.metadata["patches_moved"] == (N if planned else 0)
    assert result.mosaic.coverage.sum() > 0
