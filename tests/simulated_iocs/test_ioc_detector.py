"""The detector by itself: internal trigger, plugins, faults, errors."""

from __future__ import annotations

import json
import os
import signal

import h5py
import numpy as np
import pytest
from ioc_harness import DONE, ERROR, FAULT, Client, Monitor, attribute, image_of, running, stamp_of, until

from ptycho_bluesky.geometry import spiral_positions_m
from ptycho_bluesky.io.area_detector import read_rows
from ptycho_bluesky.simulation import demo_map

POINTS = spiral_positions_m(200, 100e-9)


def test_step_scan_exposes_where_the_stage_is(client, tmp_path):
    path = client.capture(tmp_path, "step", 6)
    client.put("det1:cam1:TriggerMode", 0)
    client.put("det1:cam1:ImageMode", 1)
    client.put("det1:cam1:NumImages", 2)
    places = [(1.0, -2.0), (3.0, 4.0), (-5.0, 6.0)]
    for y, x in places:
        client.put("m2", y)
        client.put("m1", x)
        client.put("det1:cam1:Acquire", 1)  # a busy record: the put completes with the acquisition
        assert client.get("det1:cam1:NumImagesCounter_RBV") == 2
        assert client.get("det1:cam1:Acquire_RBV") == 0
    client.wait("det1:HDF1:Capture_RBV", 0)
    rows = read_rows(path)
    np.testing.assert_allclose(rows["position_m"], np.repeat(places, 2, axis=0) * 1e-6, atol=1e-15)
    assert (np.diff(rows["unique_id"]) == 1).all()


def test_continuous_acquisition_ends_when_told(client):
    client.put("det1:cam1:TriggerMode", 0)
    client.put("det1:cam1:ImageMode", 2)
    client.put("det1:cam1:Acquire", 1, wait=False)
    until(lambda: client.get("det1:cam1:NumImagesCounter_RBV") > 100, 10.0, lambda: "does not run")
    client.put("det1:cam1:Acquire", 0)
    client.wait("det1:cam1:Acquire_RBV", 0)
    count = client.get("det1:cam1:ArrayCounter_RBV")
    client.wait("det1:cam1:DetectorState_RBV", 0)
    assert client.get("det1:cam1:ArrayCounter_RBV") == count


def test_ids_can_be_set_and_start_again_at_arming(client):
    client.put("det1:cam1:TriggerMode", 0)
    client.put("det1:cam1:ImageMode", 0)
    client.put("det1:cam1:ArrayCounter", 41)
    client.put("det1:cam1:Acquire", 1)
    assert client.get("det1:cam1:ArrayCounter_RBV") == 42
    client.put("sim1:IdResetAtArm", 1)
    client.put("det1:cam1:Acquire", 1)
    assert client.get("det1:cam1:ArrayCounter_RBV") == 1


def test_size_and_names_are_areadetectors(client):
    for name, value in (("SizeX_RBV", 64), ("MaxSizeY_RBV", 64), ("ArraySizeX_RBV", 64), ("ArraySize_RBV", 8192)):
        assert client.get(f"det1:cam1:{name}") == value
    data_type = client.pv("det1:cam1:DataType_RBV").read(data_type="control", timeout=5.0)
    assert data_type.metadata.enum_strings[data_type.data[0]] == b"UInt16"
    for name in ("cam1:PortName_RBV", "cam1:Manufacturer_RBV", "HDF1:PluginType_RBV", "Pva1:PortName_RBV"):
        assert isinstance(client.get(f"det1:{name}"), bytes), "a short string is a STRING record"


def test_plugins_can_be_switched_off(client, tmp_path):
    path = client.capture(tmp_path, "off")
    client.trajectory(POINTS[:10], 0.002)
    client.put("det1:HDF1:EnableCallbacks", 0)
    published = client.get("det1:Pva1:ArrayCounter_RBV")
    client.put("det1:Pva1:EnableCallbacks", 0)
    client.fly(10)
    client.finish_capture()
    assert len(read_rows(path)["unique_id"]) == 0
    assert client.get("det1:Pva1:ArrayCounter_RBV") == published


