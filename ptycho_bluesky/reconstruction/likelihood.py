"""Negative log-likelihoods of frames: value, gradient, and values along a line, with or without compiled loops.

Gaussian: constant variance of the amplitude, L = Σ(|F| − √I)². Poisson: L = Σ(m − I·ln m) with m = |F|² + floor, less
the constant that makes a perfect model 0. |F|² is the sum over the modes. The gradient is ∂L/∂F*, so that a change dF
changes L by 2·Re⟨∂L/∂F*, dF⟩.
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
    poisson_floor : float or None
        Counts added to the model's; None for the Gaussian likelihood.
    """

    def __init__(self, amplitude: Tensor, trusted: Tensor | None, poisson_floor: float | None = None) -> None:
        self._amplitude, self._floor = amplitude, poisson_floor
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
        if self._floor is None:
            return wave * (self._trusted * (1.0 - amplitude / modulus))[:, None], misfit, misfit
        model = power + self._floor
        factor = self._trusted * (1.0 - amplitude.square() / model)
        return wave * factor[:, None], self._poisson(power, amplitude), misfit

    def along(self, wave: Tensor, first: Tensor, second: Tensor | None, rows: slice, steps: list[float]) -> NDArray:
        """L of the frames ``rows`` at the far fields wave + γ·first + γ²·second, for each γ of ``steps``."""
        if self._compiled:
            return self._along_compiled(wave, first, second, rows, steps)
        found = []
        for step in steps:
            trial = wave + step * first
            if second is not None:
                trial += step**2 * second
            found.append(self._value(_power(trial), self._amplitude[rows]))
        return np.array(found)

    def _along_compiled(
        self, wave: Tensor, first: Tensor, second: Tensor | None, rows: slice, steps: list[float]
    ) -> NDArray:
        amplitude = self._amplitude[rows].numpy()
        kind = amplitude.dtype
        third = np.zeros((0, 0, 0, 0), dtype=kind) if second is None else _parts(second)
        floor = kind.type(-1.0 if self._floor is None else self._floor)
        values = np.zeros(len(steps))
        trials = np.asarray(steps, dtype=kind)
        tiny, trusted = np.finfo(kind).tiny, self._trusted.numpy()
        _values_along(_parts(wave), _parts(first), third, amplitude, trusted, trials, floor, tiny, values)
        return values

    def _value(self, power: Tensor, amplitude: Tensor) -> float:
        if self._floor is None:
            modulus = power.clamp(min=torch.finfo(power.dtype).tiny).sqrt()
            return float(((modulus - amplitude) * self._trusted).double().square().sum())
        return self._poisson(power, amplitude)

    def _poisson(self, power: Tensor, amplitude: Tensor) -> float:
        assert self._floor is not None
        model, counts = power.double() + self._floor, amplitude.double().square()
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
def _gaussian_row(power, amplitude, trusted, tiny):  # pragma: no cover - compiled
    total = power[0] * 0
    for j in range(power.shape[0]):
        gap = (np.sqrt(power[j] + tiny) - amplitude[j]) * trusted[j]
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
def _values_along(wave, first, second, amplitude, trusted, steps, floor, tiny, values):  # pragma: no cover - compiled
    """Likelihood at each trial step; ``floor`` < 0 asks for the Gaussian one, an empty ``second`` for a line."""
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
                if floor < 0:
                    values[t] += _gaussian_row(power, amplitude[k, i], trusted[i], tiny)
                else:
                    values[t] += _poisson_row(power, amplitude[k, i], trusted[i], floor)
