"""The gauges that intensities leave open, fixed once for every engine.

A reconstruction may come out with a common shift of probe and object, a phase ramp on the object (its inverse on the
probe), a constant phase and a scale. Left alone they drift differently in every run, and labels of different runs would
contradict each other. They are fixed so:

- shift: the probe is centred in its window, for a frame's position is its probe's centre; the object follows by the
  origin of its frame, so that nothing is interpolated;
- ramp: the object is flat (see `flat_ramp`), the pupil takes the rest;
- scale: the mean of |O|² over the light is 1, and the probe carries the mean counts of a frame;
- constant: the light-weighted mean of O has phase 0, and so has the mean of each mode over its amplitude;
- modes: orthogonal, the strongest first.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from ptycho_bluesky.fourier import fft2, fftfreq, fourier_shift
from ptycho_bluesky.geometry import ObjectFrame

__all__ = [
    "centre_px",
    "fix_gauge",
    "flat_ramp",
    "illumination",
    "lit_median",
    "orthogonal_modes",
    "phase_ramp",
    "remove_ramp",
]

LIT_FRACTION = 0.1
"""Of the median illumination: less light than this tells nothing."""
FLAT_PIXELS = 20_000
FLAT_SEARCH_PIXELS = 3_000
FLAT_WIDTH_RAD = 0.12
FLAT_REFINED = 4
FLAT_STARTS_RAD = tuple(np.linspace(-1.5, 1.5, 13).tolist())
"""Slopes, over the lit area and about the strongest plane wave, that the search starts from."""


def centre_px(power: NDArray[Any]) -> tuple[float, float]:
    """Centre of mass (row, col) of the squared power (N, N): squared, so that a floor of noise does not pull it."""
    weight = np.square(power.astype(np.float64))
    total = weight.sum()
    rows, cols = (np.arange(n) for n in power.shape)
    return float(weight.sum(axis=1) @ rows / total), float(weight.sum(axis=0) @ cols / total)


def phase_ramp(shape: tuple[int, int], slope_rad_px: tuple[float, float], zero_px: tuple[float, float]) -> NDArray:
    """exp(i·slope·(r − zero)), complex128 (rows, cols)."""
    rows, cols = (np.exp(1j * slope_rad_px[k] * (np.arange(shape[k]) - zero_px[k])) for k in (0, 1))
    return rows[:, None] * cols[None, :]


def illumination(probe: NDArray[Any], position_px: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.float64]:
    """Light on the object: Σ|P|² over the positions, to the nearest pixel.

    Parameters
    ----------
    probe : ndarray of complex, shape (modes, N, N)
    position_px : ndarray of float64, shape (n, 2)
        Indices (row, col) of the object; what falls outside of it is dropped.
    shape : tuple of int
        (rows, cols) of the object.

    Returns
    -------
    ndarray of float64, shape (rows, cols)
    """
    power = np.sum(np.abs(probe.astype(np.complex128)) ** 2, axis=0)
    size = power.shape[-1]
    # As a convolution of the positions with |P|²: independent of their number.
    hits = np.zeros((shape[0] + 2 * size, shape[1] + 2 * size))
    at = np.rint(position_px).astype(np.int64) + size
    inside = ((at >= 0) & (at < hits.shape)).all(axis=1)
    np.add.at(hits, (at[inside, 0], at[inside, 1]), 1.0)
    kernel = np.zeros_like(hits)
    kernel[:size, :size] = power
    kernel = np.roll(kernel, (-(size // 2), -(size // 2)), axis=(0, 1))
    light = np.fft.irfft2(np.fft.rfft2(hits) * np.fft.rfft2(kernel), s=hits.shape)
    return np.maximum(light[size:-size, size:-size], 0.0)


def fix_gauge(
    obj: NDArray[Any], probe: NDArray[Any], frame: ObjectFrame, position_m: NDArray[np.float64]
) -> tuple[NDArray[np.complex128], NDArray[np.complex128], ObjectFrame]:
    """Bring object (rows, cols) and probe (modes, N, N) into the package's gauge.

    Parameters
    ----------
    obj, probe : ndarray of complex
    frame : ObjectFrame
        Of the object.
    position_m : ndarray of float64, shape (n, 2)
        Positions.

    Returns
    -------
    obj, probe : ndarray of complex128
        Their product at every position is unchanged but for a constant phase.
    frame : ObjectFrame
        Of the object, moved by a fraction of a pixel.
    """
    obj, probe = obj.astype(np.complex128), probe.astype(np.complex128)
    half = probe.shape[-1] // 2
    at = centre_px(np.sum(np.abs(probe) ** 2, axis=0))
    shift = (half - at[0], half - at[1])
    probe = fourier_shift(probe, shift)
    origin = tuple(o + s * frame.pixel_size_m for o, s in zip(frame.origin_m, shift, strict=True))
    frame = replace(frame, origin_m=(float(origin[0]), float(origin[1])))
    light = illumination(probe, frame.to_px(position_m), frame.shape)
    obj, probe = remove_ramp(obj, probe, flat_ramp(obj, light), frame)
    scale = np.sqrt(np.sum(light * np.abs(obj) ** 2) / light.sum())
    turn = np.exp(1j * np.angle(np.sum(light * obj)))
    probe = orthogonal_modes(probe)
    probe *= np.exp(-1j * np.angle(np.sum(probe * np.abs(probe), axis=(1, 2), keepdims=True)))
    return obj / (scale * turn), probe * scale, frame


def remove_ramp(
    obj: NDArray[Any],
    probe: NDArray[Any],
    slope_rad_px: tuple[float, float],
    frame: ObjectFrame,
) -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
    """Take the ramp exp(i·slope·r) off the object (rows, cols) and put it on the probe (modes, N, N)."""
    origin = frame.to_px((0.0, 0.0))
    size = probe.shape[-1]
    return (
        obj * np.conj(phase_ramp(frame.shape, slope_rad_px, (float(origin[0]), float(origin[1])))),
        probe * phase_ramp((size, size), slope_rad_px, (size // 2, size // 2)),
    )


def flat_ramp(obj: NDArray[Any], light: NDArray[Any], seed: int = 0) -> tuple[float, float]:
    """Slope (rows, cols), rad a pixel, whose removal makes the levels of the object's phase sharpest.

    Parameters
    ----------
    obj : ndarray of complex, shape (rows, cols)
        Only its phase counts.
    light : ndarray of float, shape (rows, cols)
        Illumination; pixels lit to 10 % of the median are used.
    seed : int
        Of the choice of pixels when there are more than enough.

    Returns
    -------
    tuple of float

    Notes
    -----
    A plane fitted to the phase, circularly or not, follows the structure: more shapes on one side tilt it. The membrane
    and each etched level are flat by themselves, so the slope is taken that makes the *histogram* of the phase
    sharpest: the maximum of Σ_m exp(−m²σ²)·|Σ_r exp(im(φ − k·r))|², the histogram's energy seen through a Gaussian of
    width σ, which needs no unwrapping. Since the energy has several maxima, the search starts from the best of a grid
    of slopes about the strongest plane wave. On simulated shapes, 45 % covered, what is left on the truth is a seventh
    of what a fitted plane leaves.
    """
    lit = light > LIT_FRACTION * lit_median(light)
    rows, cols = np.nonzero(lit)
    if len(rows) < 3:
        return 0.0, 0.0
    if len(rows) > FLAT_PIXELS:
        chosen = np.random.default_rng(seed).choice(len(rows), FLAT_PIXELS, replace=False)
        rows, cols = rows[chosen], cols[chosen]
    extent = float(max(np.ptp(rows), np.ptp(cols), 1))
    # Slopes in rad over the lit area.
    coarse = extent * _strongest_wave(obj, lit)
    y, x = (rows - rows.mean()) / extent, (cols - cols.mean()) / extent
    phasor = np.exp(1j * np.angle(obj[rows, cols]))
    sparse = slice(None, None, max(1, len(rows) // FLAT_SEARCH_PIXELS))
    seen = phasor[sparse], y[sparse], x[sparse]
    starts = coarse + np.stack(np.meshgrid(FLAT_STARTS_RAD, FLAT_STARTS_RAD), axis=-1).reshape(-1, 2)
    blunt = [_blunt_histogram(start, *seen, _harmonics(FLAT_WIDTH_RAD))[0] for start in starts]
    found = [_sharpest(starts[k], *seen) for k in np.argsort(blunt)[:FLAT_REFINED]]
    best, _ = _sharpest(min(found, key=lambda item: item[1])[0], phasor, y, x)
    return float(best[0] / extent), float(best[1] / extent)


def _harmonics(width: float) -> NDArray[np.float64]:
    return np.exp(-((np.arange(1, np.ceil(2 / width) + 1) * width) ** 2))


def _sharpest(
    slope: NDArray[np.float64], phasor: NDArray[np.complex128], y: NDArray[np.float64], x: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """The slope of the nearest maximum of the histogram's energy, and minus that energy."""
    found = minimize(_blunt_histogram, slope, (phasor, y, x, _harmonics(FLAT_WIDTH_RAD)), "BFGS", jac=True, tol=1e-9)
    return found.x, float(found.fun)


