"""The Fourier transforms in use, typed: SciPy's run in two threads and keep complex64."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

__all__ = ["FFT_WORKERS", "fft2", "fftfreq", "fftshift", "fourier_shift", "ifft2", "ifftshift", "shift_ramp"]

FFT_WORKERS = 2
_IMAGE_AXES = (-2, -1)


def fft2(
    array: NDArray[Any],
    *,
    shape: tuple[int, ...] | None = None,
    unitary: bool = False,
    overwrite: bool = False,
    workers: int = FFT_WORKERS,
) -> NDArray[Any]:
    """Forward transform exp(−2πi q·x) of the last two axes; ``shape`` pads with zeros, ``unitary`` conserves Σ|f|²."""
    norm = "ortho" if unitary else "backward"
    return np.asarray(scipy.fft.fft2(array, s=shape, norm=norm, overwrite_x=overwrite, workers=workers))


def ifft2(array: NDArray[Any], *, unitary: bool = False, overwrite: bool = False) -> NDArray[Any]:
    """Inverse of `fft2`."""
    norm = "ortho" if unitary else "backward"
    return np.asarray(scipy.fft.ifft2(array, norm=norm, overwrite_x=overwrite, workers=FFT_WORKERS))


def fftshift(array: NDArray[Any]) -> NDArray[Any]:
    """Move the zero frequency of the last two axes from ``[0, 0]`` to ``[N//2, N//2]``."""
    return np.asarray(scipy.fft.fftshift(array, axes=_IMAGE_AXES))


def ifftshift(array: NDArray[Any]) -> NDArray[Any]:
    """Inverse of `fftshift`, also for odd sizes."""
    return np.asarray(scipy.fft.ifftshift(array, axes=_IMAGE_AXES))


def fftfreq(n: int, spacing: float = 1.0) -> NDArray[np.float64]:
    """Frequencies of `fft2` along an axis, cycles a unit of ``spacing``, shape (n,)."""
    return np.asarray(scipy.fft.fftfreq(n, spacing), dtype=np.float64)


def shift_ramp(shift_px: NDArray[Any], shape: tuple[int, ...], dtype: Any = np.complex128) -> NDArray[Any]:
    """Factor exp(−2πi q·s) of a spectrum that shifts by s.

    Parameters
    ----------
    shift_px : ndarray of float, shape (n, 2)
        (rows, cols).
    shape : tuple of int
        (N, M) of the spectrum, zero frequency at ``[0, 0]``.

    Returns
    -------
    ndarray of ``dtype``, shape (n, N, M)
        The product of one factor an axis: n·(N + M) exponentials instead of n·N·M.
    """
    rows, cols = (np.exp(-2j * np.pi * shift_px[:, axis, None] * fftfreq(shape[axis])).astype(dtype) for axis in (0, 1))
    return rows[:, :, None] * cols[:, None, :]


def fourier_shift(wave: NDArray[Any], shift_px: Any) -> NDArray[Any]:
    """Shift a periodic, band-limited wave by fractions of a pixel.

    Parameters
    ----------
    wave : ndarray of complex, shape (..., N, M)
    shift_px : array-like of float, shape (2,) or (n, 2)
        (rows, cols); the content moves towards larger indices for positive values.

    Returns
    -------
    ndarray of complex, shape (..., N, M), or (n, ..., N, M) for n shifts
        complex64 stays complex64.
    """
    shift = np.asarray(shift_px, dtype=np.float64)
    spectrum = fft2(wave)
    ramp = shift_ramp(shift.reshape(-1, 2), wave.shape[-2:], spectrum.dtype)
    ramp = ramp.reshape(shift.shape[:-1] + (1,) * (wave.ndim - 2) + wave.shape[-2:])
    return ifft2(spectrum * ramp, overwrite=True)
