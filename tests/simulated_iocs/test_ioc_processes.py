"""Parts in processes of their own, recordings, the command line."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from ioc_harness import (
    BUILDING,
    DONE,
    ERROR,
    FAULT,
    Client,
    Monitor,
    child_environment,
    image_of,
    running,
    until,
)

from ptycho_bluesky.geometry import spiral_positions_m
from ptycho_bluesky.io.area_detector import read_rows
from ptycho_bluesky.io.measurement import read_measurement

POINTS = spiral_positions_m(60, 100e-9, (4e-6, -7e-6))


def run_cli(*arguments: str, epics) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ptycho_bluesky.cli.main", "ioc", *arguments],
        env={**child_environment(epics), "COLUMNS": "400"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_stage_and_detector_in_two_processes(epics_settings, ca_context, tmp_path):
    prefix = f"{epics_settings.prefix}TWO:"
    with (
        running("stage", epics=epics_settings, prefix=prefix) as stage,
        running("detector", "--sample", "pattern", epics=epics_settings, prefix=prefix) as detector,
    ):
        assert "role=stage" in stage.ready_line
        assert "role=detector" in detector.ready_line
        client = Client(prefix, ca_context)
        client.reset()
        client.put("m1", 12.0)
        client.put("m2", -3.0)
        path = client.capture(tmp_path, "two")
        client.put("det1:cam1:TriggerMode", 0)
        client.put("det1:cam1:ImageMode", 0)
        client.put("det1:cam1:Acquire", 1)
        client.trajectory(POINTS, 0.02)
        client.fly(60)
        assert client.get("fly1:State_RBV") == DONE
        client.finish_capture()
        position_m = read_rows(path)["position_m"]
        np.testing.assert_allclose(position_m[0], (-3e-6, 12e-6), atol=1e-12)
        np.testing.assert_allclose(position_m[1:], POINTS, atol=1e-15)
        client.wait("m1.DMOV", 1)
        assert client.get("m1.RBV") == pytest.approx(POINTS[-1, 1] * 1e6)
        stage.stop()
        client.put("det1:cam1:TriggerMode", 0)
        client.put("det1:cam1:Acquire", 1)
        assert client.get("det1:cam1:DetectorState_RBV") == ERROR
        client.put("fly1:Build", 1)
        assert client.get("fly1:State_RBV") == FAULT
        assert "ioc stage" in client.text("fly1:Message_RBV")


def test_recorded_scan_is_played_where_it_was_measured(epics_settings, ca_context, shared_data, tmp_path):
    file = shared_data / "siemens-star-small.npz.bz2"
    measured = read_measurement(file)
    prefix = f"{epics_settings.prefix}REC:"
    with running("--recorded", str(file), epics=epics_settings, prefix=prefix) as ioc:
        assert "source=recorded" in ioc.ready_line
        client = Client(prefix, ca_context)
        client.reset()
        assert client.get("det1:Distance_m_RBV") == client.get("energy:Energy_eV_RBV") == 0.0, "unknown, not invented"
        pixel_m = client.get("sim1:ObjectPixel_m_RBV")
        planned = np.stack([client.get("sim1:RecordedY_m_RBV"), client.get("sim1:RecordedX_m_RBV")], axis=1)
        np.testing.assert_allclose(planned, measured.position_m * pixel_m, rtol=1e-12)
        path = client.capture(tmp_path, "recorded")
        with Monitor(client.text("det1:Pva1:PvName_RBV")) as monitor:
            client.trajectory(planned[:100], 0.005)
            client.fly(100)
            arrays = monitor.collect(100)
        client.finish_capture()
        expected = np.asarray(measured.image[:100])
        np.testing.assert_array_equal([image_of(array) for array in arrays], expected)
        np.testing.assert_array_equal(read_rows(path)["image"], expected)


def test_two_kilohertz_reach_stream_and_file_whole(epics_settings, ca_context, tmp_path):
    prefix = f"{epics_settings.prefix}FAST:"
    position_m = np.zeros((4000, 2))
    with running("--sample", "pattern", "--size", "128", epics=epics_settings, prefix=prefix):
        client = Client(prefix, ca_context)
        client.reset()
        path = client.capture(tmp_path, "fast", 4000)
        client.trajectory(position_m, 0.0005)
        with Monitor(client.text("det1:Pva1:PvName_RBV")) as monitor:
            client.fly(4000)
            unique_id = [array["uniqueId"] for array in monitor.collect(4000)]
            assert monitor.overruns == 0
        client.wait("det1:HDF1:Capture_RBV", 0)
        assert client.get("det1:HDF1:DroppedArrays_RBV") == 0
    np.testing.assert_array_equal(unique_id, np.arange(1, 4001))
    np.testing.assert_array_equal(read_rows(path)["unique_id"], unique_id)


def test_stop_does_not_wait_for_rendering(epics_settings, ca_context):
    prefix = f"{epics_settings.prefix}SLOW:"
    with running("--areas", "1", "--size", "128", epics=epics_settings, prefix=prefix) as ioc:
        client = Client(prefix, ca_context)
        client.reset()
        client.trajectory(np.zeros((2, 2)), 0.001)
        client.put("fly1:Y_m", np.zeros(60_000))
        client.put("fly1:X_m", np.zeros(60_000))
        client.put("fly1:NumPoints", 60_000)
        client.put("fly1:Build", 1, wait=False)
        client.wait("fly1:State_RBV", BUILDING)
        until(lambda: client.get("fly1:BuildProgress_RBV") > 0.0, 20.0, lambda: "no progress is shown")
        assert ioc.stop() == 0


def test_a_served_prefix_is_refused(beamline, epics_settings):
    done = run_cli("--sample", "pattern", "--prefix", beamline.prefix, epics=epics_settings)
    assert done.returncode == 2
    assert "served already" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--sample", "nothing"), "neither demo"),
        (("--recorded", "nothing.cxi"), "there is no file"),
        (("--size", "50"), "multiple of 16"),
        (("everything",), "role"),
        (("--prefix", "no colon"), "prefix"),
    ],
)
def test_bad_options_name_themselves(arguments, reason, epics_settings):
    done = run_cli(*arguments, epics=epics_settings)
    assert done.returncode == 2
    assert reason in done.stderr
    assert "Traceback" not in done.stderr


def test_a_sample_file_must_be_one(tmp_path, epics_settings):
    file = tmp_path / "sample.json"
    file.write_text("[1, 2]")
    done = run_cli("--sample", str(file), epics=epics_settings)
    assert done.returncode == 2
    assert "JSON object" in done.stderr


def test_nothing_is_left_behind(epics_settings):
    import psutil

    with running("--sample", "pattern", epics=epics_settings, prefix=f"{epics_settings.prefix}LEFT:") as ioc:
        children = psutil.Process(ioc.process.pid).children(recursive=True)
        assert not children, "no repeater is started"
        assert os.environ["EPICS_CA_SERVER_PORT"] in ioc.ready_line
    assert ioc.process.returncode == 0
