"""Frames a second of an epoch, ours and pty-chi's, and the errors after the same epochs."""

from __future__ import annotations

import numpy as np

from ptycho_bluesky.bench.reconstruct_scan import BATCH, BenchScan, seconds
from ptycho_bluesky.bench.rows import Row
from ptycho_bluesky.reconstruction import EngineOptions, EpieOptions, PtychiOptions, RpieOptions
from ptycho_bluesky.reconstruction.prepare import torch_threads

__all__ = ["error_row", "sequential_row", "speed_rows"]

NAMES = {"epie": "pty-chi ePIE", "rpie": "pty-chi rPIE"}
OURS = {"epie": EpieOptions, "rpie": RpieOptions}
FASTER = 6.0
"""Times pty-chi's speed that is asked for."""
SEQUENTIAL_FRAMES = 100


def speed_rows(name: str, bench: BenchScan, rounds: int, threads: int, error_passes: int) -> list[Row]:
    """Speed and final error of ``epie`` or ``rpie`` in batches of 100.

    Parameters
    ----------
    name : str
    bench : BenchScan
    rounds : int
        Of the speed, ours and pty-chi's in turns.
    threads : int
    error_passes : int
        Passes of both from the same start, after which the errors are compared.

    Returns
    -------
    list of Row
    """
    ours = OURS[name](batch_size=BATCH, threads=threads, iterations=error_passes)
    theirs = PtychiOptions.of(algorithm=name, batch_size=BATCH)
    mine, other = _race(bench, ours, theirs, rounds, threads)
    target = FASTER * other if name == "epie" else None
    rows = [Row(f"{name}_batch{BATCH}", "frames/s", "higher", mine, other, NAMES[name], target)]
    with torch_threads(1):
        engine = bench.ours(ours)
        for iteration in range(error_passes):
            engine.run_pass(iteration)
    with torch_threads(threads):
        second = bench.theirs(theirs)
        for _ in range(error_passes):
            second.run_epoch()
    second.fetch()
    first = bench.error(bench.ours(ours))
    return [*rows, error_row(name, error_passes, bench.error(engine), bench.error(second), first)]


def error_row(name: str, passes: int, ours: float, theirs: float, first: float) -> Row:
    """Errors after the same passes; one of pty-chi's above that of the start is no baseline, and beaten by anything."""
    metric, baseline = f"{name}_batch{BATCH}_error", f"{NAMES[name]}, {passes} passes"
    if not theirs <= first:
        return Row(metric, "1", "lower", ours, None, f"{baseline}: diverged to {theirs:.3g}, from {first:.3g}")
    return Row(metric, "1", "lower", ours, theirs, baseline, theirs)


def sequential_row(bench: BenchScan, rounds: int, threads: int) -> Row:
    """Speed of ePIE frame by frame, in the strict order of the sequential algorithm."""
    part = bench.part(np.arange(min(SEQUENTIAL_FRAMES, len(bench.scan))))
    ours = EpieOptions(batch_size=1, threads=1, probe_start=0)
    theirs = PtychiOptions(algorithm="epie", batch_size=1, probe_start=0)
    mine, other = _race(part, ours, theirs, rounds, threads)
    return Row("epie_sequential", "frames/s", "higher", mine, other, "pty-chi ePIE, batches of 1", FASTER * other)


def _race(
    bench: BenchScan, ours: EngineOptions, theirs: PtychiOptions, rounds: int, threads: int
) -> tuple[float, float]:
    """Frames/s of both, medians over the rounds; pty-chi with one thread and with all, the faster of the two."""
    frames = len(bench.scan)
    mine, other = bench.ours(ours), bench.theirs(theirs)
    passes = iter(range(10**6))
    with torch_threads(1):
        mine.run_pass(next(passes))
    other.run_epoch()
    found: dict[str, list[float]] = {"ours": [], "one": [], "all": []}
    for _ in range(rounds):
        with torch_threads(1):
            found["ours"].append(frames / seconds(lambda: mine.run_pass(next(passes))))
            found["one"].append(frames / seconds(other.run_epoch))
        with torch_threads(threads):
            found["all"].append(frames / seconds(other.run_epoch))
    return float(np.median(found["ours"])), max(float(np.median(found[name])) for name in ("one", "all"))
