"""``bench reconstruct``: the engines beside pty-chi's, on the same frames, interleaved in one run.

pty-chi imports torchvision, for a blur that these engines never call. Where torchvision is not installed a stand-in
takes its place, in the process of this bench only (`satisfy_torchvision`), and the report says so.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.bench.reconstruct_scan import BenchScan, seconds
from ptycho_bluesky.bench.reconstruct_star import star_row
from ptycho_bluesky.bench.reconstruct_workers import worker_rows
from ptycho_bluesky.bench.rows import Row
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.gauges import remove_gauge
from ptycho_bluesky.geometry import ObjectFrame
from ptycho_bluesky.metrics import pearson
from ptycho_bluesky.reconstruction import EngineOptions, EpieOptions, PtychiOptions, RpieOptions, reconstruct
from ptycho_bluesky.reconstruction.gauge import LIT_FRACTION, fix_gauge, illumination, lit_median
from ptycho_bluesky.reconstruction.prepare import torch_threads
from ptycho_bluesky.records import Measurement
from ptycho_bluesky.simulation import Experiment, ZonePlate
from ptycho_bluesky.simulation.scans import spiral_scan

__all__ = ["ReconstructBench", "run", "satisfy_torchvision"]

logger = logging.getLogger(__name__)

BATCH = 100
SEQUENTIAL_FRAMES = 100
WRONG_DEFOCUS_M = 0.13e-3
"""Of the starting probe; the true one is 0.19 mm."""
ENOUGH = 0.95
"""Phase correlation that counts as reconstructed."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class ReconstructBench:
    """What is measured.

    Attributes
    ----------
    rounds : int
        Of the speed measurements.
    threads : int
    error_passes : int
        Passes after which the errors of both are compared.
    convergence_points : int
        Frames of the simulated scan.
    convergence_px : int
        Their side.
    convergence_passes : int
        Most passes of pty-chi's LSQML.
    convergence_limit_s : float
        Time after which LSQML is given up.
    worker_points, worker_rounds : int
        Frames of the scan that two workers share, and how often it is timed.
    budget_s : float
        No part begins later than this: on busy cores the last ones are left out, with a warning.
    """

    rounds: int = 3
    threads: int = 2
    error_passes: int = 8
    convergence_points: int = 1087
    convergence_px: int = 64
    convergence_passes: int = 100
    convergence_limit_s: float = 120.0
    worker_points: int = 3000
    worker_rounds: int = 2
    budget_s: float = 420.0


def satisfy_torchvision() -> bool:
    """Put a stand-in where torchvision is not installed; returns whether it did.

    The stand-in's one class refuses to be used, so that nothing is measured with something that is not there.
    """
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is not None:
        return False

    class GaussianBlur:
        """Stands for the class of this name and cannot be made."""

        def __init__(self, *_: Any, **__: Any) -> None:
            raise InputError("a blur of torchvision", "a stand-in holds its place", "pip install torchvision")

    package, transforms = types.ModuleType("torchvision"), types.ModuleType("torchvision.transforms")
    vars(transforms)["GaussianBlur"] = GaussianBlur
    vars(package)["transforms"] = transforms
    sys.modules.update({"torchvision": package, "torchvision.transforms": transforms})
    return True


def run(
    measurement: Measurement, options: ReconstructBench | None = None, progress: Progress | None = None
) -> list[Row]:
    """Measure the engines.

    Parameters
    ----------
    measurement : Measurement
        Of the speed and error rows: a real scan, or a simulated one.
    options : ReconstructBench, optional
    progress : callable, optional
        Called with what is measured next.

    Returns
    -------
    list of Row
    """
    options = options or ReconstructBench()
    tell = progress or (lambda _: None)
    satisfy_torchvision()
    bench = BenchScan.of(measurement)
    sections: tuple[tuple[str, Callable[[], list[Row]]], ...] = (
        ("ePIE, batches of 100", lambda: _speed_rows("epie", bench, options, target=6.0)),
        ("rPIE, batches of 100", lambda: _speed_rows("rpie", bench, options, target=None)),
        ("ePIE, one by one", lambda: [_sequential_row(bench, options)]),
        ("conjugate gradients by two workers", lambda: worker_rows(options.worker_points, options.worker_rounds)),
        ("time to the truth", lambda: _convergence_rows(options)),
        ("sharpness of two half-scans", lambda: [star_row(bench, options.threads)]),
    )
    began, rows = time.perf_counter(), []
    for name, measure in sections:
        if time.perf_counter() - began > options.budget_s:
            logger.warning("left out, for %.0f s are over: %s", options.budget_s, name)
            continue
        tell(name)
        rows += measure()
    return rows


