"""A session beside the real data service: what was scanned is read back with its client."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest
from beamline_process import wait_for
from terminal import python_in_terminal

PROFILE = Path(__file__).parent.parent.parent / "profile_collection"


@pytest.fixture
def services(scan_settings, scan_beamline, tmp_path, free_ports):
    """Tiled and the writer; yields the configuration of a session with them."""
    tiled, publish, subscribe = free_ports(3)
    settings = scan_settings.model_copy(update={"data_dir": tmp_path / "data"}, deep=True)
    settings.tiled.uri = f"http://127.0.0.1:{tiled}"
    settings.zmq.publish, settings.zmq.subscribe = f"127.0.0.1:{publish}", f"127.0.0.1:{subscribe}"
    config = tmp_path / "session.yml"
    settings.to_yaml(config)
    processes = []
    try:
        for name in ("tiled", "writer"):
            log = tmp_path / f"{name}.log"
            with log.open("wb") as out:
                process = subprocess.Popen(
                    [sys.executable, "-m", "ptycho_bluesky.cli.main", name, "--config", str(config)],
                    stdout=out,
                    stderr=subprocess.STDOUT,
                )
            processes.append(process)
            wait_for(lambda log=log: b"READY" in log.read_bytes(), 120)
        yield config
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            process.wait(30)


@pytest.mark.slow
def test_ipython_profile_reads_back_what_it_scanned(services, tmp_path):
    profile = tmp_path / "profile_collection"
    shutil.copytree(PROFILE, profile)
    environment = {
        **os.environ,
        "PTYCHO_BLUESKY_CONFIG": str(services),
        "MPLBACKEND": "Agg",
        "TERM": "dumb",
        "IPYTHONDIR": str(tmp_path / "ipython"),
    }
    command = f"-m IPython --profile-dir={profile} --simple-prompt --colors=NoColor --no-confirm-exit"
    with python_in_terminal(command.split(), environment, 120) as shell:
        shell.expect(r"ptycho_bluesky session on")
        shell.expect(r"In \[1\]: ")
        shell.sendline("(uid,) = RE(fly_spiral(num_points=300, step_m=50e-9, period_s=1e-3))")
        shell.expect(r"In \[2\]: ")
        shell.sendline("import time; end = time.monotonic() + 60")
        shell.expect(r"In \[3\]: ")
        shell.sendline(
            "while time.monotonic() < end and not (uid in list(db) and db[uid].metadata.get('stop')): time.sleep(0.5)"
        )
        shell.sendline("")
        shell.expect(r"In \[4\]: ")
        shell.sendline("table = db[uid]['primary'].read(['det_unique_id', 'det_position_y_m'])")
        shell.sendline("print('READ', dict(table.sizes), db[uid]['primary/det_image'].shape, 'raw' in c)")
        shell.expect(r"READ \{'time': 300\} \(300, 32, 32\) True")
        shell.sendline("print('SORTED', bool((np.diff(table['det_unique_id']) == 1).all()))")
        shell.expect("SORTED True")
        shell.sendline("exit")
        shell.expect(pexpect.EOF)
