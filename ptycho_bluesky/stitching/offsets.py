"""Constant phase offsets between a patch and the image under it, and the drift that taking them out causes.

A frame's intensities say nothing of a constant phase, so a network's patches can differ from their neighbours' by one.
Taking each patch's offset against what is already stitched makes neighbours agree. Its price is a walk: each offset is
found against patches whose own were found alike, so their errors add up along the scan, where the network's own level,
which it learned from labels of circular mean 0, would stay.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["MIN_OVERLAP", "OffsetDrift", "OffsetRecord", "overlap_phasor"]

MIN_OVERLAP = 0.3
"""Part of a patch's weight that must lie on what is stitched already, for an offset to be found."""
_TINY = np.float32(1e-6)


@numba.njit(cache=True, nogil=True)
def _between(plane, row, col, down, right):  # pragma: no cover - compiled
    """Value of a plane between four of its pixels."""
    top = (1 - right) * plane[row, col] + right * plane[row, col + 1]
    bottom = (1 - right) * plane[row + 1, col] + right * plane[row + 1, col + 1]
    return (1 - down) * top + down * bottom


@numba.njit(cache=True, nogil=True)
def overlap_phasor(sums, phase, weight, corner_row, corner_col):  # pragma: no cover - compiled
    """Compare one patch with the canvas under it.

    Parameters
    ----------
    sums : ndarray of float32, shape (3, rows, cols)
        Sums of w·cos φ, w·sin φ and w, as in `ptycho_bluesky.stitching.kernels.add_patches`.
    phase, weight : ndarray of float32, shape (h, w)
    corner_row, corner_col : float
        Canvas position of the patch's pixel ``[0, 0]``.

    Returns
    -------
    tuple of float
        Real and imaginary part of Σ w·(canvas mean of e^{iφ})·e^{−iφ}, and Σ w, over covered pixels.
    """
    row, col = int(np.floor(corner_row)), int(np.floor(corner_col))
    down, right = corner_row - row, corner_col - col
    real = imag = shared = 0.0
    for r in range(phase.shape[0]):
        for c in range(phase.shape[1]):
            w = weight[r, c]
            if w > 0:
                total = _between(sums[2], row + r, col + c, down, right)
                if total > _TINY:
                    cosine, sine = np.cos(phase[r, c]), np.sin(phase[r, c])
                    x = _between(sums[0], row + r, col + c, down, right) / total
                    y = _between(sums[1], row + r, col + c, down, right) / total
                    real += w * (x * cosine + y * sine)
                    imag += w * (y * cosine - x * sine)
                    shared += w
    return real, imag, shared


@dataclass(frozen=True)
class OffsetDrift:
    """How far the solved offsets have led the image away from the network's own level.

    Attributes
    ----------
    patches : int
    rms_rad : float
        Of the offsets.
    slope_rad_per_um : tuple of float
        (y, x) of the plane fitted to the offsets over the positions: the ramp that solving has put into the image.
    walk_rad : float
        Difference of the plane between the ends of the scan, where it is largest.
    """

    patches: int
    rms_rad: float
    slope_rad_per_um: tuple[float, float]
    walk_rad: float


@dataclass
class OffsetRecord:
    """Offsets of the patches so far, as sums: its size does not grow with the scan."""

    patches: int = 0
    _square: float = 0.0
    _normal: NDArray[np.float64] = field(default_factory=lambda: np.zeros((3, 3)))
    _right: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))
    _low: NDArray[np.float64] = field(default_factory=lambda: np.full(2, np.inf))
    _high: NDArray[np.float64] = field(default_factory=lambda: np.full(2, -np.inf))

    def add(self, offset_rad: NDArray[np.float64], position_m: NDArray[np.float64]) -> None:
        """Take offsets (n,) of patches at positions (n, 2), in m."""
        if not len(offset_rad):
            return
        at_um = position_m * 1e6
        columns = np.column_stack([np.ones(len(at_um)), at_um])
        self.patches += len(offset_rad)
        self._square += float(np.sum(offset_rad**2))
        self._normal += columns.T @ columns
        self._right += columns.T @ offset_rad
        self._low, self._high = np.minimum(self._low, at_um.min(axis=0)), np.maximum(self._high, at_um.max(axis=0))

    def drift(self) -> OffsetDrift:
        """What the offsets amount to."""
        if not self.patches:
            return OffsetDrift(0, 0.0, (0.0, 0.0), 0.0)
        _, *slope = np.linalg.lstsq(self._normal, self._right, rcond=1e-12)[0]
        walk = float(np.abs(slope) @ (self._high - self._low))
        rms = float(np.sqrt(self._square / self.patches))
        return OffsetDrift(self.patches, rms, (float(slope[0]), float(slope[1])), walk)
