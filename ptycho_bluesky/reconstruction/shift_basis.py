"""Sub-pixel shifts of one probe for many frames without a transform for each.

A shift by s multiplies the spectrum by exp(−2πi f·s). With |f| ≤ ½ and |s| ≤ ½ an axis this is a short sum of products
of a function of f and a function of s, exp(−izx) = Σ_k (2k + 1)(−i)^k j_k(z)·P_k(x) with z = πf, x = 2s (NIST Digital
Library of Mathematical Functions, 10.60.7): spherical Bessel functions and Legendre polynomials. So the probe shifted
for any frame is a real combination of the same few dozen fields, and frames cost a matrix product.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import eval_legendre, spherical_jn
from torch import Tensor

__all__ = ["ShiftBasis"]

TOLERANCE = {torch.complex64: 1e-4, torch.complex128: 1e-15}
"""Terms whose largest value is below this are left out."""
MAX_DEGREE = 24


class ShiftBasis:
    """Shifts of a wave (N, N) by the sub-pixel rests of all frames.

    Parameters
    ----------
    rest_px : ndarray of float64, shape (n, 2)
        In −0.5 to 0.5.
    size_px : int
    like : Tensor of complex
        Gives device and precision.
    """

    def __init__(self, rest_px: NDArray[np.float64], size_px: int, like: Tensor) -> None:
        terms = _terms(TOLERANCE[like.dtype])
        degrees = np.arange(1 + max(max(term) for term in terms))
        frequency = np.pi * np.fft.fftfreq(size_px)
        field = np.stack([(2 * k + 1) * (-1j) ** k * spherical_jn(int(k), frequency) for k in degrees])
        value = np.stack([eval_legendre(int(k), 2 * rest_px) for k in degrees])
        weights = np.stack([value[k, :, 0] * value[m, :, 1] for k, m in terms], axis=1)
        self._rows = torch.from_numpy(np.stack([field[k] for k, _ in terms])).to(like)
        self._cols = torch.from_numpy(np.stack([field[m] for _, m in terms])).to(like)
        self._weights = torch.from_numpy(weights).to(device=like.device, dtype=like.real.dtype)

    def __len__(self) -> int:
        """Number of fields."""
        return len(self._rows)

    def fields(self, wave: Tensor) -> Tensor:
        """What shifted copies of the wave (modes, N, N) are combined from, (terms, modes, N, N)."""
        return torch.fft.ifft2(torch.fft.fft2(wave) * self._factors())

    def shifted(self, fields: Tensor, rows: slice) -> Tensor:
        """The wave shifted for the frames ``rows``, (b, modes, N, N), from its `fields`."""
        flat = torch.view_as_real(fields).reshape(len(fields), -1)
        return torch.view_as_complex((self._weights[rows] @ flat).reshape(-1, *fields.shape[1:], 2))

    def collect(self, waves: Tensor, rows: slice) -> Tensor:
        """Adjoint of `shifted`: fields (terms, modes, N, N) from the waves (b, modes, N, N) of the frames ``rows``."""
        flat = torch.view_as_real(waves).reshape(len(waves), -1)
        return torch.view_as_complex((self._weights[rows].T @ flat).reshape(-1, *waves.shape[1:], 2))

    def combine(self, fields: Tensor) -> Tensor:
        """Adjoint of `fields`: one wave (modes, N, N)."""
        return torch.fft.ifft2((torch.fft.fft2(fields) * self._factors().conj()).sum(dim=0))

    def _factors(self) -> Tensor:
        return (self._rows[:, :, None] * self._cols[:, None, :])[:, None]


def _terms(tolerance: float) -> list[tuple[int, int]]:
    """Degrees (rows, cols) of the products that are not negligible anywhere."""
    largest = [(2 * k + 1) * spherical_jn(k, np.pi / 2) for k in range(MAX_DEGREE)]
    return [(k, m) for k in range(MAX_DEGREE) for m in range(MAX_DEGREE) if largest[k] * largest[m] > tolerance]
