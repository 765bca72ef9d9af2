"""One conjugate-gradient reconstruction, alone or by the processes of ``torchrun``, timed.

``python -m ptycho_bluesky.bench.cg_workers OUT POINTS PIXELS ITERATIONS [DTYPE …]`` is what `bench.reconstruct_workers`
starts; the first worker writes OUT (.npz). With the word ``fft`` for POINTS it times transforms alone.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ptycho_bluesky.geometry import ObjectFrame
from ptycho_bluesky.reconstruction import CgOptions
from ptycho_bluesky.reconstruction.conjugate_gradient import ConjugateGradient
from ptycho_bluesky.reconstruction.engine import MARGIN_PX
from ptycho_bluesky.reconstruction.prepare import prepare_scan
from ptycho_bluesky.reconstruction.workers import TorchWorkers, Workers, joined_workers
from ptycho_bluesky.simulation.scans import line_scan

__all__ = ["main", "run", "transforms_per_second"]


def run(workers: Workers, points: int, size_px: int, iterations: int, dtype: str = "complex64") -> dict[str, Any]:
    """Reconstruct a simulated scan from its true probe, a tenth weaker.

    Returns
    -------
    dict
        ``object``, ``probe``, ``error`` (iterations,), ``seconds`` of all iterations, ``bytes_sent`` by this worker,
        ``bytes_gathered`` that it would have sent had its whole tile gone to each of the others.
    """
    measurement, experiment = line_scan(points, size_px)
    options = CgOptions(iterations=iterations, dtype="complex128" if dtype == "complex128" else "complex64")
    frame = ObjectFrame.around(measurement.position_m, size_px, measurement.step_px_m, MARGIN_PX)
    scan = prepare_scan(measurement, np.arange(points), frame, options)
    counts = float(scan.amplitude.double().square().sum()) / points
    probe = torch.from_numpy(0.9 * np.sqrt(counts) * experiment.probe[None]).to(scan.ramp_row)
    obj = torch.ones(frame.shape, dtype=probe.dtype)
    engine = ConjugateGradient(scan, obj, probe, options, workers=workers)
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


def main(out: Path, points: int, size_px: int, iterations: int, dtypes: tuple[str, ...] = ("complex64",)) -> None:
    """Run as one of the workers; the first writes what it found."""
    torch.set_num_threads(1)
    with joined_workers() as workers:
        found: dict[str, Any] = {}
        for dtype in dtypes:
            result = run(workers, points, size_px, iterations, dtype)
            found |= {f"{dtype}_{name}": value for name, value in result.items()}
        if workers.rank == 0:
            np.savez(out, **found)


def transforms_per_second(size_px: int, seconds: float = 2.0) -> float:
    """Batches of 16 transforms a second that this process does in one thread."""
    torch.set_num_threads(1)
    waves = torch.randn(16, size_px, size_px, dtype=torch.complex64)
    torch.fft.fft2(waves)
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        torch.fft.fft2(waves)
        done += 1
    return done / (time.perf_counter() - began)


if __name__ == "__main__":
    out, points, size, iterations = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    if points == "fft":
        np.savez(out, rate=transforms_per_second(size))
    else:
        main(out, int(points), size, iterations, tuple(sys.argv[5:]) or ("complex64",))
