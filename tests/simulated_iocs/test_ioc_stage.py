"""Stage and optics through ophyd, as the session uses them."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from caproto import AlarmSeverity
from ioc_harness import until
from ophyd import EpicsMotor
from ophyd.utils.errors import LimitError


@pytest.fixture(scope="module")
def motor(beamline, ca_context) -> Iterator[EpicsMotor]:
    motor = EpicsMotor(f"{beamline.prefix}m1", name="x")
    motor.wait_for_connection(timeout=10.0)
    yield motor
    motor.destroy()


def test_motor_moves_with_its_velocity(motor, client):
    motor.velocity.set(1000.0).wait(5.0)
    motor.move(0.0, wait=True, timeout=10.0)
    seen = []
    motor.subscribe(lambda value, **_: seen.append(value), event_type="readback")
    started = time.monotonic()
    motor.move(300.0, wait=True, timeout=10.0)
    assert 0.25 < time.monotonic() - started < 2.0
    assert motor.position == pytest.approx(300.0)
    assert any(10.0 < value < 290.0 for value in seen)
    motor.clear_sub(seen.append)
    motor.velocity.set(10_000.0).wait(5.0)


def test_motor_moves_to_where_it_is(motor):
    here = motor.position
    motor.move(here, wait=True, timeout=5.0)
    assert motor.position == here


def test_motor_stops(motor, client):
    motor.velocity.set(100.0).wait(5.0)
    status = motor.set(motor.position + 500.0)
    until(lambda: motor.moving, 5.0, lambda: "does not move")
    time.sleep(0.2)
    motor.stop()
    until(lambda: client.get("m1.DMOV") == 1, 5.0, lambda: "does not stop")
    stopped = client.get("m1.RBV")
    until(lambda: status.done, 5.0, lambda: "the move does not end")
    time.sleep(0.1)
    assert client.get("m1.RBV") == stopped
    assert client.get("m1") == stopped
    motor.velocity.set(10_000.0).wait(5.0)
    motor.move(0.0, wait=True, timeout=10.0)


def test_a_new_target_is_taken_on_the_way(motor, client):
    motor.velocity.set(200.0).wait(5.0)
    client.put("m1", 300.0, wait=False)
    until(lambda: client.get("m1.RBV") > 5.0, 5.0, lambda: "does not move")
    client.put("m1", -1.0)
    assert client.get("m1.RBV") == pytest.approx(-1.0)
    motor.velocity.set(10_000.0).wait(5.0)


def test_limits_are_in_the_set_point_and_in_the_fields(motor, client):
    assert motor.limits == (-5000.0, 5000.0)
    assert (motor.low_limit_travel.get(), motor.high_limit_travel.get()) == (-5000.0, 5000.0)
    assert motor.egu == "um"
    with pytest.raises(LimitError):
        motor.move(6000.0)
    before = client.get("m1.RBV")
    client.put("m1", 6000.0)
    assert client.get("m1.LVIO") == 1
    assert client.get("m1.RBV") == before
    client.put("m1.HLM", 4000.0)
    metadata = client.pv("m1").read(data_type="control", timeout=5.0).metadata
    assert metadata.upper_ctrl_limit == 4000.0
    client.put("m1.HLM", 5000.0)


def test_optics_refuse_what_cannot_be(client):
    client.put("atten1:Transmission", 1.5)
    client.put("energy:Energy_eV", 5.0)
    assert client.get("atten1:Transmission") == client.get("atten1:Transmission_RBV") == 1.0
    assert client.get("energy:Energy_eV_RBV") == 10e3
    severity = client.pv("atten1:Transmission").read(data_type="time", timeout=5.0).metadata.severity
    assert severity == AlarmSeverity.MAJOR_ALARM
    client.put("atten1:Transmission", 0.5)
    severity = client.pv("atten1:Transmission").read(data_type="time", timeout=5.0).metadata.severity
    assert severity == AlarmSeverity.NO_ALARM


def test_monitor_follows_attenuator_and_exposure(client):
    client.put("det1:cam1:AcquireTime", 0.01)
    client.put("atten1:Transmission", 0.25)
    until(lambda: client.get("I0:Value_RBV") == pytest.approx(1.3e8 * 0.01 * 0.25), 5.0, lambda: "does not follow")
