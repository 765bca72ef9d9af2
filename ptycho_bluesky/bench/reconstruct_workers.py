"""Two workers of one conjugate-gradient reconstruction against one: the same answer, what they exchange and save."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ptycho_bluesky.bench.rows import Row
from ptycho_bluesky.errors import InputError

__all__ = ["worker_rows"]

PIXELS = 64
ITERATIONS = 8
TIMEOUT_S = 300.0
MODULE = "ptycho_bluesky.bench.cg_workers"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def worker_rows(points: int, rounds: int) -> list[Row]:
    """Measure one and two one-thread workers in turns, and what two independent loops of transforms make of the cores.

    Parameters
    ----------
    points : int
        Frames of the simulated scan.
    rounds : int

    Returns
    -------
    list of Row
    """
    ratios, two = [], {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.npz"
        arguments = [MODULE, str(out), str(points), str(PIXELS), str(ITERATIONS)]
        one: dict[str, Any] = {}
        for _ in range(rounds):
            one = _finish([_start(["-m", *arguments])], [out])[0]
            two = _finish([_start([*TORCHRUN, "-m", *arguments])], [out])[0]
            ratios.append(float(one["complex64_seconds"]) / 2 / float(two["complex64_seconds"]))
        machine = _machine_efficiency(Path(folder), rounds)
    difference = float(np.max(np.abs(two["complex64_error"] / one["complex64_error"] - 1)))
    sent, gathered = float(two["complex64_bytes_sent"]), float(two["complex64_bytes_gathered"])
    passes = ITERATIONS - 1
    return [
        Row("cg_two_workers_objective_difference", "1", "lower", difference, None, "one worker", 1e-5),
        Row("cg_exchange_bytes", "bytes/iteration", "lower", sent / passes, gathered / passes, "whole tiles gathered",
            gathered / passes / 3),
        Row("cg_parallel_efficiency", "1", "higher", float(np.median(ratios)), machine, "two independent FFT loops",
            min(0.8, 0.85 * machine)),
    ]  # fmt: skip


def _machine_efficiency(folder: Path, rounds: int) -> float:
    """Speed of each of two simultaneous loops of transforms relative to one alone."""
    found = []
    for _ in range(rounds):
        outs = [folder / f"fft{k}.npz" for k in (0, 1)]
        alone = _finish([_loop(outs[0])], outs[:1])
        both = _finish([_loop(out) for out in outs], outs)
        found.append(sum(float(item["rate"]) for item in both) / 2 / float(alone[0]["rate"]))
    return float(np.median(found))


def _loop(out: Path) -> subprocess.Popen[str]:
    return _start(["-m", MODULE, str(out), "fft", str(PIXELS), "0"])


def _start(arguments: Sequence[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *arguments], env=environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def _finish(processes: Sequence[subprocess.Popen[str]], outs: Sequence[Path]) -> list[dict[str, Any]]:
    for process in processes:
        try:
            _, said = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        if process.returncode:
            raise InputError(f"a worker of the bench ended with {process.returncode}", said[-2000:])
    found = []
    for out in outs:
        with np.load(out) as file:
            found.append({name: file[name] for name in file.files})
    return found
