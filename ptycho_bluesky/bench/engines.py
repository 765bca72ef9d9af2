"""``bench engines``: frames per second of every engine and precision, against PyTorch as it comes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.bench.eager import eager
from ptycho_bluesky.bench.rows import Row
from ptycho_bluesky.bench.timing import Rates, measure_rates
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.inference import Engine, load_engine
from ptycho_bluesky.inference.engine import EngineName, Precision

__all__ = ["EngineBench", "run"]

logger = logging.getLogger(__name__)

CASES: tuple[tuple[EngineName, Precision], ...] = (
    ("torch", "float32"),
    ("torch", "bfloat16"),
    ("onnxruntime", "float32"),
)


@dataclass(frozen=True)
class EngineBench:
    """What is measured.

    Attributes
    ----------
    batches : tuple of int
        Batch sizes.
    rounds : int
    seconds : float
        Of one case in one round.
    num_threads : int
    """

    batches: tuple[int, ...] = (1, 2, 4, 8, 16)
    rounds: int = 5
    seconds: float = 0.2
    num_threads: int = 2


def run(
    content: bytes,
    frames: NDArray[Any],
    options: EngineBench | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[Row]:
    """Measure the engines on one model.

    Parameters
    ----------
    content : bytes
        Model file of ours.
    frames : ndarray, shape (n, H, W)
        Counts; n at least the largest batch.
    options : EngineBench, optional
    progress : callable, optional
        Called with (turns done, turns in all, case).

    Returns
    -------
    list of Row
    """
    options = options or EngineBench()
    engines = _engines(content, options)
    read, read_bf16 = (eager(content, bfloat16=half, num_threads=options.num_threads) for half in (False, True))
    cases: dict[str, tuple[Callable[[], object], int]] = {}
    for batch in options.batches:
        counts = np.ascontiguousarray(frames[:batch])
        floats = counts.astype(np.float32)
        cases[f"eager_batch{batch}"] = (lambda f=floats: read(f), batch)
        cases[f"eager_bf16_batch{batch}"] = (lambda f=floats: read_bf16(f), batch)
        for name, engine in engines.items():
            cases[f"{name}_batch{batch}"] = (lambda e=engine, c=counts: e.infer(c), batch)
    rates = measure_rates(cases, rounds=options.rounds, seconds=options.seconds, progress=progress)
    return [*_speed_rows(rates, engines, options)]


def _engines(content: bytes, options: EngineBench) -> dict[str, Engine]:
    found: dict[str, Engine] = {}
    for name, precision in CASES:
        try:
            engine = load_engine(content, name, precision=precision, num_threads=options.num_threads)
        except (InputError, ImportError) as error:
            logger.warning("%s in %s is left out: %s", name, precision, error)
            continue
        found[f"{name}_{precision}"] = engine
    return found


def _speed_rows(rates: Rates, engines: dict[str, Engine], options: EngineBench) -> list[Row]:
    rows = []
    for batch in options.batches:
        baseline = rates.median(f"eager_batch{batch}")
        for name in ("eager", "eager_bf16", *engines):
            metric = f"{name}_batch{batch}"
            rows.append(Row(metric, "frames/s", "higher", rates.median(metric), baseline, "eager"))
    return rows
