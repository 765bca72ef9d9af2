"""Devices without a beamline: ophyd's fake signals stand in for process variables."""

from __future__ import annotations

import time

import numpy as np
import pytest
from ophyd.sim import make_fake_device

from ptycho_bluesky.config import GeometrySettings
from ptycho_bluesky.devices import (
    Attenuator,
    BeamlineGeometry,
    DetectorGeometry,
    Energy,
    EventRecord,
    HardwareError,
    SampleStage,
    Shutter,
    SlimCam,
    SlimHDF5,
    Trajectory,
)
from ptycho_bluesky.devices._waiting import put_and_wait, run_in_thread, wait_until
from ptycho_bluesky.devices.frame_file import FrameFile, columns
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.io import area_detector


def fake(kind, name):
    return make_fake_device(kind)("X:", name=name)


@pytest.fixture
def stage():
    stage = fake(SampleStage, "stage")
    for motor in (stage.x, stage.y):
        motor.motor_egu.sim_put("um")
        motor.user_setpoint.sim_set_limits((-100.0, 100.0))
    return stage


class TestStage:
    def test_metres_become_the_motors_unit(self, stage):
        assert stage.to_motor((1e-6, -2.5e-6)) == pytest.approx((1.0, -2.5))
        stage.y.motor_egu.sim_put("mm")
        assert stage.to_motor((1e-6, -2.5e-6)) == pytest.approx((1e-3, -2.5))

    def test_unknown_unit_is_refused(self, stage):
        stage.x.motor_egu.sim_put("degree")
        with pytest.raises(InputError, match="degree"):
            stage.to_motor((0.0, 0.0))

    def test_positions_inside_the_limits_pass(self, stage):
        stage.check_positions([[0.0, 0.0], [99e-6, -99e-6]])

    @pytest.mark.parametrize(
        ("position", "axis"), [((101e-6, 0.0), "stage_y"), ((0.0, 101e-6), "stage_x"), ((-1.0, 0.0), "stage_y")]
    )
    def test_position_outside_names_the_axis_and_the_limits(self, stage, position, axis):
        with pytest.raises(InputError, match=f"{axis} would go to .*-100 to 100 um"):
            stage.check_positions([(0.0, 0.0), position])

    def test_motor_without_limits(self, stage):
        for motor in (stage.x, stage.y):
            motor.user_setpoint.sim_set_limits((0.0, 0.0))
        stage.check_positions([[1.0, 1.0]])


class TestOptics:
    def test_shutter_opens_and_closes(self):
        shutter = fake(Shutter, "shutter")
        shutter.control.sim_put(0)
        shutter.set("open").wait(5)
        assert shutter.is_open
        shutter.set("closed").wait(5)
        assert not shutter.is_open

    def test_unstaging_closes_the_shutter(self):
        shutter = fake(Shutter, "shutter")
        shutter.control.sim_put(1)
        shutter.stage()
        shutter.unstage()
        assert not shutter.is_open

    def test_closing_gives_up_an_opening_without_an_error(self):
        shutter = fake(Shutter, "shutter")
        shutter.control.sim_put(0)
        stuck = shutter.control.put
        shutter.control.put = lambda value, **_: None if value else stuck(value)  # opens never
        opening = shutter.set("open")
        shutter.close()
        opening.wait(2)
        assert opening.success

    @pytest.mark.parametrize("value", ["ajar", 2, None])
    def test_other_words_are_refused(self, value):
        with pytest.raises(InputError, match="open"):
            fake(Shutter, "shutter").set(value)

    def test_transmission_is_checked(self):
        attenuator = fake(Attenuator, "attenuator")
        attenuator.set(0.25).wait(5)
        assert attenuator.transmission.get() == 0.25
        with pytest.raises(InputError, match="transmission"):
            attenuator.set(1.5)

    def test_energy_is_checked(self):
        energy = fake(Energy, "energy")
        energy.set(8000.0).wait(5)
        assert energy.energy_eV.get() == 8000.0
        with pytest.raises(InputError, match="energy"):
            energy.set(0.0)