def lit_median(light: NDArray[Any]) -> float:
    """Median illumination of what is lit at all."""
    return float(np.median(light[light > 0.01 * light.max()]))


def _strongest_wave(obj: NDArray[Any], lit: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Slope (2,) of the strongest plane wave in the phase, to half a cycle over the array."""
    shape = (2 * obj.shape[0], 2 * obj.shape[1])
    spectrum = np.abs(fft2(np.where(lit, np.exp(1j * np.angle(obj)), 0.0), shape=shape))
    peak = np.unravel_index(int(np.argmax(spectrum)), shape)
    return np.array([2 * np.pi * fftfreq(n)[k] for n, k in zip(shape, peak, strict=True)])


def _blunt_histogram(
    slope: NDArray[np.float64],
    phasor: NDArray[np.complex128],
    y: NDArray[np.float64],
    x: NDArray[np.float64],
    harmonics: NDArray[np.float64],
) -> tuple[float, NDArray[np.float64]]:
    """Minus the energy of the histogram, and its gradient by the slope."""
    turned = phasor * np.exp(-1j * (slope[0] * y + slope[1] * x))
    power = np.ones_like(turned)
    energy, gradient = 0.0, np.zeros(2)
    for m, strength in enumerate(harmonics, start=1):
        power = power * turned
        total = power.mean()
        moment = -1j * m * np.array([(power * y).mean(), (power * x).mean()])
        energy += strength * abs(total) ** 2
        gradient += 2 * strength * np.real(np.conj(total) * moment)
    return -energy, -gradient


def orthogonal_modes(probe: NDArray[Any]) -> NDArray[Any]:
    """Modes (modes, N, N) made mutually orthogonal, the strongest first, their summed intensity unchanged.

    Notes
    -----
    The principal modes of the mutual coherence Σ P_m(r)·P_m*(r') (Thibault & Menzel, Nature 494, 68, 2013), by the
    eigenvectors of the small matrix of their overlaps.
    """
    if len(probe) == 1:
        return probe
    flat = probe.reshape(len(probe), -1)
    overlap = flat @ flat.conj().T
    _, vectors = np.linalg.eigh(overlap)
    return (vectors.conj().T[::-1] @ flat).reshape(probe.shape)
