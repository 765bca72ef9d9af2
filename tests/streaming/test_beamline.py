"""The edge on the simulated beamline: real Channel Access, pvAccess and HDF5, with every fault switched on."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from bluesky.utils import RunEngineInterrupted

from ptycho_bluesky.callbacks.edge import EdgeInference
from ptycho_bluesky.config import EdgeSettings
from ptycho_bluesky.inference import LoadedModel, ModelSlot
from ptycho_bluesky.records import PositionSource
from ptycho_bluesky.stitching import disc_weight
from ptycho_bluesky.streaming.recovery import JournalSource

N = 300
SIZE = 32


class FlatEngine:
    """A network that answers a flat phase at once."""

    name = "flat"
    image_shape = patch_shape = (SIZE, SIZE)
    manifest = {"image_shape": [SIZE, SIZE]}  # noqa: RUF012 - as an engine has it

    def infer(self, counts, count_scale=None):
        return np.full((len(counts), SIZE, SIZE), 0.5, dtype=np.float32)


@pytest.fixture
def edge(session):
    slot = ModelSlot(LoadedModel("flat", FlatEngine(), disc_weight((SIZE, SIZE))))
    channel = f"{session.settings.epics.prefix}det1:Pva1:Image"
    with EdgeInference(EdgeSettings(batch_size=8), slot, channels=[channel]) as made:
        deadline = time.monotonic() + 10
        while not made.source.received and time.monotonic() < deadline:
            time.sleep(0.01)
        token = session.RE.subscribe(made)
        yield made
        session.RE.unsubscribe(token)


@pytest.fixture
def fly(session):
    def plan(**arguments):
        return session.fly_spiral(
            **({"num_points": N, "step_m": 50e-9, "exposure_s": 0.8e-3, "period_s": 2e-3} | arguments)
        )

    return plan


def assert_all_accounted(result, planned_m=None, n=N):
    counts = result.counts
    assert (counts.generated, counts.lost, counts.unaccounted) == (n, 0, 0)
    assert counts.inferred + counts.rejected == n
    assert counts.received + counts.missed == n
    log = result.mosaic.frame_log
    np.testing.assert_array_equal(log["frame_index"], np.arange(n))
    if planned_m is not None:  # the simulated stage has no jitter: every frame lies where it was planned
        measured = np.stack([log["position_y_m"], log["position_x_m"]], axis=1)
        np.testing.assert_allclose(measured, planned_m[:n], atol=1e-12)


def planned(documents):
    (data,) = documents.events("trajectory")
    return np.stack([data["planned_y_m"], data["planned_x_m"]], axis=1)


def scan(session, edge, plan):
    (uid,) = session.RE(plan)
    result = edge.wait_result(uid, 60)
    assert result is not None
    return result


def test_a_clean_scan(session, documents, edge, fly):
    result = scan(session, edge, fly())
    assert_all_accounted(result, planned(documents))
    assert result.counts.received == N
    assert result.counts.rejected == result.counts.duplicates == 0
    assert (result.mosaic.frame_log["position_source"] == PositionSource.ATTRIBUTE).all()
    assert result.geometry is not None
    covered = result.mosaic.coverage > 0
    np.testing.assert_allclose(result.mosaic.phase_rad[covered], 0.5, atol=1e-4)
    assert result.mosaic.maps["bright_field"].max() > 0


@pytest.mark.parametrize("reset", [0, 1])
def test_dropped_duplicated_and_corrupt_frames(session, documents, edge, fly, controls, reset):
    controls("IdResetAtArm", reset)
    controls("Fault:Drop", 0.05)
    controls("Fault:Duplicate", 0.05)
    controls("Fault:Corrupt", 0.05)
    result = scan(session, edge, fly())
    assert_all_accounted(result, planned(documents))
    counts = result.counts
    assert counts.missed == counts.recovered > 5
    assert counts.duplicates > 0
    assert counts.rejected == 0  # every corrupt one is whole in the file


@pytest.mark.parametrize("reset", [0, 1])
def test_pause_and_resume_with_drops(session, documents, edge, fly, controls, reset):
    controls("IdResetAtArm", reset)
    controls("Fault:Drop", 0.05)
    paused = []

    def pause(name, doc):
        if name == "stream_datum" and not paused:
            paused.append(threading.Thread(target=session.RE.request_pause))
            paused[0].start()

    token = session.RE.subscribe(pause)
    with pytest.raises(RunEngineInterrupted):
        session.RE(fly())
    paused[0].join()
    session.RE.unsubscribe(token)
    session.RE.resume()
    result = edge.wait_result(documents.start["uid"], 60)
    assert len(documents.events("segments")) == 2
    assert_all_accounted(result, planned(documents))
    assert result.counts.missed == result.counts.recovered > 0


def test_the_file_plugin_drops_frames(session, documents, edge, fly, controls):
    controls("Fault:HDFDrop", 0.02)
    result = scan(session, edge, fly())
    assert_all_accounted(result, planned(documents))
    assert documents.rows() < N


def test_an_edge_that_starts_half_way(session, documents, fly, controls):
    """It learns of the run from the journal, and of the frames that it missed from the file."""
    made, threads = [], []

    def begin():
        late = EdgeInference(
            EdgeSettings(batch_size=8), ModelSlot(LoadedModel("flat", FlatEngine(), disc_weight((SIZE, SIZE))))
        )
        late.take_run(JournalSource(session.settings.journal_dir).recent_runs(1)[0])
        made.append(late)
        session.RE.subscribe(late)

    def hook(name, doc):
        if name == "stream_datum" and not threads:
            threads.append(threading.Thread(target=begin))
            threads[0].start()

    token = session.RE.subscribe(hook)
    (uid,) = session.RE(fly(num_points=600))
    threads[0].join()
    session.RE.unsubscribe(token)
    with made[0] as late:
        result = late.wait_result(uid, 60)
        assert_all_accounted(result, planned(documents), 600)
        assert 0 < result.counts.missed == result.counts.recovered


def test_an_aborted_scan_and_then_another(session, documents, edge, fly):
    threads = []

    def abort(name, doc):
        if name == "stream_datum" and not threads:
            threads.append(threading.Thread(target=session.RE.abort))
            threads[0].start()

    token = session.RE.subscribe(abort)
    with pytest.raises(RunEngineInterrupted):
        session.RE(fly(num_points=600))
    threads[0].join()
    session.RE.unsubscribe(token)
    result = edge.wait_result(documents.start["uid"], 60)
    assert_all_accounted(result, planned(documents), documents.check_segments())
    documents.clear()
    assert_all_accounted(scan(session, edge, fly(num_points=50)), n=50)


@pytest.mark.parametrize("reset", [0, 1])
def test_a_step_scan(session, documents, edge, controls, reset):
    controls("IdResetAtArm", reset)
    controls("Fault:Drop", 0.2)
    result = scan(session, edge, session.spiral(num_points=8, step_m=100e-9, exposure_s=1e-3))
    assert_all_accounted(result, n=8)
    log = result.mosaic.frame_log
    distance = np.hypot(np.diff(log["position_y_m"]), np.diff(log["position_x_m"]))
    np.testing.assert_allclose(distance[1:], 100e-9, rtol=0.2)
