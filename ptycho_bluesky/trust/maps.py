"""Figures of single frames, spread over the canvas."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from ptycho_bluesky.geometry import ObjectFrame

__all__ = ["map_values"]

REACH_SIGMA = 2.0
"""Distance from the nearest frame, in widths of the blur, up to which a map has values."""


def map_values(
    values: NDArray[Any], position_m: NDArray[np.float64], frame: ObjectFrame, sigma_px: float
) -> NDArray[np.float32]:
    """Average of the values of the frames around each pixel.

    Parameters
    ----------
    values : ndarray, shape (n,)
        NaN for a frame without.
    position_m : ndarray of float64, shape (n, 2)
    frame : ObjectFrame
        The canvas.
    sigma_px : float
        Standard deviation of the Gaussian by which frames count, in pixels of the canvas.

    Returns
    -------
    ndarray of float32, shape (rows, cols)
        0 where no frame is near.
    """
    sums, counts = np.zeros(frame.shape), np.zeros(frame.shape)
    known = np.isfinite(values) & np.isfinite(position_m).all(axis=1)
    at = np.rint(frame.to_px(position_m[known])).astype(np.int64)
    inside = ((at >= 0) & (at < np.array(frame.shape))).all(axis=1)
    row, col = at[inside].T
    np.add.at(sums, (row, col), np.asarray(values, dtype=np.float64)[known][inside])
    np.add.at(counts, (row, col), 1.0)
    sums, counts = (gaussian_filter(part, sigma_px, mode="constant", truncate=3.0) for part in (sums, counts))
    # what a single frame weighs at the farthest distance that counts
    least = np.exp(-0.5 * REACH_SIGMA**2) / (2.0 * np.pi * sigma_px**2)
    near = counts >= least
    return np.where(near, sums / np.where(near, counts, 1.0), 0.0).astype(np.float32)
