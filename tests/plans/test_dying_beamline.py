"""What a scan does when the beamline's server dies under it."""

from __future__ import annotations

import time

import pytest
from beamline_process import Documents, running_beamline, settings_for, wait_for
from ophyd import EpicsSignal

from ptycho_bluesky.devices import HardwareError
from ptycho_bluesky.errors import UnreachableError
from ptycho_bluesky.io.area_detector import read_rows
from ptycho_bluesky.session import make_session


@pytest.mark.slow
def test_server_that_dies_in_a_scan(epics_settings, tmp_path):
    settings = settings_for(epics_settings, tmp_path, f"{epics_settings.prefix}DIES:")
    with running_beamline(settings, tmp_path, "--sample", "pattern", "--size", "32"):
        session = make_session(settings, live_plot=False, use_tiled=False)
        documents = Documents()
        session.RE.subscribe(documents)
        die = EpicsSignal(f"{settings.epics.prefix}sim1:Fault:DieAt", name="die")
        die.wait_for_connection(timeout=10)
        die.put(300)
        wait_for(lambda: die.get(use_monitor=False) == 300)
        begun = time.monotonic()
        plan = session.fly_spiral(num_points=1000, step_m=50e-9, exposure_s=0.8e-3, period_s=2e-3)
        with pytest.raises((HardwareError, UnreachableError), match="disconnected"):
            session.RE(plan)
        elapsed_s = time.monotonic() - begun
    assert elapsed_s < 120
    assert documents.stop["exit_status"] == "fail"
    generated = documents.check_segments()
    assert 0 < generated <= 300
    rows = documents.rows()
    assert 0 < rows <= 300
    stored = read_rows(documents.path)
    assert len(stored["unique_id"]) >= rows, "what was announced can be read, though the writer died"
    assert session.RE.state == "idle"
    with pytest.raises(UnreachableError, match="do not answer"):
        session.RE(session.fly_spiral(num_points=10, step_m=50e-9))
    session.close()


def test_no_server_at_all(epics_settings, tmp_path):
    settings = settings_for(epics_settings, tmp_path, f"{epics_settings.prefix}NONE:")
    with pytest.raises(UnreachableError, match="NONE:") as caught:
        make_session(settings, live_plot=False, use_tiled=False, connect_timeout_s=0.5)
    assert "more" in str(caught.value)
    assert "ptycho-bluesky ioc" in str(caught.value)
