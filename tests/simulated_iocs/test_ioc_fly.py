"""The fly scan: build, arm, start, pause, go on; frames on pvAccess and in the file."""

from __future__ import annotations

import time

import h5py
import numpy as np
import pytest
from ioc_harness import (
    ABORTED,
    DONE,
    FAULT,
    READY,
    Monitor,
    attribute,
    image_of,
    stamp_of,
    until,
)

from ptycho_bluesky.geometry import spiral_positions_m
from ptycho_bluesky.io.area_detector import read_geometry, read_rows

POINTS = spiral_positions_m(200, 100e-9, (2e-6, -3e-6))


def test_fly_scan_reaches_stream_and_file_alike(client, beamline, tmp_path):
    path = client.capture(tmp_path, "fly", 200)
    client.trajectory(POINTS, 0.001)
    assert client.get("fly1:State_RBV") == READY
    assert client.get("fly1:BuildProgress_RBV") == 100.0
    before = client.get("det1:cam1:ArrayCounter_RBV")
    started = time.time()
    with Monitor(client.text("det1:Pva1:PvName_RBV")) as monitor:
        client.fly(200)
        arrays = monitor.collect(200)
        assert monitor.overruns == 0
    assert client.get("fly1:State_RBV") == DONE
    assert client.get("fly1:Index_RBV") == 200
    assert client.get("det1:cam1:NumImagesCounter_RBV") == 200
    assert client.get("det1:cam1:ArrayCounter_RBV") == before + 200
    assert client.get("det1:cam1:Acquire_RBV") == 0
    client.wait("det1:HDF1:Capture_RBV", 0)
    assert client.get("det1:HDF1:NumCaptured_RBV") == 200
    assert client.get("det1:HDF1:DroppedArrays_RBV") == 0

    unique_id = np.array([array["uniqueId"] for array in arrays])
    np.testing.assert_array_equal(unique_id, before + 1 + np.arange(200))
    rows = read_rows(path)
    np.testing.assert_array_equal(rows["unique_id"], unique_id)
    np.testing.assert_array_equal(rows["image"], [image_of(array) for array in arrays])
    np.testing.assert_array_equal(rows["image"][:, 0, 0], np.arange(200))
    np.testing.assert_allclose(rows["position_m"], POINTS, atol=1e-15)
    streamed = [(attribute(a, "SampleY_m"), attribute(a, "SampleX_m")) for a in arrays]
    np.testing.assert_array_equal(streamed, rows["position_m"])
    np.testing.assert_array_equal([attribute(a, "I0") for a in arrays], rows["i0"])
    stamps = np.array([stamp_of(array) for array in arrays])
    np.testing.assert_allclose(rows["timestamp_s"], stamps, atol=1e-6)
    assert started < stamps[0] < stamps[-1] < time.time()
    assert (np.diff(stamps) > 0).all()
    with h5py.File(path) as file:
        assert file["/entry/data/data"].chunks == (1, 64, 64)
        geometry = read_geometry(file)
    assert geometry is not None
    assert (geometry.energy_eV, geometry.distance_m, geometry.detector_pixel_m) == (10e3, 0.9, 75e-6)


def test_stage_follows_the_trajectory(client):
    client.trajectory(POINTS[:50], 0.01)
    client.arm(50)
    client.put("fly1:Start", 1)
    client.wait("m1.DMOV", 0)
    seen = set()

    def done():
        seen.add(round(client.get("m1.RBV"), 6))
        return client.get("fly1:State_RBV") == DONE

    until(done, 10.0, lambda: "still running")
    client.wait("m1.DMOV", 1)
    assert len(seen) > 3
    assert client.get("m1.RBV") == pytest.approx(POINTS[49, 1] * 1e6)
    assert client.get("m2.RBV") == pytest.approx(POINTS[49, 0] * 1e6)
    assert client.get("m2") == pytest.approx(POINTS[49, 0] * 1e6)


@pytest.mark.parametrize("reset", [0, 1])
def test_pause_and_go_on_in_the_same_file(client, tmp_path, reset):
    client.put("sim1:IdResetAtArm", reset)
    path = client.capture(tmp_path, "paused")
    client.trajectory(POINTS, 0.002)
    client.arm(200)
    first_id = client.get("det1:cam1:ArrayCounter_RBV") + 1
    client.put("fly1:Start", 1)
    until(lambda: client.get("fly1:Index_RBV") > 20, 5.0, lambda: "does not run")
    client.put("fly1:Abort", 1)
    client.wait("fly1:State_RBV", ABORTED)
    paused = client.get("fly1:Index_RBV")
    assert 20 < paused < 200
    assert client.get("det1:cam1:Acquire_RBV") == 1, "the detector stays armed until it is told otherwise"
    client.put("det1:cam1:Acquire", 0)
    client.wait("det1:cam1:Acquire_RBV", 0)
    assert client.get("det1:cam1:NumImagesCounter_RBV") == paused
    assert client.get("det1:cam1:ArrayCounter_RBV") == first_id + paused - 1

    client.put("fly1:StartIndex", paused)
    client.fly(200 - paused)
    assert client.get("fly1:State_RBV") == DONE
    assert client.get("det1:HDF1:Capture_RBV") == 1
    client.finish_capture()
    assert client.get("det1:HDF1:NumCaptured_RBV") == 200
    rows = read_rows(path)
    np.testing.assert_array_equal(rows["image"][:, 0, 0], np.arange(200))
    second_id = 1 if reset else first_id + paused
    expected = np.r_[first_id + np.arange(paused), second_id + np.arange(200 - paused)]
    np.testing.assert_array_equal(rows["unique_id"], expected)
    assert first_id == 1 or not reset


