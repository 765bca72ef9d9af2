"""Fly scans on the simulated beamline: documents, files, pauses, aborts, faults."""

from __future__ import annotations

import logging
import threading

import numpy as np
import pytest
from beamline_process import wait_for
from bluesky.utils import RunEngineInterrupted

from ptycho_bluesky.devices import HardwareError
from ptycho_bluesky.errors import InputError, StorageError
from ptycho_bluesky.geometry import Geometry
from ptycho_bluesky.io.area_detector import read_rows

N = 500


@pytest.fixture
def fly(session):
    """Plan of a scan of N frames that lasts more than a second."""

    def plan(**arguments):
        return session.fly_spiral(
            **({"num_points": N, "step_m": 50e-9, "exposure_s": 0.8e-3, "period_s": 2.5e-3} | arguments)
        )

    return plan


def when_rows(documents, rows, action):
    """Call an action, in a thread of its own, as soon as that many rows are announced."""
    done = []

    def hook(name, doc):
        if name == "stream_datum" and doc["indices"]["stop"] >= rows and not done:
            done.append(threading.Thread(target=action))
            done[0].start()

    documents.hooks.append(hook)
    return lambda: [thread.join(10) for thread in done]


def test_whole_scan(session, documents, fly, is_safe):
    (uid,) = session.RE(fly(beam_m=800e-9, centre_m=(2e-6, -3e-6), purpose="test", md={"sample": "letters"}))
    assert documents.stop["exit_status"] == "success"
    assert documents.start["uid"] == uid
    assert documents.check_segments() == N
    assert documents.rows() == N
    np.testing.assert_array_equal(documents.frame_indices(), np.arange(N))
    assert is_safe()


def test_file_holds_the_planned_positions(session, documents, fly):
    session.RE(fly(centre_m=(2e-6, -3e-6)))
    (planned,) = documents.events("trajectory")
    rows = read_rows(documents.path)
    np.testing.assert_allclose(rows["position_m"][:, 0], planned["planned_y_m"], atol=1e-12)
    np.testing.assert_allclose(rows["position_m"][:, 1], planned["planned_x_m"], atol=1e-12)
    np.testing.assert_allclose(rows["position_m"][0], (2e-6, -3e-6), atol=1e-12)
    assert (np.diff(rows["timestamp_s"]) > 0).all()
    assert rows["image"].sum(axis=(1, 2)).min() > 0, "the shutter was open for every frame"


def test_start_document(session, documents, fly):
    session.RE(fly(beam_m=800e-9, centre_m=(2e-6, -3e-6), purpose="reserved", md={"sample": "letters"}))
    start = documents.start
    assert start["plan_name"] == "fly_spiral_ptycho"
    assert start["plan_pattern"] == "spiral"
    assert start["tiled_specs"] == ["ptycho"]
    assert start["sample"] == "letters"
    assert start["num_points"] == N
    assert start["detectors"] == ["det"]
    assert start["motors"] == ["stage_y", "stage_x"]
    assert start["hints"]["dimensions"] == [[["det_position_y_m", "det_position_x_m"], "primary"]]
    assert "ptycho_bluesky" in start["versions"]
    content = start["ptycho"]
    assert content["purpose"] == "reserved"
    assert content["simulated"] is True
    assert content["frame_shape"] == [32, 32]
    assert content["detector"] == {
        "channel": f"{session.settings.epics.prefix}det1:Pva1:Image",
        "image_key": "det_image",
        "zero_frequency": "centre",
        "dtype": "<u2",
    }
    geometry = Geometry.from_dict(content["geometry"])
    assert geometry.num_px == 32
    assert geometry.energy_eV == pytest.approx(session.energy.energy_eV.get())
    assert content["pixel_size_m"] == pytest.approx(geometry.object_pixel_m)
    scan = content["scan"]
    assert scan["overlap"] == pytest.approx(1 - np.sqrt(3) * 50 / 800)
    assert (scan["num_points"], scan["step_m"], scan["exposure_s"], scan["period_s"]) == (N, 50e-9, 0.8e-3, 2.5e-3)


