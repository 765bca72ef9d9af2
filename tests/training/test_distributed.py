"""Two processes learn what one learns; a training killed without warning goes on bit by bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ptycho_bluesky.training.corpus import Corpus

SCRIPT = Path(__file__).with_name("torchrun_script.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, labels_a, labels_b):
    corpus = Corpus(tmp_path_factory.mktemp("corpus"))
    corpus.add(labels_a)
    corpus.add(labels_b)
    return corpus.directory


def start(command, folder, out, *changes):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, str(SCRIPT), str(folder), str(out), *changes],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output


def difference(one, other):
    with np.load(one) as first, np.load(other) as second:
        assert set(first) == set(second)
        return max(float(np.abs(first[name] - second[name]).max()) for name in first)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "limit"), [("float32", 1e-5), ("float64", 1e-12)])
def test_two_ranks_equal_one(folder, tmp_path, precision, limit):
    changes = [f"precision={precision}", "thin_to=0.5"]
    processes = [
        start([sys.executable], folder, tmp_path / "one.npz", *changes),
        start(TORCHRUN, folder, tmp_path / "two.npz", *changes),
    ]
    for process in processes:
        finish(process)
    assert difference(tmp_path / "one.npz", tmp_path / "two.npz") <= limit


@pytest.mark.slow
def test_two_ranks_read_a_corpus_from_disk_and_learn_what_one_learns(folder, tmp_path):
    changes = ["precision=float64", "buffer_frames=40", "rehearsal_frames=50"]
    for name, command in (("one", [sys.executable]), ("two", TORCHRUN)):
        finish(start(command, folder, tmp_path / f"{name}.npz", *changes))
    assert difference(tmp_path / "one.npz", tmp_path / "two.npz") <= 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("command", [[sys.executable], TORCHRUN], ids=["one", "two"])
def test_killed_at_any_step_it_goes_on_with_the_same_curve(folder, tmp_path, command):
    whole, killed = tmp_path / "whole.npz", tmp_path / "killed.npz"
    finish(start(command, folder, whole, "precision=float32"))
    checkpoint = Path(f"{killed}.checkpoint") / "training.pt"
    process = start(command, folder, killed, "precision=float32")
    deadline = time.monotonic() + 60
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(float(np.random.default_rng().uniform(0, 0.1)))
    os.kill(int(Path(f"{killed}.pid0").read_text()), signal.SIGKILL)  # torchrun then ends the other one
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert not killed.exists(), "it ended before it was killed"
    finish(start(command, folder, killed, "precision=float32"))
    assert difference(whole, killed) == 0.0
    curves = [Path(f"{path}.log") / "curve.csv" for path in (whole, killed)]
    assert curves[0].read_text() == curves[1].read_text()
