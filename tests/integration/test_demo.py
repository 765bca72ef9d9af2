"""The whole loop through the command line, once small and undisturbed, once with everything killed on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.timeout(900)


def _demo(folder: Path, *options: str, timeout_s: float = 840) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ptycho_bluesky.cli.main", "demo", "--out", str(folder), "--headless", *options],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def _left_running(folder: Path) -> list[str]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or [])
        if str(folder) in command and process.pid != os.getpid():
            found.append(command)
    return found


@pytest.mark.slow
def test_a_disturbed_demo_loses_nothing(tmp_path):
    folder = tmp_path / "demo"
    done = _demo(folder, "--scans", "4", "--points", "120", "--size", "64", "--budget", "1500", "--disturb")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    content = json.loads((folder / "report.json").read_text())
    rows = {row["metric"]: row for row in content["rows"]}
    assert rows["frames_generated"]["ours"] == 7 * 120
    assert rows["frames_lost"]["ours"] == 0
    assert rows["frames_unaccounted"]["ours"] == 0
    assert "ssim_final" in rows
    assert {f"ssim_fixed_{k}" for k in (1, 2, 3, 4)} <= set(rows) or content["remarks"]
    assert len(content["runs"]) == 7
    assert all(run["frames"]["inferred"] == 120 for run in content["runs"])
    assert len(content["remarks"]) == 4
    page = (folder / "index.html").read_text()
    for picture in folder.glob("*.png"):
        assert picture.name in page
    assert _left_running(folder) == []


def test_ctrl_c_stops_everything(tmp_path):
    folder = tmp_path / "demo"
    process = subprocess.Popen(
        [sys.executable, "-m", "ptycho_bluesky.cli.main", "demo", "--out", str(folder), "--headless", "--size", "64"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (folder / "logs" / "edge.log").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 130, output[-3000:]
    assert _left_running(folder) == []


def test_bad_options_are_refused_in_one_line(tmp_path):
    done = _demo(tmp_path / "demo", "--size", "50")
    assert done.returncode == 2
    assert "multiples of 16" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    (tmp_path / "report.json").write_text("{}")
    done = _demo(tmp_path)
    assert done.returncode == 2
    assert "name another --out" in " ".join(done.stderr.split())