class TestGeometry:
    @pytest.fixture
    def beamline(self):
        energy, detector = fake(Energy, "energy"), fake(DetectorGeometry, "geometry")
        energy.energy_eV.sim_put(10_000.0)
        detector.distance_m.sim_put(0.9)
        detector.pixel_m.sim_put(75e-6)
        return energy, detector

    def test_from_the_beamline(self, beamline):
        geometry = BeamlineGeometry(GeometrySettings(), *beamline).read((128, 128))
        assert (geometry.energy_eV, geometry.distance_m, geometry.detector_pixel_m) == (10_000.0, 0.9, 75e-6)
        assert geometry.num_px == 128

    def test_settings_win(self, beamline):
        settings = GeometrySettings(distance_m=2.0, orientation="transpose")
        geometry = BeamlineGeometry(settings, *beamline).read((128, 128))
        assert (geometry.distance_m, geometry.orientation) == (2.0, "transpose")

    @pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), -1.0])
    def test_value_without_meaning_leaves_it_unknown(self, beamline, value):
        beamline[1].distance_m.sim_put(value)
        assert BeamlineGeometry(GeometrySettings(), *beamline).read((128, 128)) is None

    def test_nothing_stated(self):
        assert BeamlineGeometry(GeometrySettings()).read((128, 128)) is None

    def test_frames_that_are_not_square(self, beamline, caplog):
        assert BeamlineGeometry(GeometrySettings(), *beamline).read((128, 64)) is None
        assert "not square" in caplog.text


class TestTrajectory:
    def test_length(self):
        assert len(Trajectory(np.zeros((7, 2)), 1e-3, 1e-3)) == 7

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((np.zeros(3), 1e-3, 1e-3), "shape"),
            ((np.zeros((0, 2)), 1e-3, 1e-3), "shape"),
            ((np.full((3, 2), np.nan), 1e-3, 1e-3), "finite"),
            ((np.zeros((3, 2)), 0.0, 1e-3), "exposure_s"),
            ((np.zeros((3, 2)), 2e-3, 1e-3), "shorter"),
        ],
    )
    def test_impossible_ones_are_refused(self, arguments, message):
        with pytest.raises(InputError, match=message):
            Trajectory(*arguments)


class TestRecords:
    def test_reads_what_was_put(self):
        record = EventRecord("segments", {"segment_index": int, "channel": str, "positions": list})
        record.put(segment_index=np.int64(3), channel="X:Image", positions=np.arange(4.0))
        keys = record.describe()
        assert keys["positions"]["shape"] == [4]
        assert keys["segment_index"]["dtype"] == "integer"
        assert keys["channel"]["dtype"] == "string"
        reading = record.read()
        assert {key: entry["value"] for key, entry in reading.items()} == {
            "segment_index": 3,
            "channel": "X:Image",
            "positions": [0.0, 1.0, 2.0, 3.0],
        }
        assert type(reading["segment_index"]["value"]) is int
        assert abs(reading["channel"]["timestamp"] - time.time()) < 5

    def test_every_field_is_wanted(self):
        record = EventRecord("segments", {"a": int, "b": int})
        with pytest.raises(KeyError, match="takes"):
            record.put(a=1)

    def test_trigger_without_an_action_is_done(self):
        status = EventRecord("planned", {"a": int}).trigger()
        status.wait(5)
        assert status.success


