"""Where, and how brightly, a scan lit the sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.ndimage
import scipy.signal
from numpy.typing import ArrayLike, NDArray

from ptycho_bluesky.geometry import ObjectFrame

__all__ = ["illumination", "sample_at"]


def illumination(probe: NDArray[Any], position_m: ArrayLike, frame: ObjectFrame) -> NDArray[np.float32]:
    """Sum over a scan's positions of the probe's intensity.

    Parameters
    ----------
    probe : ndarray of complex, shape (N, N) or (modes, N, N)
        Centre at ``[N//2, N//2]``, at the frame's pixel size.
    position_m : array-like, shape (n, 2)
        (y, x); those that are not finite or lie outside the frame are left out.
    frame : ObjectFrame
        Canvas.

    Returns
    -------
    ndarray of float32, shape ``frame.shape``

    Notes
    -----
    Positions are rounded to pixels, which is enough to tell the lit area from the rest.
    """
    position_m = np.asarray(position_m, dtype=np.float64).reshape(-1, 2)
    index = np.rint(frame.to_px(position_m[np.isfinite(position_m).all(axis=1)])).astype(np.int64)
    index = index[((index >= 0) & (index < frame.shape)).all(axis=1)]
    pixel = index[:, 0] * frame.shape[1] + index[:, 1]
    hits = np.bincount(pixel, minlength=frame.shape[0] * frame.shape[1]).reshape(frame.shape).astype(np.float64)
    intensity = (np.abs(np.asarray(probe).reshape(-1, *probe.shape[-2:])) ** 2).sum(axis=0)
    full = scipy.signal.fftconvolve(hits, intensity)
    rows, cols = (size // 2 for size in intensity.shape)
    lit = full[rows : rows + frame.shape[0], cols : cols + frame.shape[1]]
    return np.maximum(lit, 0.0).astype(np.float32)


def sample_at(values: NDArray[Any], source: ObjectFrame, target: ObjectFrame) -> NDArray[Any]:
    """Values of one canvas at the pixels of another, by cubic splines; complex values part by part.

    Parameters
    ----------
    values : ndarray, shape ``source.shape``
        Give a transmission as complex values, never as a wrapped phase.
    source, target : ObjectFrame

    Returns
    -------
    ndarray, shape ``target.shape``
        Beyond the source the nearest of its values.
    """
    rows, cols = (np.arange(size, dtype=np.float64) for size in target.shape)
    corner = source.to_px(np.asarray(target.origin_m)[None])[0]
    ratio = target.pixel_size_m / source.pixel_size_m
    grid = np.stack(np.meshgrid(corner[0] + rows * ratio, corner[1] + cols * ratio, indexing="ij"))
    on_grid = np.abs(grid - np.rint(grid)).max() < 1e-6
    order = 0 if on_grid else 3

    def pick(part: NDArray[Any]) -> NDArray[Any]:
        return scipy.ndimage.map_coordinates(part, grid, order=order, mode="nearest")

    if np.iscomplexobj(values):
        return pick(np.real(values).copy()) + 1j * pick(np.imag(values).copy())
    return pick(values)
