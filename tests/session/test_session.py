"""The session: what it is made of, and how it starts from a shell, a script, and IPython."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pexpect
import pytest
from beamline_process import settings_for, wait_for
from terminal import python_in_terminal

from ptycho_bluesky.errors import InputError, StorageError
from ptycho_bluesky.session.scan_ids import ScanIds
from ptycho_bluesky.session.shell import run_code

PROFILE = Path(__file__).parent.parent.parent / "profile_collection"
SCAN = "RE(fly_spiral(num_points={points}, step_m=50e-9, exposure_s=0.4e-3, period_s={period_s}))"


@pytest.fixture
def config(scan_settings, scan_beamline, tmp_path) -> Path:
    """Configuration of a session of its own on the common beamline; Tiled is away."""
    settings = scan_settings.model_copy(update={"data_dir": tmp_path / "data"}, deep=True)
    settings.tiled.uri = "http://127.0.0.1:9"
    path = tmp_path / "session.yml"
    settings.to_yaml(path)
    return path


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ptycho_bluesky.cli.main", "session", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "MPLBACKEND": "Agg"},
    )


def test_importing_costs_nothing():
    code = (
        "import sys, ptycho_bluesky.session, ptycho_bluesky.session.shell;"
        "heavy = {'torch', 'ophyd', 'bluesky', 'tiled', 'matplotlib', 'pvaccess'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.slow
def test_command_scans_without_torch(config, tmp_path):
    code = SCAN.format(points=50, period_s=0.5e-3) + "; import sys; print('TORCH', 'torch' in sys.modules)"
    process = start("--config", str(config), "--no-plot", "--code", code)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "TORCH False" in out
    assert "no Tiled client" in " ".join(err.split())
    (journal,) = (tmp_path / "data" / "journal").iterdir()
    assert '"exit_status": "success"' in journal.read_text()


@pytest.mark.slow
def test_script_that_fails_ends_with_its_error(config, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "assert RE.state == 'idle'\nassert __name__ == '__main__'\nraise RuntimeError('as the script says')\n"
    )
    process = start("--config", str(config), "--no-plot", "--script", str(script))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "as the script says" in err


@pytest.mark.slow
def test_term_signal_ends_a_scan_cleanly(config, tmp_path, session, is_safe):
    process = start("--config", str(config), "--no-plot", "--code", SCAN.format(points=20_000, period_s=1e-3))
    journal = tmp_path / "data" / "journal"
    wait_for(lambda: journal.exists() and any("stream_datum" in path.read_text() for path in journal.iterdir()), 90)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode != 0
    (path,) = journal.iterdir()
    text = path.read_text()
    assert '"exit_status": "abort"' in text
    assert '"frames_generated"' in text
    wait_for(is_safe)


@pytest.mark.parametrize(
    ("script", "code", "message"),
    [("missing.py", None, "missing.py"), (None, "1 +", "code"), ("broken.py", None, "broken.py")],
)
def test_code_that_cannot_be_read_is_refused_before_anything_connects(tmp_path, epics_settings, script, code, message):
    (tmp_path / "broken.py").write_text("def (")
    settings = settings_for(epics_settings, tmp_path)
    path = None if script is None else tmp_path / script
    begun = time.monotonic()
    with pytest.raises(InputError, match=message):
        run_code(settings, script=path, code=code, live_plot=False)
    assert time.monotonic() - begun < 5


def test_journal_that_cannot_be_written_is_refused_at_the_start(tmp_path, epics_settings):
    from ptycho_bluesky.session import make_session

    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="journal"):
        make_session(settings_for(epics_settings, tmp_path / "file"), live_plot=False)


def test_namespace_has_what_scans_need(session):
    names = session.namespace()
    assert {"RE", "stage", "detector", "flyer", "shutter", "attenuator", "energy", "i0", "c", "db", "bps"} <= set(names)
    assert {"fly_spiral_ptycho", "spiral_ptycho", "fly_spiral", "spiral"} <= set(names)
    assert names["c"] is None


def test_order_of_the_callbacks(session, documents, monkeypatch):
    """The journal has a document before anybody else hears of it."""
    order = []
    monkeypatch.setattr(type(session.journal), "_write", lambda self, run, name, doc: order.append(("journal", name)))
    monkeypatch.setattr(session.publisher, "_guarded", lambda name, doc: order.append(("publisher", name)))
    session.RE(session.fly_spiral(num_points=5, step_m=50e-9))
    assert order[0] == ("journal", "start")
    assert order[1] == ("publisher", "start")
    assert order[-2:] == [("journal", "stop"), ("publisher", "stop")]


def test_edge_in_this_process_may_fail(scan_settings, scan_beamline, tmp_path, caplog):
    from ptycho_bluesky.session import make_session

    settings = scan_settings.model_copy(update={"data_dir": tmp_path})
    seen = []

    def edge(name, doc):
        seen.append(name)
        raise RuntimeError("no model")

    session = make_session(settings, live_plot=False, use_tiled=False, subscribe_edge=edge)
    with caplog.at_level(logging.ERROR):
        session.RE(session.fly_spiral(num_points=5, step_m=50e-9))
    session.close()
    assert seen[0] == "start"
    assert seen[-1] == "stop"
    assert sum("the edge in this process failed" in record.message for record in caplog.records) == 1


def test_scan_numbers_go_on(tmp_path):
    assert [ScanIds(tmp_path / "a" / "scan_id")({}) for _ in range(3)] == [1, 2, 3]


def test_scan_numbers_without_a_disk(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    numbers = ScanIds(tmp_path / "file" / "scan_id")
    assert [numbers({}), numbers({})] == [1, 2]
    assert "scan numbers" in caplog.text


def test_broken_scan_number_is_logged(tmp_path, caplog):
    (tmp_path / "scan_id").write_text("many")
    assert ScanIds(tmp_path / "scan_id")({}) == 1
    assert "scan numbers" in caplog.text


@pytest.mark.slow
def test_live_plot_shows_the_mosaic_of_the_edge(scan_settings, scan_beamline, tmp_path):
    """A mosaic published as the edge does it is drawn beside the positions of a real scan."""
    import pvaccess
    from pvapy.utility.adImageUtility import AdImageUtility

    from ptycho_bluesky.session import make_session

    channel = f"{scan_settings.epics.prefix}EDGE:"
    mosaic = np.linspace(-1, 1, 60 * 80, dtype=np.float32).reshape(60, 80)
    structure = AdImageUtility.generateNtNdArray2D(1, mosaic)
    place = {"OriginY_m": -1e-6, "OriginX_m": 2e-6, "PixelSize_m": 10e-9}
    structure["attribute"] = [pvaccess.NtAttribute(key, pvaccess.PvDouble(value)) for key, value in place.items()]
    server = pvaccess.PvaServer(f"{channel}Mosaic:Image", structure)
    settings = scan_settings.model_copy(update={"data_dir": tmp_path}, deep=True)
    settings.edge.prefix = channel
    session = make_session(settings, live_plot=True, use_tiled=False)
    try:
        plot = session.live_plot
        wait_for(lambda: plot._mosaic() is not None, 20)
        session.RE(session.fly_spiral(num_points=200, step_m=50e-9, period_s=1e-3))
        np.testing.assert_allclose(plot._artists["mosaic"].get_array(), mosaic)
        assert plot._artists["mosaic"].get_extent() == pytest.approx([1.995, 2.795, -0.405, -1.005])
        assert "200 of 200 frames" in plot._axes[1].get_title()
        assert len(plot._artists["taken"].get_xdata()) == 200
    finally:
        session.close()
        server.stop()


@pytest.mark.slow
def test_ipython_profile(config, tmp_path):
    """``ipython --profile-dir=profile_collection``: a scan typed into a real IPython."""
    profile = tmp_path / "profile_collection"
    shutil.copytree(PROFILE, profile)
    environment = {
        **os.environ,
        "PTYCHO_BLUESKY_CONFIG": str(config),
        "MPLBACKEND": "Agg",
        "TERM": "dumb",
        "IPYTHONDIR": str(tmp_path / "ipython"),
    }
    command = f"-m IPython --profile-dir={profile} --simple-prompt --colors=NoColor --no-confirm-exit"
    with python_in_terminal(command.split(), environment, 90) as shell:
        shell.expect(r"ptycho_bluesky session on")
        shell.expect(r"Tiled is away")
        shell.expect(r"In \[1\]: ")
        shell.sendline("print('NAMES', RE.state, stage.name, flyer.name, detector.name, live_plot is not None, c, db)")
        shell.expect(r"NAMES idle stage flyer det True None None")
        shell.sendline(SCAN.format(points=300, period_s=1e-3))
        shell.expect(r"Out\[2\]: \('[0-9a-f-]{36}',\)")
        shell.sendline("print('SHOWN', live_plot._axes[1].get_title())")
        shell.expect(r"SHOWN scan 1 fly_spiral_ptycho \(success\): 300 of 300 frames")
        shell.sendline("RE(spiral(num_points=3, overlap=0.5))")
        shell.expect(r"InputError")
        shell.expect(r"beam_m")
        shell.sendline("print('STILL', RE.state)")
        shell.expect(r"STILL idle")
        shell.sendline("exit")
        shell.expect(pexpect.EOF)
    assert len(list((tmp_path / "data" / "journal").iterdir())) == 1


@pytest.mark.slow
def test_ctrl_c_twice_pauses_a_scan_in_ipython(config, tmp_path, session, is_safe):
    """As at any Bluesky beamline: two interrupts pause, and the scan can be resumed."""
    command = ["-m", "ptycho_bluesky.cli.main", "session", "--config", str(config), "--no-plot"]
    environment = {**os.environ, "TERM": "dumb", "IPYTHONDIR": str(tmp_path / "ipython")}
    with python_in_terminal(command, environment, 90) as shell:
        shell.expect(r"ptycho_bluesky session on")
        shell.expect(r"In \[1\]: ")
        shell.sendline(SCAN.format(points=5000, period_s=1e-3))
        journal = tmp_path / "data" / "journal"
        wait_for(lambda: journal.exists() and any("stream_datum" in path.read_text() for path in journal.iterdir()), 60)
        shell.send("\x03")
        time.sleep(0.5)
        shell.send("\x03")
        shell.expect(r"RunEngineInterrupted")
        wait_for(is_safe)
        shell.sendline("RE.resume()")
        shell.expect(r"'[0-9a-f-]{36}',\)")
        shell.sendline("exit")
        shell.expect(pexpect.EOF)
    (path,) = journal.iterdir()
    assert '"segments": 2, "segment_ends": 2' in path.read_text()