def test_dropped_and_duplicated_frames(client, tmp_path):
    path = client.capture(tmp_path, "faults")
    client.trajectory(POINTS, 0.001)
    client.put("sim1:Fault:Seed", 3)
    client.put("sim1:Fault:Drop", 0.1)
    client.put("sim1:Fault:Duplicate", 0.2)
    dropped = client.get("det1:Pva1:DroppedArrays_RBV")
    with Monitor(client.text("det1:Pva1:PvName_RBV")) as monitor:
        client.fly(200)
        unique_id = [array["uniqueId"] for array in monitor.drain()]
    client.finish_capture()
    client.wait("det1:Pva1:DroppedArrays_RBV", dropped + 200 - len(set(unique_id)))
    assert 5 < 200 - len(set(unique_id)) < 40
    assert 20 < len(unique_id) - len(set(unique_id)) < 60
    assert unique_id == sorted(unique_id)
    assert len(read_rows(path)["unique_id"]) == 200, "the file has what the stream missed"


def test_corrupt_frames_are_corrupt_on_the_stream_alone(client, tmp_path):
    path = client.capture(tmp_path, "corrupt")
    client.trajectory(POINTS[:40], 0.005)
    client.put("sim1:Fault:Corrupt", 1.0)
    with Monitor(client.text("det1:Pva1:PvName_RBV")) as monitor:
        client.fly(40)
        arrays = monitor.collect(40)
    client.finish_capture()
    kinds = []
    for array in arrays:
        ((field, values),) = array["value"][0].items()
        size = np.prod([d["size"] for d in array["dimension"]])
        if len(values) < size:
            kinds.append("truncated")
        elif size != 64 * 64:
            kinds.append("shape")
        elif field == "floatValue" and np.isnan(values).any():
            kinds.append("nan")
        elif field == "intValue" and (np.asarray(values) < 0).any():
            kinds.append("negative")
    assert len(kinds) == 40
    assert {kind: kinds.count(kind) for kind in set(kinds)} == dict.fromkeys(
        ("shape", "truncated", "nan", "negative"), 10
    )
    image = read_rows(path)["image"]
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image[:, 0, 0], np.arange(40))
    with Monitor(client.text("det1:Pva1:PvName_RBV")) as monitor:
        client.put("sim1:Fault:Corrupt", 0.0)
        client.fly(40)
        np.testing.assert_array_equal([image_of(array)[0, 0] for array in monitor.collect(40)], np.arange(40))


def test_delayed_frames_keep_their_stamps_and_order(client):
    import time

    client.trajectory(POINTS[:50], 0.002)
    client.put("sim1:Fault:Delay_s", 0.5)
    with Monitor(client.text("det1:Pva1:PvName_RBV")) as monitor:
        client.fly(50)
        assert client.get("fly1:State_RBV") == DONE
        arrays = monitor.collect(1)
        assert time.time() - stamp_of(arrays[0]) > 0.45
        arrays = monitor.collect(50)
    assert (np.diff([array["uniqueId"] for array in arrays]) == 1).all()


def test_the_file_plugin_drops_frames(client, tmp_path):
    path = client.capture(tmp_path, "hdfdrop")
    client.put("sim1:Fault:HDFDrop", 0.1)
    client.trajectory(POINTS, 0.001)
    client.fly(200)
    client.finish_capture()
    rows = read_rows(path)
    dropped = client.get("det1:HDF1:DroppedArrays_RBV")
    assert 5 < dropped < 40
    assert len(rows["unique_id"]) == 200 - dropped == client.get("det1:HDF1:NumCaptured_RBV")
    # Rows are not frames any more: the stored id tells which frame it is.
    np.testing.assert_array_equal(
        rows["image"][:, 0, 0], (rows["unique_id"] - rows["unique_id"][0] + rows["image"][0, 0, 0])
    )


