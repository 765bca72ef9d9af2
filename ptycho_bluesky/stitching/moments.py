"""Sum and centre of mass of frames: what a scan shows before any network reads it."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["frame_moments"]


@numba.njit(cache=True, nogil=True, fastmath=True)
def _row_moments(row):  # pragma: no cover - compiled
    """Sum of a row, and sum of its elements times their column; the compiler may reorder these sums."""
    line, first = np.float32(0), np.float32(0)
    for c in range(row.shape[0]):
        line += row[c]
        first += row[c] * np.float32(c)
    return line, first


@numba.njit(cache=True, nogil=True)
def _moments(image, out):  # pragma: no cover - compiled
    n, rows, cols = image.shape
    for k in range(n):
        total, by_row, by_col = 0.0, 0.0, 0.0
        for r in range(rows):
            line, first = _row_moments(image[k, r])
            total += line
            by_row += line * (r - rows // 2)
            by_col += first - np.float32(cols // 2) * line
        out[k, 0] = total
        out[k, 1] = by_row / total if total > 0 else 0.0
        out[k, 2] = by_col / total if total > 0 else 0.0


def frame_moments(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sum of counts and centre of mass of canonical frames.

    Parameters
    ----------
    image : ndarray of float32, shape (n, N, N)
        Counts.

    Returns
    -------
    ndarray of float32, shape (n, 3)
        Sum in counts; centre of mass (y, x) relative to ``[N//2, N//2]`` in detector pixels, 0 for an empty frame.
    """
    out = np.empty((len(image), 3), dtype=np.float32)
    _moments(np.ascontiguousarray(image, dtype=np.float32), out)
    return out
