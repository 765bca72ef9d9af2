"""The far field: frames from a probe, an object and positions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.fourier import fft2, fftshift, fourier_shift, ifft2, shift_ramp

__all__ = ["diffract", "extract_patches", "fourier_shift", "iterate_diffraction"]

CHUNK_BYTES = 32 << 20


def extract_patches(
    obj: NDArray[Any], corner_px: NDArray[np.int64], size_px: int, background: complex = 1.0
) -> NDArray[Any]:
    """Cut square patches out of an object; what lies beyond its edges is background.

    Parameters
    ----------
    obj : ndarray, shape (rows, cols)
    corner_px : ndarray of int64, shape (n, 2)
        Index of each patch's pixel ``[0, 0]``; may lie outside the object.
    size_px : int
        Side of a patch.
    background : complex
        Value outside the object.

    Returns
    -------
    ndarray, shape (n, size_px, size_px)
        A copy, of the dtype of ``obj``.
    """
    shape = np.asarray(obj.shape)
    if len(corner_px) and ((corner_px < 0).any() or (corner_px + size_px > shape).any()):
        obj = np.pad(obj, size_px, constant_values=background)
        # A patch wholly outside sees background wherever it is: the nearest one in the padded array does as well.
        corner_px = np.clip(corner_px + size_px, 0, shape + size_px)
    windows = np.lib.stride_tricks.sliding_window_view(obj, (size_px, size_px))
    return windows[corner_px[:, 0], corner_px[:, 1]]


def iterate_diffraction(
    probe: NDArray[Any], obj: NDArray[Any], position_px: ArrayLike, background: complex = 1.0
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """As `diffract`, a chunk at a time.

    Yields
    ------
    slice
        Rows of ``position_px``.
    ndarray of float32, shape (chunk, N, N)
        Their frames.
    """
    position = np.asarray(position_px, dtype=np.float64).reshape(-1, 2)
    if not np.isfinite(position).all():
        raise InputError(
            f"{np.count_nonzero(~np.isfinite(position))} positions are not finite", "a frame has a position"
        )
    modes = np.asarray(probe, dtype=np.complex64)
    modes = modes.reshape(-1, *modes.shape[-2:])
    size = modes.shape[-1]
    if modes.shape[-2] != size:
        raise InputError(f"probe of shape {probe.shape}", "a probe is square")
    obj = np.asarray(obj, dtype=np.complex64)
    whole = np.rint(position)
    corner = whole.astype(np.int64) - size // 2
    part = position - whole
    spectrum = fft2(modes)
    chunk = max(1, CHUNK_BYTES // (8 * size * size))
    for start in range(0, len(position), chunk):
        rows = slice(start, min(start + chunk, len(position)))
        ramp = shift_ramp(part[rows], (size, size), np.complex64)
        patch = extract_patches(obj, corner[rows], size, background)
        intensity = np.zeros(patch.shape, dtype=np.float32)
        for mode in spectrum:
            wave = ifft2(ramp * mode, overwrite=True)
            wave *= patch
            wave = fft2(wave, unitary=True, overwrite=True)
            intensity += np.square(np.real(wave)) + np.square(np.imag(wave))
        yield rows, fftshift(intensity)


def diffract(
    probe: NDArray[Any],
    obj: NDArray[Any],
    position_px: ArrayLike,
    *,
    background: complex = 1.0,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float32]:
    """Far-field intensity |FFT(P·O)|² at each position.

    Parameters
    ----------
    probe : ndarray of complex, shape (N, N) or (modes, N, N)
        In sqrt(photons), centre at ``[N//2, N//2]``; modes add in intensity.
    obj : ndarray of complex, shape (rows, cols)
        Transmission; beyond its edges it is ``background``.
    position_px : array-like of float, shape (n, 2)
        Position (row, col) of the probe's centre in indices of ``obj``. The whole part selects the patch, the probe is
        Fourier-shifted by the rest.
    background : complex
        Transmission outside the object.
    progress : callable, optional
        Called with (frames done, frames in all).

    Returns
    -------
    ndarray of float32, shape (n, N, N)
        Photons a pixel, zero frequency at ``[N//2, N//2]``; unitary FFT, so photons are conserved where |O| = 1.

    Raises
    ------
    InputError
        A position is not finite, or the probe is not square.
    """
    position = np.asarray(position_px, dtype=np.float64).reshape(-1, 2)
    size = np.shape(probe)[-1]
    intensity = np.empty((len(position), size, size), dtype=np.float32)
    for rows, frames in iterate_diffraction(probe, obj, position, background):
        intensity[rows] = frames
        if progress is not None:
            progress(rows.stop, len(position))
    return intensity