def test_streams(session, documents, fly):
    session.RE(fly())
    order = [name for name, _ in documents.documents]
    assert order[0] == "start"
    assert order[-1] == "stop"
    keys = documents.descriptor("primary")["data_keys"]
    assert set(keys) == {
        f"det_{column}" for column in ("image", "unique_id", "timestamp_s", "position_y_m", "position_x_m", "i0")
    }
    assert all(key["external"] == "STREAM:" for key in keys.values())
    assert keys["det_image"]["shape"] == [32, 32]
    assert keys["det_image"]["dtype_numpy"] == "<u2"
    assert keys["det_unique_id"]["shape"] == []
    first_datum = order.index("stream_datum")
    before = [doc for name, doc in documents.documents[:first_datum] if name == "event"]
    announced = {doc["uid"]: doc["name"] for doc in documents.named("descriptor")}
    assert [announced[doc["descriptor"]] for doc in before] == ["baseline", "trajectory", "segments"]
    assert len(documents.events("baseline")) == 2
    assert documents.events("baseline")[0]["shutter_control"] == 0
    assert len(documents.named("stream_datum")) // 6 >= 3, "rows are announced while the scan runs"
    assert documents.events("segments")[0]["pva_channel"] == documents.start["ptycho"]["detector"]["channel"]
    for resource in documents.named("stream_resource"):
        assert resource["mimetype"] == "application/x-hdf5"
        assert resource["parameters"]["swmr"] is True


def test_given_points(session, documents):
    positions = np.array([[0.0, 0.0], [1e-6, 0.0], [1e-6, 2e-6], [0.0, 2e-6]])
    session.RE(session.fly_ptycho(session.flyer, session.stage, positions, exposure_s=1e-3, shutter=session.shutter))
    assert documents.start["plan_pattern"] == "list"
    np.testing.assert_allclose(read_rows(documents.path)["position_m"], positions, atol=1e-12)


def test_every_run_has_a_file_of_its_own(session, documents, fly):
    paths = set()
    for _ in range(2):
        documents.clear()
        session.RE(fly(num_points=20))
        paths.add(documents.path)
    assert len(paths) == 2


@pytest.mark.parametrize("defer", [False, True])
def test_pause_and_resume_begin_a_new_segment(session, documents, fly, is_safe, defer):
    join = when_rows(documents, 100, lambda: session.RE.request_pause(defer))
    with pytest.raises(RunEngineInterrupted):
        session.RE(fly())
    join()
    assert session.RE.state == "paused"
    assert is_safe()
    assert len(documents.events("segments")) == 1
    session.RE.resume()
    assert documents.stop["exit_status"] == "success"
    assert len(documents.events("segments")) == 2
    assert documents.check_segments() == N
    assert documents.rows() == N
    np.testing.assert_array_equal(documents.frame_indices(), np.arange(N))
    rows = read_rows(documents.path)
    (planned,) = documents.events("trajectory")
    np.testing.assert_allclose(rows["position_m"][:, 0], planned["planned_y_m"], atol=1e-12)
    assert rows["image"].sum(axis=(1, 2)).min() > 0
    assert is_safe()


def test_counter_reset_at_arm(session, documents, fly, controls):
    controls("IdResetAtArm", 1)
    join = when_rows(documents, 100, session.RE.request_pause)
    with pytest.raises(RunEngineInterrupted):
        session.RE(fly())
    join()
    session.RE.resume()
    assert [segment["first_unique_id"] for segment in documents.events("segments")] == [1, 1]
    assert documents.check_segments() == N
    np.testing.assert_array_equal(documents.frame_indices(), np.arange(N))


@pytest.mark.parametrize(("end", "status"), [("abort", "abort"), ("stop", "success"), ("halt", "abort")])
def test_ending_a_paused_scan(session, documents, fly, is_safe, end, status):
    join = when_rows(documents, 100, session.RE.request_pause)
    with pytest.raises(RunEngineInterrupted):
        session.RE(fly())
    join()
    getattr(session.RE, end)()
    assert documents.stop["exit_status"] == status
    assert is_safe()
    if end != "halt":  # which lets no plan clean up
        generated = documents.check_segments()
        assert 100 <= generated < N
        assert documents.rows() == generated
        np.testing.assert_array_equal(documents.frame_indices(), np.arange(generated))
    assert not session.detector.hdf1.capture.get(use_monitor=False), "the file is closed"
    documents.clear()
    session.RE(fly(num_points=20))
    assert documents.check_segments() == 20


def test_abort_while_flying(session, documents, fly, is_safe):
    join = when_rows(documents, 100, session.RE.abort)
    with pytest.raises(RunEngineInterrupted):
        session.RE(fly())
    join()
    assert documents.stop["exit_status"] == "abort"
    generated = documents.check_segments()
    assert 100 <= generated < N
    assert documents.rows() == generated == len(read_rows(documents.path)["unique_id"])
    assert is_safe()


def test_segment_end_comes_before_the_stop_document(session, documents, fly):
    join = when_rows(documents, 100, session.RE.abort)
    with pytest.raises(RunEngineInterrupted):
        session.RE(fly())
    join()
    ends = documents.descriptor("segment_ends")["uid"]
    position = [
        number
        for number, (name, doc) in enumerate(documents.documents)
        if name == "event" and doc["descriptor"] == ends
    ]
    datums = [number for number, (name, _) in enumerate(documents.documents) if name == "stream_datum"]
    assert max(datums) < position[0] < len(documents.documents) - 1


