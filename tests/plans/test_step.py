"""Step scans on the simulated beamline: a row of the file for each event, whatever happens."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from bluesky.utils import RunEngineInterrupted

from ptycho_bluesky.devices import HardwareError
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.io.area_detector import read_rows

N = 8


@pytest.fixture
def step(session):
    def plan(**arguments):
        return session.spiral(**({"num_points": N, "step_m": 200e-9, "exposure_s": 0.05} | arguments))

    return plan


def pause_after(documents, session, events, delay_s=0.0, defer=False):
    """Ask for a pause once that many points are there, maybe in the middle of what comes next."""
    timers = []

    def hook(name, doc):
        if name == "event" and "stage_y" in doc["data"] and doc["seq_num"] == events and not timers:
            if "baseline" in {
                entry["name"] for entry in documents.named("descriptor") if entry["uid"] == doc["descriptor"]
            }:
                return
            timers.append(threading.Timer(delay_s, session.RE.request_pause, (defer,)))
            timers[0].start()

    documents.hooks.append(hook)
    return lambda: [timer.join(10) for timer in timers]


def check_complete(documents):
    assert documents.stop["exit_status"] == "success"
    assert documents.check_segments() == N
    assert documents.rows() == N
    np.testing.assert_array_equal(documents.frame_indices(), np.arange(N))
    points = documents.events("primary")
    assert len(points) == N
    (planned,) = documents.events("trajectory")
    np.testing.assert_allclose(
        [point["stage_y"] for point in points], 1e6 * np.array(planned["planned_y_m"]), atol=1e-6
    )
    rows = read_rows(documents.path)
    np.testing.assert_allclose(rows["position_m"][:, 0], planned["planned_y_m"], atol=1e-9)
    np.testing.assert_allclose(rows["position_m"][:, 1], planned["planned_x_m"], atol=1e-9)
    assert rows["image"].sum(axis=(1, 2)).min() > 0


def test_whole_scan(session, documents, step, is_safe):
    session.RE(step())
    check_complete(documents)
    assert is_safe()
    assert documents.start["plan_name"] == "spiral_ptycho"
    assert documents.start["hints"]["dimensions"] == [[["stage_y", "stage_x"], "primary"]]
    assert documents.start["ptycho"]["scan"]["period_s"] is None
    keys = documents.descriptor("primary")["data_keys"]
    external = {key for key, content in keys.items() if content.get("external") == "STREAM:"}
    assert external == {
        f"det_{column}" for column in ("image", "unique_id", "timestamp_s", "position_y_m", "position_x_m", "i0")
    }
    assert {"stage_y", "stage_x"} <= set(keys)


def test_given_points(session, documents):
    positions = np.array([[0.0, 0.0], [1e-6, 0.0], [1e-6, 2e-6]])
    session.RE(
        session.step_ptycho(session.detector, session.stage, positions, exposure_s=0.01, shutter=session.shutter)
    )
    assert documents.start["plan_name"] == "step_ptycho"
    np.testing.assert_allclose(read_rows(documents.path)["position_m"], positions, atol=1e-9)


@pytest.mark.parametrize("delay_s", [0.0, 0.04, 0.08, 0.12])
def test_pause_in_the_middle_of_a_point_costs_no_row(session, documents, step, is_safe, delay_s):
    join = pause_after(documents, session, 3, delay_s)
    with pytest.raises(RunEngineInterrupted):
        session.RE(step())
    join()
    assert is_safe()
    session.RE.resume()
    check_complete(documents)
    assert len(documents.events("segments")) == 1
    assert is_safe()


def test_deferred_pause(session, documents, step, is_safe):
    join = pause_after(documents, session, 3, defer=True)
    with pytest.raises(RunEngineInterrupted):
        session.RE(step())
    join()
    assert is_safe()
    session.RE.resume()
    check_complete(documents)


def test_abort_leaves_a_readable_run(session, documents, step, is_safe):
    join = pause_after(documents, session, 3)
    with pytest.raises(RunEngineInterrupted):
        session.RE(step())
    join()
    session.RE.abort()
    assert documents.stop["exit_status"] == "abort"
    generated = documents.check_segments()
    assert 3 <= generated < N
    assert documents.rows() == len(documents.events("primary"))
    assert len(read_rows(documents.path)["unique_id"]) == generated
    assert is_safe()


def test_counter_reset_at_each_exposure(session, documents, step, controls):
    controls("IdResetAtArm", 1)
    session.RE(step(num_points=20))  # whatever the counter is now
    documents.clear()
    session.RE(step())
    check_complete(documents)
    segments = documents.events("segments")
    assert len(segments) >= N - 1
    assert {segment["first_unique_id"] for segment in segments[1:]} == {1}


def test_detector_error(session, documents, step, controls, is_safe):
    controls("Fault:DetectorErrorAt", 1)
    with pytest.raises(HardwareError, match="simulated error"):
        session.RE(step())
    assert documents.stop["exit_status"] == "fail"
    assert "simulated error" in documents.stop["reason"]
    assert documents.check_segments() <= 1
    assert is_safe()
    documents.clear()
    controls("Fault:DetectorErrorAt", 0)
    session.RE(step())
    check_complete(documents)


def test_frame_that_does_not_reach_the_file_ends_the_scan(session, documents, step, controls, is_safe):
    controls("Fault:HDFDrop", 1.0)
    with pytest.raises(HardwareError, match="dropped"):
        session.RE(step())
    assert documents.stop["exit_status"] == "fail"
    assert is_safe()


@pytest.mark.parametrize(
    ("arguments", "message"), [({"exposure_s": 0.0}, "exposure_s"), ({"centre_m": (1.0, 0.0)}, "limits")]
)
def test_bad_arguments_are_refused_before_anything_moves(session, documents, step, arguments, message):
    with pytest.raises(InputError, match=message):
        session.RE(step(**arguments))
    assert not documents.documents


def test_messages_can_be_listed(step):
    commands = [message.command for message in step()]
    assert commands[-1] == "unstage"
