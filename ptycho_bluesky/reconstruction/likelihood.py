"""Negative log-likelihoods of frames: value, gradient, and values along a line, with or without compiled loops.

Gaussian: constant variance of the amplitude, L = Σ(√(|F|² + ε) − √(I + ε))². Poisson: L = Σ(m − I·ln m) with
m = |F|² + ε, less the constant that makes a perfect model 0. |F|² is the sum over the modes. The gradient is ∂L/∂F*, so
that a change dF changes L by 2·Re⟨∂L/∂F*, dF⟩.

Without the floor ε the Gaussian gradient is F − √I·F/|F|: where the model is dark and the frame is not, as outside the
pupil before the object is known, its phase is that of rounding errors, at full strength. Then no two runs agree, since
the libraries round by where their memory happens to lie. The floor bounds what an error of F does to the gradient, to
√(1 + I/ε) times the error.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Likelihood"]

LOOSE_MATH = {"reassoc", "contract", "nsz", "arcp"}


class Likelihood:
    """Likelihood of frames, given their far fields.

    Parameters
    ----------
    amplitude : Tensor of float, shape (n, N, N)
        √I.
    trusted : Tensor of bool, shape (N, N), or None
    floor : float
        ε, in counts.
    poisson : bool
        Which of the two.
    """

    def __init__(self, amplitude: Tensor, trusted: Tensor | None, floor: float, *, poisson: bool = False) -> None:
        self._amplitude, self._floor, self._is_poisson = amplitude, floor, poisson
        # The amplitudes that the model's are compared with, and of the same kind.
        self._smooth = amplitude if poisson else (amplitude.square() + floor).sqrt_()
        real = amplitude.dtype
        self._trusted = torch.ones(amplitude.shape[-2:], dtype=real, device=amplitude.device)
        if trusted is not None:
            self._trusted = trusted.to(real)
        self._compiled = amplitude.device.type == "cpu"

    def residual(self, wave: Tensor, rows: slice) -> tuple[Tensor, float, float]:
        """Gradient of the frames ``rows`` by their far fields.

        Parameters
        ----------
        wave : Tensor of complex, shape (b, modes, N, N)
            Far fields, kept.
        rows : slice

        Returns
        -------
        Tensor of complex, shape (b, modes, N, N)
            ∂L/∂F*.
        float
            L.
        float
            Σ(|F| − √I)².
        """
        power = _power(wave)
        amplitude = self._amplitude[rows]
        modulus = power.clamp(min=torch.finfo(power.dtype).tiny).sqrt_()
        misfit = float(((modulus - amplitude) * self._trusted).double().square().sum())
        if self._is_poisson:
            factor = 1.0 - amplitude.square() / (power + self._floor)
        else:
            factor = 1.0 - self._smooth[rows] / (power + self._floor).sqrt_()
        return wave * (self._trusted * factor)[:, None], self._value(power, rows), misfit

    def along(self, wave: Tensor, first: Tensor, second: Tensor | None, rows: slice, steps: list[float]) -> NDArray:
        """L of the frames ``rows`` at the far fields wave + γ·first + γ²·second, for each γ of ``steps``."""
        if self._compiled:
            return self._along_compiled(wave, first, second, rows, steps)
        found = []
        for step in steps:
            trial = wave + step * first
            if second is not None:
                trial += step**2 * second
            found.append(self._value(_power(trial), rows))
        return np.array(found)

    def _along_compiled(
        self, wave: Tensor, first: Tensor, second: Tensor | None, rows: slice, steps: list[float]
    ) -> NDArray:
        amplitude = self._smooth[rows].numpy()
        kind = amplitude.dtype
        third = np.zeros((0, 0, 0, 0), dtype=kind) if second is None else _parts(second)
        values = np.zeros(len(steps))
        trials, floor = np.asarray(steps, dtype=kind), kind.type(self._floor)
        trusted = self._trusted.numpy()
        _values_along(_parts(wave), _parts(first), third, amplitude, trusted, trials, floor, self._is_poisson, values)
        return values

    def _value(self, power: Tensor, rows: slice) -> float:
        if not self._is_poisson:
            gap = ((power + self._floor).sqrt_() - self._smooth[rows]) * self._trusted
            return float(gap.double().square().sum())
        model, counts = power.double() + self._floor, self._amplitude[rows].double().square()
        perfect = counts - torch.xlogy(counts, counts)
        return float(((model - counts * model.log() - perfect) * self._trusted).sum())


def _power(wave: Tensor) -> Tensor:
    return (wave.real.square() + wave.imag.square()).sum(dim=1)


def _parts(wave: Tensor) -> NDArray[Any]:
    return torch.view_as_real(wave.contiguous()).flatten(-2).numpy()


@numba.njit(cache=True, nogil=True, fastmath=LOOSE_MATH, error_model="numpy")
def _add_trial_row(power, wave, first, step):  # pragma: no cover - compiled
    for j in range(power.shape[0]):
        re, im = wave[2 * j] + step * first[2 * j], wave[2 * j + 1] + step * first[2 * j + 1]
        power[j] += re * re + im * im


@numba.njit(cache=True, nogil=True, fastmath=LOOSE_MATH, error_model="numpy")
def _add_curved_row(power, wave, first, second, step):  # pragma: no cover - compiled
    for j in range(power.shape[0]):
        re = wave[2 * j] + step * (first[2 * j] + step * second[2 * j])
        im = wave[2 * j + 1] + step * (first[2 * j + 1] + step * second[2 * j + 1])
        power[j] += re * re + im * im


@numba.njit(cache=True, nogil=True, fastmath=LOOSE_MATH, error_model="numpy")
def _gaussian_row(power, amplitude, trusted, floor):  # pragma: no cover - compiled
    total = power[0] * 0
    for j in range(power.shape[0]):
        gap = (np.sqrt(power[j] + floor) - amplitude[j]) * trusted[j]
        total += gap * gap
    return total


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _poisson_row(power, amplitude, trusted, floor):  # pragma: no cover - compiled
    total = 0.0
    for j in range(power.shape[0]):
        model, counts = float(power[j]) + floor, float(amplitude[j]) ** 2
        perfect = counts - counts * math.log(counts) if counts > 0 else 0.0
        total += trusted[j] * (model - counts * math.log(model) - perfect)
    return total


@numba.njit(cache=True, nogil=True)
def _values_along(
    wave, first, second, amplitude, trusted, steps, floor, poisson, values
):  # pragma: no cover - compiled
    """Likelihood at each trial step; an empty ``second`` asks for a line."""
    modes, size = wave.shape[1:3]
    power = np.empty(size, dtype=amplitude.dtype)
    for k in range(wave.shape[0]):
        for i in range(size):
            for t in range(steps.shape[0]):
                power[:] = 0
                for m in range(modes):
                    if second.shape[0] > 0:
                        _add_curved_row(power, wave[k, m, i], first[k, m, i], second[k, m, i], steps[t])
                    else:
                        _add_trial_row(power, wave[k, m, i], first[k, m, i], steps[t])
                if poisson:
                    values[t] += _poisson_row(power, amplitude[k, i], trusted[i], floor)
                else:
                    values[t] += _gaussian_row(power, amplitude[k, i], trusted[i], floor)
