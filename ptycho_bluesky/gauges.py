"""The gauges of an object: what the intensities leave open, fitted and removed.

Intensities fix an object only up to a constant phase, a linear ramp (with its inverse on the probe), a scale (likewise)
and one common shift with the probe. An error is given after these are removed, in the lit area.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.fourier import fft2, fftfreq, fourier_shift, ifft2, shift_ramp

__all__ = ["GaugeFit", "fit_gauge", "phase_rms_rad", "remove_gauge"]


@dataclass(frozen=True)
class GaugeFit:
    """The gauges between an object and its reference.

    Attributes
    ----------
    factor : complex
        Scale and constant phase.
    ramp_rad_per_px : tuple of float
        Linear ramp (rows, cols) about pixel ``[rows//2, cols//2]`` that multiplies the object.
    shift_px : tuple of float
        Shift (rows, cols) that is applied after the ramp.
    """

    factor: complex
    ramp_rad_per_px: tuple[float, float]
    shift_px: tuple[float, float]

    def apply(self, obj: NDArray[Any]) -> NDArray[np.complex128]:
        """The object, complex (rows, cols), in the gauge of the reference."""
        flat = np.asarray(obj, dtype=np.complex128) * _ramp(np.shape(obj), self.ramp_rad_per_px)
        return self.factor * fourier_shift(flat, self.shift_px)


def _centred(shape: tuple[int, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rows, cols = (np.arange(n, dtype=np.float64) - n // 2 for n in shape)
    return rows[:, None], cols[None, :]


def _ramp(shape: tuple[int, ...], slope: tuple[float, float]) -> NDArray[np.complex128]:
    y, x = _centred(shape)
    return np.exp(1j * slope[0] * y) * np.exp(1j * slope[1] * x)


def fit_gauge(
    obj: NDArray[Any],
    reference: NDArray[Any],
    mask: NDArray[Any],
    *,
    shift: bool = True,
    ramp: bool = True,
    max_shift_px: float = 16.0,
) -> GaugeFit:
    """Constant, ramp, scale and sub-pixel shift that take an object closest to its reference.

    Parameters
    ----------
    obj, reference : ndarray of complex, shape (rows, cols)
    mask : ndarray of bool or float, shape (rows, cols)
        Where, or with which weight, they are compared.
    shift, ramp : bool
        Which gauges are free besides constant and scale.
    max_shift_px : float
        Largest shift that is looked for.

    Returns
    -------
    GaugeFit

    Raises
    ------
    InputError
        The arrays differ in shape, or the mask is empty.

    Notes
    -----
    Least squares Σ w·|a·S(exp(ik·r)·o) − o₀|² by Levenberg–Marquardt from a coarse start (peaks of the spectrum of
    o₀·o*, and of the cross-correlation). The shift S is a periodic Fourier shift: exact for what is band limited.
    """
    if np.shape(obj) != np.shape(reference) or np.shape(obj) != np.shape(mask):
        raise InputError(
            f"object {np.shape(obj)}, reference {np.shape(reference)}, mask {np.shape(mask)}", "all are of one shape"
        )
    weight = np.asarray(mask, dtype=np.float64)
    if not weight.sum() > 0:
        raise InputError("an empty mask", "gauges are fitted in the lit area")
    wave, target = np.asarray(obj, dtype=np.complex128), np.asarray(reference, dtype=np.complex128)
    problem = _GaugeProblem(wave, target, weight)
    state = problem.start((0.0, 0.0), _coarse_ramp(wave, target, weight) if ramp else (0.0, 0.0))
    if ramp:
        state = problem.solve(state, shift=False, ramp=True)
    if shift:
        move = _coarse_shift(state.ramped, target, weight, max_shift_px)
        slope = (float(state.parameters[2]), float(state.parameters[3]))
        # The better start of the two: a wide ramp can hide the peak of the correlation.
        state = min(state, problem.start(move, slope), key=lambda s: s.cost)
    return problem.solve(state, shift=shift, ramp=ramp).fit()


def remove_gauge(
    obj: NDArray[Any], reference: NDArray[Any], mask: NDArray[Any], **options: Any
) -> NDArray[np.complex128]:
    """The object in the gauge of its reference; see `fit_gauge` for the arguments."""
    return fit_gauge(obj, reference, mask, **options).apply(obj)


def phase_rms_rad(obj: NDArray[Any], reference: NDArray[Any], mask: NDArray[Any], **options: Any) -> float:
    """Root mean square of the phase error in the mask, gauges removed; see `fit_gauge` for the arguments."""
    aligned = remove_gauge(obj, reference, mask, **options)
    error = np.angle(aligned * np.conj(reference))
    weight = np.asarray(mask, dtype=np.float64)
    return float(np.sqrt(np.sum(weight * error**2) / weight.sum()))


def _coarse_ramp(
    wave: NDArray[np.complex128], target: NDArray[np.complex128], weight: NDArray[np.float64]
) -> tuple[float, float]:
    """Slope of the strongest plane wave in target·wave*, to a quarter of a cycle over the array."""
    shape = tuple(2 * n for n in wave.shape)
    spectrum = np.abs(fft2(weight * target * np.conj(wave), shape=shape))
    peak = np.unravel_index(np.argmax(spectrum), shape)
    row, col = (2 * np.pi * fftfreq(n)[k] for n, k in zip(shape, peak, strict=True))
    return float(row), float(col)


def _coarse_shift(
    wave: NDArray[np.complex128], target: NDArray[np.complex128], weight: NDArray[np.float64], limit: float
) -> tuple[float, float]:
    """Whole-pixel shift of the wave with the highest correlation, means removed."""
    factor = np.sum(weight * target * np.conj(wave)) / np.sum(weight * np.abs(wave) ** 2)
    flat = [weight * (v - np.sum(weight * v) / weight.sum()) for v in (factor * wave, target)]
    correlation = np.real(ifft2(fft2(flat[1]) * np.conj(fft2(flat[0]))))
    steps = [fftfreq(n, 1 / n) for n in wave.shape]
    near = (np.abs(steps[0]) <= limit)[:, None] & (np.abs(steps[1]) <= limit)[None, :]
    peak = np.unravel_index(np.argmax(np.where(near, correlation, -np.inf)), correlation.shape)
    return float(steps[0][peak[0]]), float(steps[1][peak[1]])


@dataclass(frozen=True)
class _GaugeState:
    """Parameters of a gauge (shift, ramp, factor as six real numbers) and what they give."""

    parameters: NDArray[np.float64]
    ramped: NDArray[np.complex128]
    spectrum: NDArray[np.complex128]
    unit: NDArray[np.complex128]
    residual: NDArray[np.complex128]

    @property
    def factor(self) -> complex:
        return complex(self.parameters[4], self.parameters[5])

    @property
    def cost(self) -> float:
        return float(np.vdot(self.residual, self.residual).real)

    def fit(self) -> GaugeFit:
        row, col, slope_row, slope_col = (float(v) for v in self.parameters[:4])
        return GaugeFit(self.factor, (slope_row, slope_col), (row, col))


class _GaugeProblem:
    """Least squares Σ w·|a·S(exp(ik·r)·o) − o₀|² over shift, ramp and factor."""

    def __init__(
        self, wave: NDArray[np.complex128], target: NDArray[np.complex128], weight: NDArray[np.float64]
    ) -> None:
        self.wave = wave
        self.inside = weight > 0
        self.root = np.sqrt(weight[self.inside])
        self.target = self.root * target[self.inside]
        self.q = [fftfreq(n) for n in wave.shape]

    def start(self, shift_px: tuple[float, float], slope: tuple[float, float]) -> _GaugeState:
        """State with the best factor for a shift and a ramp."""
        state = self.state(np.array([*shift_px, *slope, 1.0, 0.0]))
        factor = np.vdot(state.unit, self.target) / np.vdot(state.unit, state.unit)
        return self.state(np.array([*shift_px, *slope, factor.real, factor.imag]))

    def state(self, parameters: NDArray[np.float64]) -> _GaugeState:
        ramped = self.wave * _ramp(self.wave.shape, (parameters[2], parameters[3]))
        spectrum = fft2(ramped) * shift_ramp(parameters[None, :2], self.wave.shape)[0]
        unit = self.root * ifft2(spectrum)[self.inside]
        return _GaugeState(
            parameters, ramped, spectrum, unit, complex(parameters[4], parameters[5]) * unit - self.target
        )

    def jacobian(self, state: _GaugeState) -> NDArray[np.complex128]:
        """Derivatives (6, pixels) of the residual by the parameters."""
        move = shift_ramp(state.parameters[None, :2], self.wave.shape)[0]
        spectra = [-2j * np.pi * self.q[0][:, None] * state.spectrum, -2j * np.pi * self.q[1][None, :] * state.spectrum]
        spectra += [fft2(1j * axis * state.ramped) * move for axis in _centred(self.wave.shape)]
        columns = [state.factor * self.root * ifft2(s)[self.inside] for s in spectra]
        return np.stack([*columns, state.unit, 1j * state.unit])

    def solve(self, state: _GaugeState, *, shift: bool, ramp: bool, max_iterations: int = 50) -> _GaugeState:
        """Levenberg–Marquardt from a start."""
        used = [0, 1] * shift + [2, 3] * ramp + [4, 5]
        damping = 1e-3
        jacobian = self.jacobian(state)[used]
        for _ in range(max_iterations):
            normal = (np.conj(jacobian) @ jacobian.T).real
            gradient = (np.conj(jacobian) @ state.residual).real
            diagonal = np.diag(normal) + 1e-12 * np.trace(normal)
            parameters = state.parameters.copy()
            parameters[used] -= np.linalg.solve(normal + damping * np.diag(diagonal), gradient)
            trial = self.state(parameters)
            if trial.cost < state.cost:
                settled = state.cost - trial.cost <= 1e-15 * state.cost
                state, damping = trial, damping / 10
                if settled:
                    break
                jacobian = self.jacobian(state)[used]
            elif damping > 1e3:
                break
            else:
                damping *= 10
        return state
