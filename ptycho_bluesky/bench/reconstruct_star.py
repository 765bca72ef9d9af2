"""How sharp an engine sees in a given time: ring correlation between the reconstructions of two half-scans."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.bench.reconstruct_scan import BenchScan, seconds
from ptycho_bluesky.bench.rows import Row
from ptycho_bluesky.gauges import remove_gauge
from ptycho_bluesky.metrics import fourier_ring_correlation, resolution_px
from ptycho_bluesky.reconstruction import EpieOptions, PtychiOptions
from ptycho_bluesky.reconstruction.gauge import LIT_FRACTION, illumination, lit_median
from ptycho_bluesky.reconstruction.prepare import torch_threads

__all__ = ["star_row"]

LSQML_PASSES = 15
BATCH = 100


def star_row(bench: BenchScan, threads: int) -> Row:
    """Half period at which two half-scans cease to agree (1/7), ours and pty-chi's LSQML in equal wall-clock.

    Parameters
    ----------
    bench : BenchScan
    threads : int

    Returns
    -------
    Row
    """
    halves = [bench.part(np.arange(first, len(bench.scan), 2)) for first in (0, 1)]
    theirs, ours, budget_s = [], [], 0.0
    for half in halves:
        with torch_threads(threads):
            engine = half.theirs(PtychiOptions(algorithm="lsqml", batch_size=BATCH))
            spent_s = seconds(lambda engine=engine: [engine.run_epoch() for _ in range(LSQML_PASSES)])
        engine.fetch()
        theirs.append(engine.obj.numpy())
        found, used_s = _in_time(half, spent_s, threads)
        ours.append(found)
        budget_s += used_s / spent_s / len(halves)
    light = illumination(bench.probe.numpy(), bench.scan.position_px, bench.frame.shape)
    name = f"pty-chi LSQML, {LSQML_PASSES} passes (ours took {budget_s:.2f} of its time)"
    return Row("star_resolution_px", "px", "lower", _agreement(ours, light), _agreement(theirs, light), name,
               _agreement(theirs, light))  # fmt: skip


def _in_time(half: BenchScan, spent_s: float, threads: int) -> tuple[NDArray[np.complex64], float]:
    """Our default engine with as many passes as fit into a time, and what it took."""
    with torch_threads(1):
        trial = half.ours(EpieOptions(threads=threads))
        trial.run_pass(0)
        pass_s = float(np.median([seconds(lambda: trial.run_pass(1)) for _ in range(3)]))
        passes = max(1, min(300, int(0.9 * spent_s / pass_s)))
        engine = half.ours(EpieOptions(threads=threads, iterations=passes))
        used_s = seconds(lambda: [engine.run_pass(iteration) for iteration in range(passes)])
    return engine.obj.numpy().astype(np.complex64), used_s


def _agreement(halves: list[NDArray[np.complex64]], light: NDArray[np.float64]) -> float:
    """Half period, in object pixels, up to which two objects agree, gauges removed, in the middle of the lit area."""
    lit = light > LIT_FRACTION * lit_median(light)
    one, other = halves
    registered = remove_gauge(other, one, lit)
    rows, cols = (np.flatnonzero(lit.any(axis=axis)) for axis in (1, 0))
    side = int(0.7 * min(np.ptp(rows), np.ptp(cols)))
    first = [int((index[0] + index[-1] - side) // 2) for index in (rows, cols)]
    crop = (slice(first[0], first[0] + side), slice(first[1], first[1] + side))
    turn = np.exp(-1j * np.angle(one[crop].mean()))
    phases = [np.angle(obj[crop] * turn) for obj in (one, registered)]
    return resolution_px(*fourier_ring_correlation(*phases))