def test_the_file_can_be_read_while_it_grows(client, tmp_path):
    path = client.capture(tmp_path, "growing")
    client.trajectory(POINTS, 0.005)
    client.arm(200)
    client.put("fly1:Start", 1)
    seen = []
    while client.get("fly1:State_RBV") != DONE:
        promised = client.get("det1:HDF1:NumCaptured_RBV")
        seen.append(len(read_rows(path)["unique_id"]))
        assert seen[-1] >= promised, "NumCaptured promises rows that can be read"
        time.sleep(0.05)
    client.finish_capture()
    assert len(set(seen)) > 4
    assert len(read_rows(path)["unique_id"]) == 200


def test_shutter_is_looked_at_for_each_frame(client, tmp_path):
    path = client.capture(tmp_path, "shutter")
    client.trajectory(POINTS[:100], 0.005)
    client.arm(100)
    client.put("fly1:Start", 1)
    until(lambda: client.get("fly1:Index_RBV") > 30, 5.0, lambda: "does not run")
    client.put("shutter1:Open", 0)
    client.wait("fly1:State_RBV", DONE)
    client.finish_capture()
    counts = read_rows(path)["image"].sum(axis=(1, 2))
    lit = np.flatnonzero(counts)
    assert 30 < lit[-1] < 90
    assert (counts[lit[-1] + 1 :] == 0).all()


def test_attenuator_and_exposure_scale_the_counts(client, tmp_path):
    sums = []
    for transmission, exposure_s in ((1.0, 0.002), (0.5, 0.002), (1.0, 0.001)):
        client.put("atten1:Transmission", transmission)
        path = client.capture(tmp_path, f"light{transmission}{exposure_s}")
        client.trajectory(POINTS[:5], 0.002, exposure_s)
        client.fly(5)
        client.finish_capture()
        rows = read_rows(path)
        sums.append(float(rows["image"][0].sum()))
        assert rows["i0"][0] == pytest.approx(1.3e8 * transmission * exposure_s)
    assert sums[1] == pytest.approx(sums[0] / 2, rel=0.01)
    assert sums[2] == pytest.approx(sums[0] / 2, rel=0.01)


def test_start_refuses_what_was_not_built_for(client):
    client.trajectory(POINTS[:5], 0.002)
    client.put("atten1:Transmission", 0.5)
    client.arm(5)
    client.put("fly1:Start", 1)
    client.wait("fly1:State_RBV", FAULT)
    assert "Build again" in client.text("fly1:Message_RBV")


def test_start_refuses_an_idle_detector(client):
    client.trajectory(POINTS[:5], 0.002)
    client.put("fly1:Start", 1)
    client.wait("fly1:State_RBV", FAULT)
    assert "not armed" in client.text("fly1:Message_RBV")


@pytest.mark.parametrize(
    ("position_m", "period_s", "exposure_s", "reason"),
    [
        (np.full((3, 2), 6e-3), 0.01, 0.01, "soft limits"),
        (np.array([[0.0, 0.0], [1e-3, 0.0]]), 0.01, 0.01, "VELO"),
        (np.array([[0.0, np.nan], [0.0, 0.0]]), 0.01, 0.01, "not finite"),
        (np.zeros((3, 2)), 0.001, 0.01, "shorter than the exposure"),
    ],
)
def test_build_refuses_what_cannot_be_flown(client, position_m, period_s, exposure_s, reason):
    client.trajectory(position_m, period_s, exposure_s)
    assert client.get("fly1:State_RBV") == FAULT
    assert reason in client.text("fly1:Message_RBV")


def test_build_refuses_more_points_than_positions(client):
    client.trajectory(POINTS[:10], 0.01)
    client.put("fly1:NumPoints", 11)
    client.put("fly1:Build", 1)
    assert client.get("fly1:State_RBV") == FAULT
    assert "NumPoints" in client.text("fly1:Message_RBV")


def test_detector_ignores_triggers_after_its_last_image(client):
    client.trajectory(POINTS[:20], 0.002)
    client.fly(5)
    client.wait("fly1:State_RBV", DONE)
    assert client.get("fly1:Index_RBV") == 20
    assert client.get("det1:cam1:NumImagesCounter_RBV") == 5


def test_flipped_frames(client, tmp_path):
    client.put("sim1:FlipFrames", 1)
    path = client.capture(tmp_path, "flipped")
    client.trajectory(POINTS[:3], 0.002)
    client.fly(3)
    client.finish_capture()
    image = read_rows(path)["image"]
    # Turned about the centre pixel, row 0 of an even frame stays where it is.
    assert image[2, 0, 0] == 2


def test_a_long_trajectory_fits(client):
    position_m = np.zeros((100_000, 2))
    client.put("fly1:Y_m", position_m[:, 0])
    client.put("fly1:X_m", position_m[:, 1])
    client.put("fly1:NumPoints", 100_000)
    assert len(client.get("fly1:Y_m")) == 100_000