def test_detector_error_stops_the_flight_and_arming_clears_it(client):
    client.put("sim1:Fault:DetectorErrorAt", 30)
    client.trajectory(POINTS, 0.002)
    client.arm(200)
    client.put("fly1:Start", 1)
    client.wait("fly1:State_RBV", FAULT)
    assert client.get("det1:cam1:DetectorState_RBV") == ERROR
    assert "frame 30" in client.text("det1:cam1:StatusMessage_RBV")
    assert client.get("det1:cam1:NumImagesCounter_RBV") == 29
    assert client.get("det1:cam1:Acquire_RBV") == 0
    assert client.get("fly1:Index_RBV") == 29
    client.put("fly1:StartIndex", 29)
    client.fly(171)
    assert client.get("fly1:State_RBV") == DONE
    assert client.get("det1:cam1:DetectorState_RBV") == 0


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [("FilePath", "/nowhere/at/all/", "must exist"), ("FileTemplate", "%q", "FileTemplate")],
)
def test_capture_refuses_what_it_cannot_write(client, tmp_path, name, value, reason):
    client.put("det1:HDF1:FilePath", f"{tmp_path}/")
    client.put("det1:HDF1:FileTemplate", "%s%s.h5")
    client.put(f"det1:HDF1:{name}", value)
    client.put("det1:HDF1:Capture", 1)
    assert client.get("det1:HDF1:Capture_RBV") == 0
    assert client.get("det1:HDF1:WriteStatus") == 1
    assert reason in client.text("det1:HDF1:WriteMessage")
    client.capture(tmp_path, "again")
    client.wait("det1:HDF1:WriteStatus", 0)
    assert client.get("det1:HDF1:FilePathExists_RBV") == 1


def test_capture_refuses_more_frames_than_the_disk_holds(client, tmp_path):
    client.put("det1:HDF1:FilePath", f"{tmp_path}/")
    client.put("det1:HDF1:NumCapture", 2_000_000_000)
    client.put("det1:HDF1:Capture", 1)
    assert client.get("det1:HDF1:WriteStatus") == 1
    assert "MB free" in client.text("det1:HDF1:WriteMessage")
    client.put("det1:HDF1:NumCapture", 0)


def test_folders_are_created_on_demand(client, tmp_path):
    client.put("det1:HDF1:CreateDirectory", -3)
    path = client.capture(tmp_path / "a" / "b", "deep")
    client.finish_capture()
    assert path.parent == tmp_path / "a" / "b"
    assert path.exists()
    client.put("det1:HDF1:CreateDirectory", 0)


def test_files_are_numbered(client, tmp_path):
    client.put("det1:HDF1:FileNumber", 7)
    client.put("det1:HDF1:AutoIncrement", 1)
    client.put("det1:HDF1:FilePath", str(tmp_path))
    client.put("det1:HDF1:FileName", "n" * 120)
    client.put("det1:HDF1:FileTemplate", "%s%s_%6.6d.h5")
    for number in (7, 8):
        client.put("det1:HDF1:Capture", 1, wait=False)
        client.wait("det1:HDF1:Capture_RBV", 1)
        name = client.text("det1:HDF1:FullFileName_RBV")
        assert name == f"{tmp_path}/{'n' * 120}_{number:06d}.h5"
        client.finish_capture()
        with h5py.File(name):
            pass
    assert client.text("det1:HDF1:FilePath_RBV") == f"{tmp_path}/"


def _limit_file_size() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))


def test_a_disk_that_fills_up_stops_the_scan(epics_settings, ca_context, tmp_path):
    prefix = f"{epics_settings.prefix}FULL:"
    with running("--sample", "pattern", epics=epics_settings, prefix=prefix, preexec=_limit_file_size):
        client = Client(prefix, ca_context)
        client.reset()
        path = client.capture(tmp_path, "full")
        client.trajectory(POINTS, 0.005)
        client.arm(200)
        client.put("fly1:Start", 1)
        client.wait("fly1:State_RBV", FAULT)
        assert client.get("det1:HDF1:WriteStatus") == 1
        assert path.name in client.text("det1:HDF1:WriteMessage")
        assert client.get("det1:HDF1:Capture_RBV") == 0
        assert client.get("det1:cam1:DetectorState_RBV") == ERROR
        assert client.get("det1:cam1:Acquire_RBV") == 0
        # What is flushed stays readable; the writer could not make its file whole under the limit, anybody else can.
        with path.open("rb") as stream:
            stream.seek(28)
            os.truncate(path, int.from_bytes(stream.read(8), "little"))
        assert len(read_rows(path)["unique_id"]) >= client.get("det1:HDF1:NumCaptured_RBV") > 0


