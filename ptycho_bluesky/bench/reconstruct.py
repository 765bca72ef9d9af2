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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptycho_bluesky.bench.reconstruct_scan import BenchScan
from ptycho_bluesky.bench.reconstruct_speed import sequential_row, speed_rows
from ptycho_bluesky.bench.reconstruct_star import star_rows
from ptycho_bluesky.bench.reconstruct_stream import stream_rows
from ptycho_bluesky.bench.reconstruct_truth import convergence_rows
from ptycho_bluesky.bench.reconstruct_warm import warm_rows
from ptycho_bluesky.bench.reconstruct_workers import worker_rows
from ptycho_bluesky.bench.rows import Row
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.records import Measurement

__all__ = ["Part", "ReconstructBench", "run", "satisfy_torchvision"]

logger = logging.getLogger(__name__)


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
    star_passes : int
        Of LSQML on each half of the scan; ours has the time that they took.
    warm_points : int
        Frames of the simulated scan that is begun warm and cold.
    stream_points : int
        Frames of the simulated scan that is reconstructed while they come.
    budget_s : float
        No part begins later than this: on busy cores the last ones are left out, with a warning.
    picture : path, optional
        File for the phases of a half-scan, ours and pty-chi's.
    """

    rounds: int = 3
    threads: int = 2
    error_passes: int = 8
    convergence_points: int = 1087
    convergence_px: int = 128
    convergence_passes: int = 100
    convergence_limit_s: float = 120.0
    worker_points: int = 3000
    worker_rounds: int = 2
    star_passes: int = 15
    warm_points: int = 240
    stream_points: int = 480
    budget_s: float = 420.0
    picture: Path | None = None


@dataclass(frozen=True)
class Part:
    """A finished part of the bench.

    Attributes
    ----------
    name : str
    rows : list of Row
    seconds : float
        Wall-clock that it took.
    """

    name: str
    rows: list[Row]
    seconds: float


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
    measurement: Measurement, options: ReconstructBench | None = None, progress: Callable[[str], None] | None = None
) -> Iterator[Part]:
    """Measure the engines, part by part.

    Parameters
    ----------
    measurement : Measurement
        Of the speed and error rows: a real scan, or a simulated one.
    options : ReconstructBench, optional
    progress : callable, optional
        Called with what is measured next.

    Yields
    ------
    Part
    """
    options = options or ReconstructBench()
    tell = progress or (lambda _: None)
    satisfy_torchvision()
    began = time.perf_counter()
    bench = BenchScan.of(measurement)
    for name, measure in _parts(bench, options).items():
        start = time.perf_counter()
        if start - began > options.budget_s:
            logger.warning("left out, for %.0f s are over: %s", options.budget_s, name)
            continue
        tell(name)
        rows = measure()
        yield Part(name, rows, time.perf_counter() - start)


def _parts(bench: BenchScan, options: ReconstructBench) -> dict[str, Callable[[], list[Row]]]:
    speed = (options.rounds, options.threads)
    return {
        "ePIE, batches of 100": lambda: speed_rows("epie", bench, *speed, options.error_passes),
        "rPIE, batches of 100": lambda: speed_rows("rpie", bench, *speed, options.error_passes),
        "ePIE, one by one": lambda: [sequential_row(bench, *speed)],
        "conjugate gradients by two workers": lambda: worker_rows(options.worker_points, options.worker_rounds),
        "time to the truth": lambda: convergence_rows(
            options.convergence_points, options.convergence_px, options.convergence_passes,
            options.convergence_limit_s, options.threads,
        ),
        "while the scan runs": lambda: stream_rows(options.stream_points),
        "warm start": lambda: warm_rows(options.warm_points),
        "sharpness of two half-scans": lambda: star_rows(
            bench, options.star_passes, options.threads, options.picture
        ),
    }  # fmt: skip
