"""How sharp an engine sees in a given time: ring correlation between the reconstructions of two half-scans."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.bench.reconstruct_scan import BATCH, BenchScan, seconds
from ptycho_bluesky.bench.rows import Row
from ptycho_bluesky.gauges import remove_gauge
from ptycho_bluesky.metrics import fourier_ring_correlation, resolution_px
from ptycho_bluesky.reconstruction import EpieOptions, PtychiOptions
from ptycho_bluesky.reconstruction.gauge import LIT_FRACTION, illumination, lit_median
from ptycho_bluesky.reconstruction.prepare import torch_threads

__all__ = ["star_rows"]

MOST_PASSES = 300


def star_rows(bench: BenchScan, passes: int, threads: int, picture: Path | None = None) -> list[Row]:
    """Half period at which two half-scans cease to agree (1/7), ours and pty-chi's LSQML in equal wall-clock.

    Parameters
    ----------
    bench : BenchScan
    passes : int
        Of LSQML.
    threads : int
        Of both.
    picture : path, optional
        File (PNG) for the phases of the first half-scan by both.

    Returns
    -------
    list of Row
    """
    halves = [bench.part(np.arange(first, len(bench.scan), 2)) for first in (0, 1)]
    theirs, ours, share, done = [], [], 0.0, 0
    for half in halves:
        with torch_threads(threads):
            engine = half.theirs(PtychiOptions(algorithm="lsqml", batch_size=BATCH))
            spent_s = seconds(lambda engine=engine: [engine.run_epoch() for _ in range(passes)])
        engine.fetch()
        theirs.append(engine.obj.numpy())
        found, used_s, done = _in_time(half, spent_s, threads)
        ours.append(found)
        share += used_s / spent_s / len(halves)
    light = illumination(bench.probe.numpy(), bench.scan.position_px, bench.frame.shape)
    name = f"pty-chi LSQML, {passes} passes; ours {done} in {share:.2f} of its time"
    crop = _middle(light > LIT_FRACTION * lit_median(light))
    mine, other = _agreement(ours, light, crop), _agreement(theirs, light, crop)
    if picture is not None:
        _draw({f"default engine, {done} passes": ours[0], f"pty-chi LSQML, {passes} passes": theirs[0]}, crop, picture)
    return [Row("star_resolution_px", "px", "lower", mine, other, name, other)]


def _in_time(half: BenchScan, spent_s: float, threads: int) -> tuple[NDArray[np.complex64], float, int]:
    """Our default engine with as many passes as fit into a time, what it took, and their number."""
    with torch_threads(1):
        trial = half.ours(EpieOptions(threads=threads))
        trial.run_pass(0)
        pass_s = float(np.median([seconds(lambda: trial.run_pass(1)) for _ in range(3)]))
        passes = max(1, min(MOST_PASSES, int(0.9 * spent_s / pass_s)))
        engine = half.ours(EpieOptions(threads=threads, iterations=passes))
        used_s = seconds(lambda: [engine.run_pass(iteration) for iteration in range(passes)])
    return engine.obj.numpy().astype(np.complex64), used_s, passes


def _middle(lit: NDArray[np.bool_]) -> tuple[slice, slice]:
    """A square in the middle of the lit area."""
    rows, cols = (np.flatnonzero(lit.any(axis=axis)) for axis in (1, 0))
    side = int(0.7 * min(np.ptp(rows), np.ptp(cols)))
    first = [int((index[0] + index[-1] - side) // 2) for index in (rows, cols)]
    return slice(first[0], first[0] + side), slice(first[1], first[1] + side)


def _agreement(halves: list[NDArray[np.complex64]], light: NDArray[np.float64], crop: tuple[slice, slice]) -> float:
    """Half period, in object pixels, up to which two objects agree, gauges removed."""
    one, other = halves
    registered = remove_gauge(other, one, light > LIT_FRACTION * lit_median(light))
    turn = np.exp(-1j * np.angle(one[crop].mean()))
    phases = [np.angle(obj[crop] * turn) for obj in (one, registered)]
    return resolution_px(*fourier_ring_correlation(*phases))


def _draw(objects: Mapping[str, NDArray[np.complex64]], crop: tuple[slice, slice], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0 * len(objects), 5.2), layout="constrained")
    for axes, (name, obj) in zip(figure.subplots(1, len(objects)), objects.items(), strict=True):
        phase = np.angle(obj[crop] * np.exp(-1j * np.angle(obj[crop].mean())))
        low, high = np.quantile(phase, (0.005, 0.995))
        axes.imshow(phase, cmap="gray", vmin=low, vmax=high)
        axes.set(title=name, xticks=[], yticks=[])
    figure.savefig(path, dpi=110)