def test_death_leaves_a_readable_file_and_a_new_process_goes_on(epics_settings, ca_context, tmp_path):
    prefix = f"{epics_settings.prefix}DIE:"
    with running("--sample", "pattern", epics=epics_settings, prefix=prefix) as ioc:
        client = Client(prefix, ca_context)
        client.reset()
        client.put("sim1:Fault:DieAt", 120)
        path = client.capture(tmp_path, "dead")
        client.trajectory(POINTS, 0.005)
        client.arm(200)
        client.put("fly1:Start", 1)
        assert ioc.process.wait(20) == 70
    rows = read_rows(path)
    assert 80 < len(rows["unique_id"]) < 120
    np.testing.assert_array_equal(rows["image"][:, 0, 0], np.arange(len(rows["image"])))
    with running("--sample", "pattern", epics=epics_settings, prefix=prefix):
        client = Client(prefix, ca_context)
        client.reset()
        client.trajectory(POINTS[:5], 0.005)
        client.fly(5)
        assert client.get("det1:cam1:ArrayCounter_RBV") == 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_closes_the_file(epics_settings, ca_context, tmp_path, number):
    prefix = f"{epics_settings.prefix}STOP{int(number)}:"
    with running("--sample", "pattern", epics=epics_settings, prefix=prefix) as ioc:
        client = Client(prefix, ca_context)
        client.reset()
        path = client.capture(tmp_path, "stopped")
        client.trajectory(POINTS, 0.01)
        client.arm(200)
        client.put("fly1:Start", 1)
        until(lambda: client.get("fly1:Index_RBV") > 20, 5.0, lambda: "does not run")
        assert ioc.stop(number) == 0
    with h5py.File(path) as file:  # without SWMR: it was closed
        assert len(file["/entry/data/data"]) >= 20


def test_sample_can_be_replaced(epics_settings, ca_context, tmp_path):
    prefix = f"{epics_settings.prefix}PHYS:"
    with running("--size", "64", "--areas", "1", epics=epics_settings, prefix=prefix):
        client = Client(prefix, ca_context)
        client.reset()
        sample = json.loads(client.text("sim1:SampleJSON"))
        assert [area["kind"] for area in sample["areas"]] == ["shapes", "letters"]
        pixel_m = client.get("sim1:ObjectPixel_m_RBV")
        centre = sample["areas"][0]["centre_m"]
        points = spiral_positions_m(20, 100e-9, tuple(centre))

        def fly(name: str) -> np.ndarray:
            path = client.capture(tmp_path, name)
            client.trajectory(points, 0.005)
            client.fly(20)
            client.finish_capture()
            return read_rows(path)["image"]

        first, again = fly("first"), fly("again")
        assert first.sum(axis=(1, 2)).mean() == pytest.approx(1.3e8 * 0.005 * 0.93, rel=0.1)
        assert not np.array_equal(first, again), "two scans do not share their noise"
        blank = demo_map(0, num_letters=1, pixel_size_m=pixel_m, text="I")
        client.put("sim1:SampleJSON", json.dumps(blank.as_dict()))
        other = fly("other")
        structure = [np.corrcoef(a.mean(axis=0).ravel(), first.mean(axis=0).ravel())[0, 1] for a in (again, other)]
        assert structure[0] > structure[1]
        client.put("sim1:SampleJSON", "no json")
        assert json.loads(client.text("sim1:SampleJSON"))["areas"][0]["kind"] == "letters"
        client.put("energy:Energy_eV", 8000.0)
        client.trajectory(points, 0.005)
        client.wait("sim1:ObjectPixel_m_RBV", pytest.approx(pixel_m * 10 / 8))


def test_attributes_belong_to_their_frame(client):
    """The array is reused for every frame; what waits in a client's queue must not change any more."""
    client.trajectory(POINTS, 0.0005)
    with Monitor(client.text("det1:Pva1:PvName_RBV")) as monitor:
        client.fly(200)
        arrays = monitor.collect(200)
    found = [(attribute(a, "SampleY_m"), attribute(a, "SampleX_m")) for a in arrays]
    np.testing.assert_allclose(found, POINTS, atol=1e-15)
