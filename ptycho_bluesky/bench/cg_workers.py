"""One conjugate-gradient reconstruction, alone or by the processes of ``torchrun``, timed.

``python -m ptycho_bluesky.bench.cg_workers OUT POINTS PIXELS ITERATIONS [DTYPE …]``: the first worker writes
OUT (.npz). With ``--rounds N`` the first worker alone, all of them together, and loops of transforms alone and
together, take turns N times in the same processes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptycho_bluesky.geometry import ObjectFrame
from ptycho_bluesky.reconstruction import CgOptions
from ptycho_bluesky.reconstruction.conjugate_gradient import ConjugateGradient
from ptycho_bluesky.reconstruction.engine import MARGIN_PX
from ptycho_bluesky.reconstruction.forward import Scan
from ptycho_bluesky.reconstruction.prepare import prepare_scan
from ptycho_bluesky.reconstruction.workers import Alone, TorchWorkers, Workers, joined_workers
from ptycho_bluesky.simulation.scans import line_scan

__all__ = ["Problem", "compare", "main", "run", "transforms_per_second"]

TRANSFORM_S = 2.0
"""Of a loop of transforms."""
CHUNK = 16
"""Frames of one transform."""


@dataclass(frozen=True)
class Problem:
    """A simulated scan, and where its reconstruction starts: from an empty object and the true probe, a tenth weaker.

    Attributes
    ----------
    scan : Scan
    obj : Tensor of complex, shape (rows, cols)
    probe : Tensor of complex, shape (1, N, N)
    options : CgOptions
    """

    scan: Scan
    obj: Tensor
    probe: Tensor
    options: CgOptions

    @classmethod
    def simulated(cls, points: int, size_px: int, dtype: str = "complex64") -> Problem:
        """A band of ``points`` frames."""
        measurement, experiment = line_scan(points, size_px)
        options = CgOptions(dtype="complex128" if dtype == "complex128" else "complex64")
        frame = ObjectFrame.around(measurement.position_m, size_px, measurement.step_px_m, MARGIN_PX)
        scan = prepare_scan(measurement, np.arange(points), frame, options)
        counts = float(scan.amplitude.double().square().sum()) / points
        probe = torch.from_numpy(0.9 * np.sqrt(counts) * experiment.probe[None]).to(scan.ramp_row)
        return cls(scan, torch.ones(frame.shape, dtype=probe.dtype), probe, options)


def run(workers: Workers, problem: Problem, iterations: int) -> dict[str, Any]:
    """Reconstruct.

    Returns
    -------
    dict
        ``object``, ``probe``, ``error`` (iterations − 1,), ``seconds`` of all iterations but the first, ``bytes_sent``
        by this worker in them, ``bytes_gathered`` that it would have sent had its whole tile gone to all others.
    """
    engine = ConjugateGradient(problem.scan, problem.obj, problem.probe, problem.options, workers=workers)
    engine.run_pass(0)
    workers.sum(torch.zeros(1))
    before = workers.bytes_sent if isinstance(workers, TorchWorkers) else 0
    began = time.perf_counter()
    error = [engine.run_pass(iteration) for iteration in range(1, iterations)]
    seconds = time.perf_counter() - began
    sent = workers.bytes_sent - before if isinstance(workers, TorchWorkers) else 0
    return {
        "object": engine.obj.numpy(),
        "probe": engine.probe.numpy(),
        "error": np.array(error),
        "seconds": seconds,
        "bytes_sent": sent,
        "bytes_gathered": engine.gathered_bytes * (iterations - 1),
    }


def compare(workers: Workers, points: int, size_px: int, iterations: int, rounds: int) -> dict[str, Any]:
    """Time the first worker alone and all of them, in turns with loops of transforms that know nothing of each other.

    Returns
    -------
    dict
        What `run` gives of the last round, with ``one_`` and ``two_`` before the names; ``efficiency`` (rounds,), the
        time of one over the time of all and their number, and ``machine`` (rounds,), the same of the loops.
    """
    problem = Problem.simulated(points, size_px)
    one: dict[str, Any] = {}
    two: dict[str, Any] = {}
    efficiency, machine = [], []
    for _ in range(rounds):
        if workers.rank == 0:
            one = run(Alone(), problem, iterations)
        workers.sum(torch.zeros(1))
        two = run(workers, problem, iterations)
        if workers.rank == 0:
            efficiency.append(one["seconds"] / workers.count / two["seconds"])
        alone = transforms_per_second(points, size_px) if workers.rank == 0 else 0.0
        workers.sum(torch.zeros(1))
        together = transforms_per_second(points // workers.count, size_px)
        mean = float(workers.sum(torch.tensor(together, dtype=torch.float64))) / workers.count
        machine.append(mean / alone if alone else np.nan)
    found = {f"one_{name}": value for name, value in one.items()} | {f"two_{name}": v for name, v in two.items()}
    return {**found, "efficiency": np.array(efficiency), "machine": np.array(machine)}


def transforms_per_second(points: int, size_px: int, seconds: float = TRANSFORM_S) -> float:
    """Frames a second that this process transforms in one thread, on fields of as many frames as the engine's."""
    waves = torch.randn(points, size_px, size_px, dtype=torch.complex64)
    out = torch.empty_like(waves)
    torch.fft.fft2(waves[:CHUNK], out=out[:CHUNK])
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        first = done % (points - CHUNK + 1)
        torch.fft.fft2(waves[first : first + CHUNK], out=out[first : first + CHUNK])
        done += CHUNK
    return done / (time.perf_counter() - began)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run as one of the workers; the first writes what it found."""
    parser = argparse.ArgumentParser(prog="cg_workers")
    parser.add_argument("out", type=Path)
    parser.add_argument("points", type=int)
    parser.add_argument("size_px", type=int)
    parser.add_argument("iterations", type=int)
    parser.add_argument("dtypes", nargs="*", default=["complex64"])
    parser.add_argument("--rounds", type=int, default=0)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with joined_workers() as workers:
        found: dict[str, Any] = {}
        if asked.rounds:
            found = compare(workers, asked.points, asked.size_px, asked.iterations, asked.rounds)
        else:
            for dtype in asked.dtypes:
                result = run(workers, Problem.simulated(asked.points, asked.size_px, dtype), asked.iterations)
                found |= {f"{dtype}_{name}": value for name, value in result.items()}
        if workers.rank == 0:
            np.savez(asked.out, **found)


if __name__ == "__main__":
    main()