def _race(
    bench: BenchScan, ours: EngineOptions, theirs: PtychiOptions, options: ReconstructBench
) -> tuple[float, float]:
    """Frames/s of both, medians over the rounds; pty-chi with one thread and with all, the faster of the two."""
    frames = len(bench.scan)
    mine, other = bench.ours(ours), bench.theirs(theirs)
    passes = iter(range(10**6))
    with torch_threads(1):
        mine.run_pass(next(passes))
    other.run_epoch()
    found: dict[str, list[float]] = {"ours": [], "one": [], "all": []}
    for _ in range(options.rounds):
        with torch_threads(1):
            found["ours"].append(frames / seconds(lambda: mine.run_pass(next(passes))))
            found["one"].append(frames / seconds(other.run_epoch))
        with torch_threads(options.threads):
            found["all"].append(frames / seconds(other.run_epoch))
    return float(np.median(found["ours"])), max(float(np.median(found[name])) for name in ("one", "all"))


def _speed_rows(name: str, bench: BenchScan, options: ReconstructBench, target: float | None) -> list[Row]:
    kind = {"epie": EpieOptions, "rpie": RpieOptions}[name]
    ours = kind(batch_size=BATCH, threads=options.threads, iterations=options.error_passes)
    theirs = PtychiOptions.of(algorithm=name, batch_size=BATCH)
    mine, other = _race(bench, ours, theirs, options)
    baseline = f"pty-chi {'ePIE' if name == 'epie' else 'rPIE'}"
    rows = [
        Row(f"{name}_batch{BATCH}", "frames/s", "higher", mine, other, baseline, target and target * other),
    ]
    with torch_threads(1):
        engine = bench.ours(ours)
        for iteration in range(options.error_passes):
            engine.run_pass(iteration)
    with torch_threads(options.threads):
        second = bench.theirs(theirs)
        for _ in range(options.error_passes):
            second.run_epoch()
    second.fetch()
    errors = bench.error(engine), bench.error(second)
    rows.append(Row(f"{name}_batch{BATCH}_error", "1", "lower", errors[0], errors[1], baseline, errors[1]))
    return rows


def _sequential_row(bench: BenchScan, options: ReconstructBench) -> Row:
    part = bench.part(np.arange(min(SEQUENTIAL_FRAMES, len(bench.scan))))
    ours = EpieOptions(batch_size=1, threads=1, probe_start=0)
    mine, other = _race(part, ours, PtychiOptions(algorithm="epie", batch_size=1, probe_start=0), options)
    return Row("epie_sequential", "frames/s", "higher", mine, other, "pty-chi ePIE, batches of 1", 6.0 * other)


def _convergence_rows(options: ReconstructBench) -> list[Row]:
    """Wall-clock of the whole default reconstruction against pty-chi's LSQML, from the same wrong probe."""
    measurement, experiment = spiral_scan(options.convergence_points, options.convergence_px)
    plate = replace(ZonePlate(), defocus_m=WRONG_DEFOCUS_M)
    wrong = replace(measurement, metadata={"zone_plate": plate.as_dict()})
    with torch_threads(1):
        began = time.perf_counter()
        result = reconstruct(wrong)
        ours_s = time.perf_counter() - began
    likeness = phase_likeness(result.object, result.frame, measurement, experiment)
    bench = BenchScan.of(wrong)
    engine = bench.theirs(PtychiOptions(algorithm="lsqml", batch_size=BATCH))
    spent_s, passes, theirs = 0.0, 0, 0.0
    with torch_threads(options.threads):
        while theirs < ENOUGH and passes < options.convergence_passes and spent_s < options.convergence_limit_s:
            spent_s, passes = spent_s + seconds(engine.run_epoch), passes + 1
            engine.fetch()
            obj, _, placed = fix_gauge(engine.obj.numpy(), engine.probe.numpy(), bench.frame, measurement.position_m)
            theirs = phase_likeness(obj, placed, measurement, experiment)
    name = f"pty-chi LSQML, {passes} passes, phase correlation {theirs:.3f}"
    return [
        Row("default_engine_phase_correlation", "1", "higher", likeness, theirs, name, ENOUGH),
        Row("default_engine_time_to_error", "s", "lower", ours_s, spent_s, name, spent_s),
    ]


def phase_likeness(obj: NDArray[Any], frame: ObjectFrame, measurement: Measurement, experiment: Experiment) -> float:
    """Pearson correlation of the phase with the truth's, gauges removed, in the lit area."""
    truth, own = experiment.truth()
    first = np.rint(own.to_px(np.array(frame.origin_m))).astype(int)
    window = truth[first[0] : first[0] + frame.shape[0], first[1] : first[1] + frame.shape[1]]
    light = illumination(experiment.probe[None], frame.to_px(measurement.position_m), frame.shape)
    lit = light > LIT_FRACTION * lit_median(light)
    aligned = remove_gauge(obj, window, lit)
    return pearson(np.angle(aligned * np.exp(-1j * np.angle(window[lit].mean()))),
                   np.angle(window * np.exp(-1j * np.angle(window[lit].mean()))), lit)  # fmt: skip
