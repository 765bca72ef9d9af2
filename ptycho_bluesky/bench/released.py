"""The logic of the released streaming consumer, written anew for comparison: how it stitches.

Every predicted patch is interpolated at its own sub-pixel position on the grid of the canvas and averaged as a number.
Written from its description, with the quicker of what SciPy offers (linear interpolation, on the pixels of the patch
alone, not on the whole canvas).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RegularGridInterpolator

__all__ = ["NumpyStitcher", "ReleasedStitcher"]


class ReleasedStitcher:
    """Average of interpolated patches on a canvas of fixed size.

    Parameters
    ----------
    shape : tuple of int
        (rows, cols) of the canvas.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self.sum = np.zeros(shape)
        self.count = np.zeros(shape)

    def add(self, phase_rad: NDArray[np.float32], corner_px: NDArray[np.float64]) -> None:
        """Add patches (n, h, w) whose pixel ``[0, 0]`` lies at the canvas positions (n, 2)."""
        h, w = phase_rad.shape[1:]
        own = np.arange(h, dtype=np.float64), np.arange(w, dtype=np.float64)
        for patch, corner in zip(phase_rad, corner_px, strict=True):
            first = np.ceil(corner).astype(int)
            rows = np.arange(first[0], first[0] + h - 1)
            cols = np.arange(first[1], first[1] + w - 1)
            points = np.stack(np.meshgrid(rows - corner[0], cols - corner[1], indexing="ij"), axis=-1)
            here = np.s_[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
            self.sum[here] += RegularGridInterpolator(own, patch, method="linear")(points)
            self.count[here] += 1

    def image(self) -> NDArray[np.float64]:
        """Mean phase in rad, NaN where no patch lies."""
        return np.where(self.count > 0, self.sum / np.maximum(self.count, 1), np.nan)


class NumpyStitcher:
    """What the compiled mosaic does, in whole-array NumPy: sub-pixel shift, weights, e^{iφ}, sums for the variance.

    Parameters
    ----------
    shape : tuple of int
        (rows, cols) of the canvas.
    weight : ndarray of float32, shape (h, w)
    """

    def __init__(self, shape: tuple[int, int], weight: NDArray[np.float32]) -> None:
        self.sums = np.zeros((3, *shape), dtype=np.float32)
        self.coverage = np.zeros(shape, dtype=np.int32)
        self.weight = weight

    def add(self, phase_rad: NDArray[np.float32], corner_px: NDArray[np.float64]) -> None:
        """Add patches (n, h, w) whose pixel ``[0, 0]`` lies at the canvas positions (n, 2)."""
        h, w = self.weight.shape
        padded = np.zeros((3, h + 2, w + 2), dtype=np.float32)
        for patch, corner in zip(phase_rad, corner_px, strict=True):
            row, col = np.floor(corner).astype(int).tolist()
            down, right = (np.float32(c) for c in corner - (row, col))
            padded[:, 1:-1, 1:-1] = self.weight * np.cos(patch), self.weight * np.sin(patch), self.weight
            across = (1 - right) * padded[:, :, 1:] + right * padded[:, :, :-1]
            moved = (1 - down) * across[:, 1:] + down * across[:, :-1]
            self.sums[:, row : row + h + 1, col : col + w + 1] += moved
            self.coverage[row : row + h + 1, col : col + w + 1] += moved[2] > 1e-3
