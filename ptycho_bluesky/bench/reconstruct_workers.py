"""Two workers of one conjugate-gradient reconstruction against one: the same answer, what they exchange and save."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ptycho_bluesky.bench.rows import Row
from ptycho_bluesky.errors import InputError

__all__ = ["worker_rows"]

PIXELS = 64
ITERATIONS = 8
TIMEOUT_S = 240.0
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
ENOUGH = 0.8
"""Parallel efficiency that is asked for,"""
OF_MACHINE = 0.85
"""or this part of what independent loops of transforms reach."""


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

    Raises
    ------
    InputError
        A worker failed.
    """
    found = _measured(points, rounds)
    one, two = (found[f"{name}_error"] for name in ("one", "two"))
    difference = float(np.max(np.abs(two / one - 1)))
    apart = float(np.abs(found["two_object"] - found["one_object"]).max())
    passes = ITERATIONS - 1
    sent, gathered = float(found["two_bytes_sent"]) / passes, float(found["two_bytes_gathered"]) / passes
    machine = float(np.median(found["machine"]))
    return [
        Row("cg_two_workers_objective_difference", "1", "lower", difference, None, "one worker", 1e-5),
        Row("cg_two_workers_object_difference", "1", "lower", apart, None, "one worker", 2e-4),
        Row("cg_exchange_bytes", "bytes/iteration", "lower", sent, gathered, "whole tiles gathered", gathered / 3),
        Row("cg_parallel_efficiency", "1", "higher", float(np.median(found["efficiency"])), machine,
            "two independent FFT loops", min(ENOUGH, OF_MACHINE * machine)),
    ]  # fmt: skip


def _measured(points: int, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.npz"
        arguments = [str(out), str(points), str(PIXELS), str(ITERATIONS), "--rounds", str(rounds)]
        done = subprocess.run(
            [sys.executable, *TORCHRUN, "-m", "ptycho_bluesky.bench.cg_workers", *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
        if done.returncode:
            raise InputError(f"a worker of the bench ended with {done.returncode}", done.stderr[-2000:])
        with np.load(out) as file:
            return {name: file[name] for name in file.files}
