"""The deviance of Poisson counts, and what it is on average when the prediction is right.

With counts n and expected counts λ the deviance is D = 2·Σ(n·ln(n/λ) − n + λ), twice the log-likelihood ratio against a
perfect fit (McCullagh & Nelder, Generalized Linear Models, 2nd ed., §2.3). For large λ each pixel contributes 1 on
average, as in χ²; in the dark it contributes less, because most counts are 0. The mean contribution d(λ) is summed here
over the Poisson distribution, so that a deviance can be compared with what shot noise alone makes of it, at any light.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln, xlogy

__all__ = ["expected_deviance", "expected_deviance_table", "poisson_deviance"]

TABLE_STEP = 1.0 / 64.0
"""Step of the table in √λ: d changes by less than 0.02 from entry to entry."""
TABLE_ROOT = 12.0
"""Last √λ of the table; beyond it d = 1 + 1/(6λ) is 1 to 0.1 %."""


def poisson_deviance(counts: ArrayLike, expected: ArrayLike) -> NDArray[np.float64]:
    """Contribution 2·(n·ln(n/λ) − n + λ) of each pixel; ``expected`` must be positive."""
    n, mean = np.asarray(counts, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    return 2.0 * (xlogy(n, n) - n * np.log(mean) - n + mean)


@cache
def expected_deviance_table() -> NDArray[np.float32]:
    """Mean contribution of a pixel at √λ = 0, `TABLE_STEP`, …, `TABLE_ROOT`."""
    mean = (np.arange(round(TABLE_ROOT / TABLE_STEP) + 1) * TABLE_STEP) ** 2
    n = np.arange(400, dtype=np.float64)
    with np.errstate(divide="ignore"):
        log_mean = np.log(mean[1:, None])
    probability = np.exp(n * log_mean - mean[1:, None] - gammaln(n + 1))
    # the mean of n − λ is 0
    table = 2.0 * (probability * (xlogy(n, n) - n * log_mean)).sum(axis=1)
    return np.concatenate([[0.0], table]).astype(np.float32)


def expected_deviance(expected: NDArray[Any]) -> NDArray[np.float32]:
    """Mean contribution of pixels with expected counts λ ≥ 0, of the same shape; from the table, to 1 %."""
    table = expected_deviance_table()
    index = np.sqrt(np.asarray(expected, dtype=np.float32))
    index *= np.float32(1.0 / TABLE_STEP)
    np.minimum(index, np.float32(len(table) - 1), out=index)
    return table.take((index + np.float32(0.5)).astype(np.int16))
