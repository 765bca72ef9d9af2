"""One simulated beamline and one session for every test that scans; each test finds them as new."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from beamline_process import Documents, running_beamline, settings_for, wait_for

FRAME_PX = 32


@pytest.fixture(scope="session")
def scan_folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("scans")


@pytest.fixture(scope="session")
def scan_settings(epics_settings, scan_folder):
    return settings_for(epics_settings, scan_folder, f"{epics_settings.prefix}SCAN:")


@pytest.fixture(scope="session")
def scan_beamline(scan_settings, scan_folder):
    with running_beamline(scan_settings, scan_folder, "--sample", "pattern", "--size", str(FRAME_PX)) as process:
        yield process


@pytest.fixture(scope="session")
def _one_session(scan_settings, scan_beamline):
    from ptycho_bluesky.session import make_session

    session = make_session(scan_settings, live_plot=False, use_tiled=False)
    yield session
    session.close()


@pytest.fixture
def controls(_one_session):
    """Put values of the simulator's own process variables by name; they are put back at the end."""
    from ophyd import EpicsSignal

    prefix = f"{_one_session.settings.epics.prefix}sim1:"
    before: dict[str, tuple] = {}

    def put(name, value):
        signal = EpicsSignal(f"{prefix}{name}", name=name)
        signal.wait_for_connection(timeout=10)
        before.setdefault(name, (signal, signal.get()))
        signal.put(value)
        wait_for(lambda: signal.get(use_monitor=False) == value)

    yield put
    for signal, value in before.values():
        signal.put(value)
        signal.destroy()


@pytest.fixture
def session(_one_session):
    """The session, its RunEngine idle before and after."""
    assert _one_session.RE.state == "idle"
    yield _one_session
    if _one_session.RE.state == "paused":
        with contextlib.suppress(Exception):
            _one_session.RE.abort()
    assert _one_session.RE.state == "idle"


@pytest.fixture
def documents(session):
    seen = Documents()
    token = session.RE.subscribe(seen)
    yield seen
    session.RE.unsubscribe(token)


@pytest.fixture
def is_safe(session):
    """Whether nothing is exposed, triggered or written any more."""

    def check() -> bool:
        detector = session.detector
        state = session.flyer.controller.fresh_state
        return (
            not session.shutter.is_open
            and state not in ("Running", "Building")
            and not detector.cam.acquire.get(use_monitor=False)
        )

    return check
