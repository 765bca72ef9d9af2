"""Inner loops of the engines on a CPU, compiled by numba, without the interpreter's lock.

Between the transforms of a frame lie a handful of products and sums. Written as array operations each of them is a pass
over memory of its own, together they cost more than the transforms; here each gap between two transforms is one pass.
Waves come as their real numbers, real and imaginary parts in turn along the last axis: of that form the compiler makes
vector instructions, of complex numbers it does not.
"""

from __future__ import annotations

import numba
import numpy as np

__all__ = [
    "add_illumination",
    "add_probe_spectrum",
    "correlate",
    "exit_waves",
    "probe_power",
    "put_modulus",
    "ramped_spectrum",
    "step_box",
    "step_modes",
]

LOOSE_MATH = {"reassoc", "contract", "nsz", "arcp"}
"""Sums may be split over the lanes of a vector; NaN and infinity keep their meaning, for a diverged run must show."""


@numba.njit(cache=True, nogil=True, fastmath=LOOSE_MATH, error_model="numpy")
def _multiply_row(out, wave, factor, re, im):  # pragma: no cover - compiled
    """Row of wave·factor·(re + i·im)."""
    for j in range(out.shape[0] // 2):
        fr = re * factor[2 * j] - im * factor[2 * j + 1]
        fi = re * factor[2 * j + 1] + im * factor[2 * j]
        wr, wi = wave[2 * j], wave[2 * j + 1]
        out[2 * j] = wr * fr - wi * fi
        out[2 * j + 1] = wr * fi + wi * fr


@numba.njit(cache=True, nogil=True)
def ramped_spectrum(spectrum, ramp_row, ramp_col, rows, out):  # pragma: no cover - compiled
    """Spectrum of the probe times each frame's phase ramp.

    Parameters
    ----------
    spectrum : ndarray of float, shape (modes, N, 2N)
    ramp_row, ramp_col : ndarray of float, shape (n, 2N)
    rows : ndarray of int64, shape (c,)
    out : ndarray of float, shape (c, modes, N, 2N)
    """
    modes, size = spectrum.shape[:2]
    for k in range(rows.shape[0]):
        row, col = ramp_row[rows[k]], ramp_col[rows[k]]
        for m in range(modes):
            for i in range(size):
                _multiply_row(out[k, m, i], spectrum[m, i], col, row[2 * i], row[2 * i + 1])


@numba.njit(cache=True, nogil=True, fastmath=LOOSE_MATH, error_model="numpy")
def _exit_row(out, probe, patch):  # pragma: no cover - compiled
    for j in range(out.shape[0] // 2):
        pr, pi, wr, wi = probe[2 * j], probe[2 * j + 1], patch[2 * j], patch[2 * j + 1]
        out[2 * j] = pr * wr - pi * wi
        out[2 * j + 1] = pr * wi + pi * wr


@numba.njit(cache=True, nogil=True)
def exit_waves(probe, obj, corner, rows, out):  # pragma: no cover - compiled
    """Probe times object of each frame.

    Parameters
    ----------
    probe : ndarray of float, shape (c, modes, N, 2N)
    obj : ndarray of float, shape (rows, 2·cols)
    corner : ndarray of int64, shape (n, 2)
    rows : ndarray of int64, shape (c,)
    out : ndarray of float, shape (c, modes, N, 2N)
    """
    modes, size, width = probe.shape[1:]
    for k in range(rows.shape[0]):
        r, c = corner[rows[k], 0], 2 * corner[rows[k], 1]
        for m in range(modes):
            for i in range(size):
                _exit_row(out[k, m, i], probe[k, m, i], obj[r + i, c : c + width])


@numba.njit(cache=True, nogil=True, fastmath=LOOSE_MATH, error_model="numpy")
def _add_power_row(power, wave):  # pragma: no cover - compiled
    for j in range(power.shape[0]):
        power[j] += wave[2 * j] * wave[2 * j] + wave[2 * j + 1] * wave[2 * j + 1]


@numba.njit(cache=True, nogil=True, fastmath=LOOSE_MATH, error_model="numpy")
def _modulus_row(power, amplitude, scale, tiny):  # pragma: no cover - compiled
    """Turn the power of a row into the factor of its waves; returns the squared misfit."""
    misfit = power[0] * 0
    for j in range(power.shape[0]):
        modulus = np.sqrt(power[j] + tiny)
        gap = amplitude[j] - modulus * scale
        misfit += gap * gap
        power[j] = gap / modulus
    return misfit


@numba.njit(cache=True, nogil=True, fastmath=LOOSE_MATH, error_model="numpy")
def _masked_modulus_row(power, amplitude, trusted, scale, tiny):  # pragma: no cover - compiled
    misfit = power[0] * 0
    for j in range(power.shape[0]):
        modulus = np.sqrt(power[j] + tiny)
        gap = (amplitude[j] - modulus * scale) * trusted[j]
        misfit += gap * gap
        power[j] = gap / modulus
    return misfit


@numba.njit(cache=True, nogil=True, fastmath=LOOSE_MATH, error_model="numpy")
def _scale_row(wave, factor):  # pragma: no cover - compiled
    for j in range(factor.shape[0]):
        wave[2 * j] *= factor[j]
        wave[2 * j + 1] *= factor[j]


@numba.njit(cache=True, nogil=True)
def put_modulus(wave, amplitude, trusted, rows, scale, tiny):  # pragma: no cover - compiled
    """Replace far fields by their change to the measured modulus.

    Parameters
    ----------
    wave : ndarray of float, shape (c, modes, N, 2N)
        Far fields of a transform without any norm; overwritten by (√I − scale·|F|)·F/|F|.
    amplitude : ndarray of float, shape (n, N, N)
    trusted : ndarray of float, shape (N, N) or (0, 0)
        1 where a pixel can be trusted, 0 elsewhere; empty when all can.
    rows : ndarray of int64, shape (c,)
    scale : float
        1/N, of the unitary transform.
    tiny : float
        Added to the power, so that none is 0.

    Returns
    -------
    float
        Σ(√I − |F|)².
    """
    modes, size = wave.shape[1:3]
    power = np.empty(size, dtype=wave.dtype)
    total = 0.0
    for k in range(rows.shape[0]):
        for i in range(size):
            power[:] = 0
            for m in range(modes):
                _add_power_row(power, wave[k, m, i])
            if trusted.shape[0] > 0:
                total += _masked_modulus_row(power, amplitude[rows[k], i], trusted[i], scale, tiny)
            else:
                total += _modulus_row(power, amplitude[rows[k], i], scale, tiny)
            for m in range(modes):
                _scale_row(wave[k, m, i], power)
    return total


@numba.njit(cache=True, nogil=True, fastmath=LOOSE_MATH, error_model="numpy")
def _correlate_row(numerator, probe, change, scale):  # pragma: no cover - compiled
    for j in range(numerator.shape[0] // 2):
        pr, pi = probe[2 * j] * scale, probe[2 * j + 1] * scale
        cr, ci = change[2 * j], change[2 * j + 1]
        numerator[2 * j] += pr * cr + pi * ci
        numerator[2 * j + 1] += pr * ci - pi * cr


@numba.njit(cache=True, nogil=True, fastmath=LOOSE_MATH, error_model="numpy")
def _conjugate_row(change, patch, scale):  # pragma: no cover - compiled
    for j in range(change.shape[0] // 2):
        wr, wi = patch[2 * j] * scale, patch[2 * j + 1] * scale
        cr, ci = change[2 * j], change[2 * j + 1]
        change[2 * j] = wr * cr + wi * ci
        change[2 * j + 1] = wr * ci - wi * cr


@numba.njit(cache=True, nogil=True, fastmath=LOOSE_MATH, error_model="numpy")
def _power_row(power, peak, patch):  # pragma: no cover - compiled
    for j in range(power.shape[0]):
        value = patch[2 * j] * patch[2 * j] + patch[2 * j + 1] * patch[2 * j + 1]
        power[j] += value
        peak[j] = value if value > peak[j] else peak[j]


@numba.njit(cache=True, nogil=True)
def correlate(
    probe, change, obj, corner, rows, scale, numerator, power, peak, with_probe
):  # pragma: no cover - compiled
    """Add the object's correlation P*·χ to its canvas and, for the probe, turn χ into O*·χ.

    Parameters
    ----------
    probe : ndarray of float, shape (c, modes, N, 2N)
    change : ndarray of float, shape (c, modes, N, 2N)
        χ without the norm of its transform; overwritten when ``with_probe``.
    obj, numerator : ndarray of float, shape (rows, 2·cols)
    corner : ndarray of int64, shape (n, 2)
    rows : ndarray of int64, shape (c,)
    scale : float
        1/N, of the unitary transform.
    power : ndarray of float, shape (N, N)
        Σ|O|² over the windows, added to.
    peak : ndarray of float, shape (N,)
        Largest |O|² met in each column of a window, raised.
    with_probe : bool
    """
    modes, size, width = probe.shape[1:]
    for k in range(rows.shape[0]):
        r, c = corner[rows[k], 0], 2 * corner[rows[k], 1]
        for i in range(size):
            patch, canvas = obj[r + i, c : c + width], numerator[r + i, c : c + width]
            for m in range(modes):
                _correlate_row(canvas, probe[k, m, i], change[k, m, i], scale)
                if with_probe:
                    _conjugate_row(change[k, m, i], patch, scale)
            if with_probe:
                _power_row(power[i], peak, patch)


@numba.njit(cache=True, nogil=True, fastmath=LOOSE_MATH, error_model="numpy")
def _add_product_row(out, wave, factor, re, im):  # pragma: no cover - compiled
    """Add a row of wave·(factor·(re + i·im))*."""
    for j in range(out.shape[0] // 2):
        fr = re * factor[2 * j] - im * factor[2 * j + 1]
        fi = re * factor[2 * j + 1] + im * factor[2 * j]
        wr, wi = wave[2 * j], wave[2 * j + 1]
        out[2 * j] += wr * fr + wi * fi
        out[2 * j + 1] += wi * fr - wr * fi


@numba.njit(cache=True, nogil=True)
def add_probe_spectrum(wave, ramp_row, ramp_col, rows, out):  # pragma: no cover - compiled
    """Add spectra (c, modes, N, 2N), each shifted back to a whole pixel by its conjugate ramp, to ``out``."""
    modes, size = wave.shape[1:3]
    for k in range(rows.shape[0]):
        row, col = ramp_row[rows[k]], ramp_col[rows[k]]
        for m in range(modes):
            for i in range(size):
                _add_product_row(out[m, i], wave[k, m, i], col, row[2 * i], row[2 * i + 1])


@numba.njit(cache=True, nogil=True, fastmath=LOOSE_MATH, error_model="numpy")
def _add_row(out, row):  # pragma: no cover - compiled
    for j in range(out.shape[0]):
        out[j] += row[j]


@numba.njit(cache=True, nogil=True)
def add_illumination(light, power, corner, rows):  # pragma: no cover - compiled
    """Add |P|² (N, N) to the canvas (rows, cols) at the window of each frame."""
    size = power.shape[0]
    for k in range(rows.shape[0]):
        r, c = corner[rows[k], 0], corner[rows[k], 1]
        for i in range(size):
            _add_row(light[r + i, c : c + size], power[i])


@numba.njit(cache=True, nogil=True, fastmath=LOOSE_MATH, error_model="numpy")
def probe_power(probe, power):  # pragma: no cover - compiled
    """Write Σ|P|² over the modes (modes, N, 2N) into ``power`` (N, N) and return its largest value."""
    peak = np.zeros(power.shape[1], dtype=power.dtype)
    for i in range(power.shape[0]):
        power[i] = 0
        for m in range(probe.shape[0]):
            _add_power_row(power[i], probe[m, i])
        for j in range(power.shape[1]):
            peak[j] = power[i, j] if power[i, j] > peak[j] else peak[j]
    return peak.max()


@numba.njit(cache=True, nogil=True, fastmath=LOOSE_MATH, error_model="numpy")
def _step_row(wave, correlation, power, peak, step, weight):  # pragma: no cover - compiled
    for j in range(power.shape[0]):
        larger = power[j] if power[j] > peak else peak
        factor = step / (weight * larger + (1 - weight) * power[j])
        wave[2 * j] += correlation[2 * j] * factor
        wave[2 * j + 1] += correlation[2 * j + 1] * factor


@numba.njit(cache=True, nogil=True)
def step_box(obj, correlation, light, top, bottom, left, right, peak, step, weight):  # pragma: no cover - compiled
    """Step the object inside a box and set the sums there to 0.

    Parameters
    ----------
    obj, correlation : ndarray of float, shape (rows, 2·cols)
    light : ndarray of float, shape (rows, cols)
    top, bottom, left, right : int
        First row, last row + 1, first column, last column + 1.
    peak, step, weight : float
        See `ptycho_bluesky.reconstruction.batches.Batches`.
    """
    for i in range(top, bottom):
        row, power = correlation[i, 2 * left : 2 * right], light[i, left:right]
        _step_row(obj[i, 2 * left : 2 * right], row, power, peak, step, weight)
        row[:] = 0
        power[:] = 0


@numba.njit(cache=True, nogil=True)
def step_modes(probe, correlation, power, peak, step, weight):  # pragma: no cover - compiled
    """Step the probe (modes, N, 2N)."""
    for m in range(probe.shape[0]):
        for i in range(probe.shape[1]):
            _step_row(probe[m, i], correlation[m, i], power[i], peak, step, weight)