def test_detector_error(session, documents, fly, controls, is_safe):
    controls("Fault:DetectorErrorAt", 200)
    with pytest.raises(HardwareError, match="simulated error at frame 200"):
        session.RE(fly())
    assert documents.stop["exit_status"] == "fail"
    assert "simulated error" in documents.stop["reason"]
    generated = documents.check_segments()
    assert 0 < generated <= 200
    assert documents.rows() == generated == len(read_rows(documents.path)["unique_id"])
    assert is_safe()
    documents.clear()
    controls("Fault:DetectorErrorAt", 0)
    session.RE(fly(num_points=50))
    assert documents.check_segments() == 50


def test_frames_that_the_file_plugin_drops(session, documents, fly, controls):
    controls("Fault:HDFDrop", 0.05)
    session.RE(fly())
    assert documents.check_segments() == N
    rows = documents.rows()
    assert N / 2 < rows < N
    assert len(read_rows(documents.path)["unique_id"]) == rows
    assert documents.stop["exit_status"] == "success"


def test_full_journal_ends_the_scan_and_leaves_it_safe(session, documents, fly, is_safe, monkeypatch):
    free = [10**12]
    monkeypatch.setattr(session.journal, "_free_bytes", lambda path: free[0])
    join = when_rows(documents, 100, lambda: free.__setitem__(0, 1000))
    with pytest.raises(StorageError, match="MB left"):
        session.RE(fly())
    join()
    assert is_safe()
    assert documents.stop["exit_status"] == "fail"
    generated = documents.check_segments()
    assert generated == documents.rows() < N
    text = (session.settings.journal_dir / f"{documents.start['uid']}.jsonl").read_text()
    assert text.count('"name": "stop"') == 1


def test_disk_too_small_for_the_frames(session, documents, fly, monkeypatch):
    monkeypatch.setattr("ptycho_bluesky.devices.file_writer.SPARE_BYTES", 10**18)
    with pytest.raises(StorageError, match="GB free"):
        session.RE(fly())
    assert not documents.documents


def test_folder_that_the_detector_cannot_write(session, documents, fly, monkeypatch):
    monkeypatch.setattr(session.detector.writer, "ioc_raw_dir", "/proc/no/such/folder")
    with pytest.raises(StorageError):
        session.RE(fly())
    assert not documents.documents
    monkeypatch.undo()
    session.RE(fly(num_points=20))
    assert documents.check_segments() == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"period_s": 0.5e-3}, "shorter"),
        ({"exposure_s": 0.0}, "exposure_s"),
        ({"centre_m": (0.0, 1.0)}, "limits"),
        ({"purpose": "training"}, "purpose"),
        ({"overlap": 0.5, "beam_m": 1e-6}, "both step_m and overlap"),
        ({"object_pixel_m": 1e-8}, "geometry is known"),
    ],
)
def test_bad_arguments_are_refused_before_anything_moves(session, documents, fly, arguments, message):
    before = [motor.position for motor in session.stage.axes]
    with pytest.raises(InputError, match=message):
        session.RE(fly(**arguments))
    assert not documents.documents
    assert [motor.position for motor in session.stage.axes] == before


def test_missed_triggers_end_the_segment_short_and_the_scan_goes_on(session, documents, fly, monkeypatch, caplog):
    """A detector that stays armed behind the last trigger is disarmed; what it lacks is taken in a further segment."""
    monkeypatch.setattr(session.flyer, "stall_s", 1.0)
    arm = session.detector.arm

    def arm_for_more():
        arm()
        session.detector.cam.num_images.put(10_000)

    monkeypatch.setattr(session.detector, "arm", arm_for_more)
    with caplog.at_level(logging.WARNING):
        session.RE(fly(num_points=50))
    assert documents.check_segments() == 50
    assert documents.stop["exit_status"] == "success"


def test_messages_can_be_listed(session, fly):
    """Simulators of plans run them without a RunEngine: the plan ends, though nothing ever happens."""
    messages = list(fly(num_points=20))
    commands = [message.command for message in messages]
    assert commands.index("stage") < commands.index("prepare") < commands.index("open_run")
    assert commands[-1] == "unstage"


def test_geometry_unknown_stays_unknown(session, documents, fly, monkeypatch):
    monkeypatch.setattr(session.detector.beamline_geometry, "_detector", None)
    session.RE(fly(num_points=20, object_pixel_m=1e-8))
    content = documents.start["ptycho"]
    assert content["geometry"] is None
    assert content["pixel_size_m"] == 1e-8
    assert content["pixel_size_nominal"] is True
    documents.clear()
    session.RE(fly(num_points=20))
    assert documents.start["ptycho"]["pixel_size_m"] is None


def test_safe_at_the_end(is_safe):
    wait_for(is_safe)
