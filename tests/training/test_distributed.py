"""Two processes learn what one learns; a training killed without warning goes on bit by bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from ptycho_bluesky.models.export import read_manifest
from ptycho_bluesky.training.corpus import Corpus

SCRIPT = Path(__file__).with_name("torchrun_script.py")
LIMITS = {"float32": 1e-5, "float64": 1e-12}
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
@pytest.mark.parametrize(
    "changes",
    [("precision=float32,float64", "thin_to=0.5"), ("precision=float64", "buffer_frames=40", "rehearsal_frames=50")],
    ids=["memory", "disk"],
)
def test_two_ranks_learn_what_one_learns(folder, tmp_path, changes):
    processes = [
        start([sys.executable], folder, tmp_path / "one", *changes),
        start(TORCHRUN, folder, tmp_path / "two", *changes),
    ]
    for process in processes:
        finish(process)
    for precision, limit in LIMITS.items():
        if precision in changes[0]:
            one, two = (tmp_path / f"{name}.{precision}.npz" for name in ("one", "two"))
            assert difference(one, two) <= limit


@pytest.mark.slow
def test_the_command_under_torchrun_writes_the_model_of_one_process(folder, tmp_path):
    models = []
    for name, launcher in (("one", [sys.executable]), ("two", TORCHRUN)):
        models.append(tmp_path / f"{name}.onnx")
        process = subprocess.run(
            [*launcher, "-m", "ptycho_bluesky", "train", str(folder), "--device", "cpu", "--architecture", "lean8",
             "--frames-per-scan", "96", "--batch-size", "16", "--seed", "3", "--out", str(models[-1])],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=180, check=False,
        )  # fmt: skip
        assert process.returncode == 0, process.stdout + process.stderr
    one, two = (
        {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(model).graph.initializer} for model in models
    )
    assert set(one) == set(two)
    assert any(value.size > 100 for value in one.values())
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-3, atol=1e-4, err_msg=name)
    manifests = [read_manifest(model.read_bytes()) for model in models]
    assert manifests[0]["frame_updates"] == manifests[1]["frame_updates"] > 0
    assert [path.name for path in tmp_path.glob("*.onnx")].count("two.onnx") == 1


@pytest.mark.slow
@pytest.mark.parametrize("command", [[sys.executable], TORCHRUN], ids=["one", "two"])
def test_killed_at_any_step_it_goes_on_with_the_same_curve(folder, tmp_path, command):
    finish(start(command, folder, tmp_path / "whole", "precision=float32"))
    whole, killed = tmp_path / "whole.float32.npz", tmp_path / "killed.float32.npz"
    checkpoint = tmp_path / "killed.float32.checkpoint" / "training.pt"
    process = start(command, folder, tmp_path / "killed", "precision=float32")
    deadline = time.monotonic() + 60
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(float(np.random.default_rng().uniform(0, 0.1)))
    os.kill(int((tmp_path / "killed.pid0").read_text()), signal.SIGKILL)  # torchrun then ends the other one
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert not killed.exists(), "it ended before it was killed"
    finish(start(command, folder, tmp_path / "killed", "precision=float32"))
    assert difference(whole, killed) == 0.0
    curves = [path.with_suffix(".log") / "curve.csv" for path in (whole, killed)]
    assert curves[0].read_text() == curves[1].read_text()