class TestFrameFile:
    @pytest.fixture
    def file(self, tmp_path):
        return FrameFile(tmp_path / "scan.h5", "det", columns((32, 48), "<u2"))

    def test_resources_come_first_and_once(self, file):
        first = list(file.documents(10))
        assert [name for name, _ in first] == ["stream_resource"] * 6 + ["stream_datum"] * 6
        assert [name for name, _ in file.documents(15)] == ["stream_datum"] * 6

    def test_ranges_follow_each_other(self, file):
        list(file.documents(10))
        second = [doc for _, doc in file.documents(15)]
        assert {(doc["indices"]["start"], doc["indices"]["stop"]) for doc in second} == {(10, 15)}
        assert {doc["descriptor"] for doc in second} == {""}
        assert list(file.documents(15)) == []
        assert list(file.documents(3)) == []

    def test_resources_say_how_to_read(self, file, tmp_path):
        resources = {doc["data_key"]: doc for name, doc in file.documents(1) if name == "stream_resource"}
        assert resources["det_image"]["parameters"] == {
            "dataset": area_detector.FRAMES,
            "chunk_shape": [1, 32, 48],
            "swmr": True,
        }
        assert {doc["uri"] for doc in resources.values()} == {f"file://localhost{tmp_path}/scan.h5"}
        assert {doc["mimetype"] for doc in resources.values()} == {"application/x-hdf5"}

    def test_keys_have_no_leading_one(self):
        keys = {column.suffix: column.data_key("PV:X") for column in columns((32, 48), "<u2")}
        assert keys["image"]["shape"] == [32, 48]
        assert keys["unique_id"]["dtype"] == "integer"
        assert keys["i0"]["dtype"] == "number"
        assert {key["external"] for key in keys.values()} == {"STREAM:"}


class TestWaiting:
    def test_condition_that_holds(self):
        wait_until(lambda: True, 0.1, "nothing")

    def test_deadline_names_what_was_waited_for(self):
        with pytest.raises(HardwareError, match=r"the moon: not within 0\.05 s"):
            wait_until(lambda: False, 0.05, "the moon")

    def test_fault_ends_the_wait(self):
        begun = time.monotonic()
        with pytest.raises(HardwareError, match="the moon: it is new"):
            wait_until(lambda: False, 10.0, "the moon", fault=lambda: "it is new")
        assert time.monotonic() - begun < 1

    def test_readback_that_does_not_follow(self):
        cam = fake(SlimCam, "cam")
        cam.acquire_time.sim_put(1.0)
        cam.acquire_time.put = lambda value: None
        with pytest.raises(HardwareError, match="acquire_time"):
            put_and_wait(cam.acquire_time, 2.0, timeout_s=0.05)

    def test_slash_at_the_end_of_a_path_does_not_matter(self):
        hdf1 = fake(SlimHDF5, "hdf1")
        hdf1.file_path.put = lambda value: hdf1.file_path.sim_put(value + "/")
        put_and_wait(hdf1.file_path, "/data/raw", timeout_s=1.0)

    def test_error_in_a_thread_fails_the_status(self):
        def fail():
            raise HardwareError("as it says")

        status = run_in_thread(fail, None, "test")
        with pytest.raises(HardwareError, match="as it says"):
            status.wait(5)

    def test_time_out_in_a_thread_names_the_disconnection(self):
        def fail():
            raise TimeoutError("X:State")

        with pytest.raises(HardwareError, match=r"disconnected.*X:State"):
            run_in_thread(fail, None, "test").wait(5)


class TestFaults:
    def test_detector_state(self):
        cam = fake(SlimCam, "cam")
        cam.status_message.sim_put("the cooling failed")
        cam.detector_state.sim_put("Idle")
        assert cam.fault() == ""
        cam.detector_state.sim_put("Error")
        assert "the cooling failed" in cam.fault()

    def test_error_of_before_is_no_fault_at_first(self):
        cam = fake(SlimCam, "cam")
        cam.status_message.sim_put("")
        cam.detector_state.sim_put("Error")
        fault = cam.lasting_fault(0.1)
        assert fault() == ""
        time.sleep(0.15)
        assert "Error" in fault()

    def test_file_that_cannot_be_written(self):
        hdf1 = fake(SlimHDF5, "hdf1")
        hdf1.write_message.sim_put("No space left on device")
        hdf1.write_status.sim_put(0)
        assert hdf1.fault() == ""
        hdf1.write_status.sim_put(1)
        assert "No space left" in hdf1.fault()
