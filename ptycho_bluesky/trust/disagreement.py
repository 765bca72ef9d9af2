"""How far overlapping patches of a mosaic contradict each other."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["disagreement"]

MIN_COVERAGE = 3
LIT_FRACTION = 0.1
MIN_PIXELS = 100


def disagreement(
    phase_rad: NDArray[Any], variance: NDArray[Any], coverage: NDArray[Any], weight: NDArray[Any]
) -> float:
    """Part of the variance of all patches' phases that lies between patches of the same place, 0 to 1.

    Parameters
    ----------
    phase_rad, variance : ndarray, shape (rows, cols)
        Circular mean and circular variance (1 − |mean of exp(iφ)|) of the patches over each pixel.
    coverage, weight : ndarray, shape (rows, cols)
        Number of patches and sum of their weights.

    Returns
    -------
    float
        Over pixels of ≥ 3 frames and ≥ 10 % of the median weight. Near 0 when the patches agree and the sample varies;
        near 1 when what they show has nothing to do with where they lie. NaN where too few pixels overlap.
    """
    covered = coverage >= MIN_COVERAGE
    if np.count_nonzero(covered) < MIN_PIXELS:
        return float("nan")
    chosen = covered & (weight >= LIT_FRACTION * np.median(weight[covered]))
    resultant = 1.0 - np.clip(variance[chosen].astype(np.float64), 0.0, 1.0)
    within = 1.0 - resultant.mean()
    total = 1.0 - np.abs(np.mean(resultant * np.exp(1j * phase_rad[chosen].astype(np.float64))))
    return float(within / total) if total > 1e-9 else float("nan")
