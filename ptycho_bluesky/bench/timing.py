"""Comparing speeds on a machine that is not quiet: every case in every round, ratios within a round."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Rates", "measure_rates"]

SETTLE_S = 0.02
"""Pause before a case: the worker threads of the one before spin for some milliseconds after their last task."""


@dataclass(frozen=True)
class Rates:
    """Rates of several cases, measured in turns.

    Attributes
    ----------
    rounds : dict of str to ndarray of float64, shape (num_rounds,)
        Units per second of each case in each round.
    """

    rounds: Mapping[str, NDArray[np.float64]]

    def median(self, name: str) -> float:
        """Units per second, the median of the rounds."""
        return float(np.median(self.rounds[name]))

    def ratio(self, name: str, baseline: str) -> float:
        """How many times faster than a baseline: the median of the ratios within a round.

        Neighbours in time share the load of the machine, so their ratio is steadier than either rate.
        """
        return float(np.median(self.rounds[name] / self.rounds[baseline]))


def measure_rates(
    cases: Mapping[str, tuple[Callable[[], object], int]],
    *,
    rounds: int = 5,
    seconds: float = 0.25,
    progress: Callable[[int, int, str], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Rates:
    """Run every case for a moment, in turns.

    Parameters
    ----------
    cases : dict of str to (callable, int)
        What is called, and how many units (frames) one call handles. Each is called once before the first round.
    rounds : int
    seconds : float
        Time of a case in a round; at least two calls are made.
    progress : callable, optional
        Called with (turns done, turns in all, case).
    clock : callable
        Gives seconds.

    Returns
    -------
    Rates
    """
    for call, _ in cases.values():
        call()
    found = {name: np.empty(rounds) for name in cases}
    for turn in range(rounds):
        for number, (name, (call, units)) in enumerate(cases.items()):
            time.sleep(SETTLE_S)
            found[name][turn] = _rate(call, units, seconds, clock)
            if progress is not None:
                progress(turn * len(cases) + number + 1, rounds * len(cases), name)
    return Rates(found)


def _rate(call: Callable[[], object], units: int, seconds: float, clock: Callable[[], float]) -> float:
    call()  # brings code and weights back into the caches
    began = clock()
    calls = 0
    while calls < 2 or clock() - began < seconds:
        call()
        calls += 1
    return calls * units / (clock() - began)
