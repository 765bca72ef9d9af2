"""Inner loops of the mosaic, compiled by numba, without the interpreter's lock.

A patch whose corner lies at a fractional canvas pixel is spread over the four pixels around each of its own with
bilinear weights. The spread is the same for every pixel of a patch, so it is written as a gather: canvas pixel (r, c)
takes from patch pixels (r, c), (r−1, c), (r, c−1), (r−1, c−1). What is added, e^{iφ} times the weight, is linear: the
same call with sign −1 takes a patch out again.
"""

from __future__ import annotations

import numba
import numpy as np

__all__ = ["add_patches", "paint_values", "render"]

MIN_WEIGHT = np.float32(1e-3)
"""Interpolated weight from which a patch counts as reaching a pixel."""


@numba.njit(cache=True, nogil=True, fastmath=True, inline="never")
def _add_row(out, above, here, first, last, sign, b00, b10, b01, b11):  # pragma: no cover - compiled
    """Add a bilinearly shifted row of a patch; rows of the patch have a border of one zero."""
    for c in range(first, last):
        out[c] += sign * (b00 * here[c + 1] + b10 * above[c + 1] + b01 * here[c] + b11 * above[c])


@numba.njit(cache=True, nogil=True, fastmath=True)
def add_patches(real, imag, weight_sum, coverage, cosine, sine, weight, corner, sign):  # pragma: no cover - compiled
    """Add (sign 1) or take out (sign −1) patches; every patch must lie inside the canvas.

    Parameters
    ----------
    real, imag, weight_sum : ndarray of float32, shape (rows, cols)
        Running sums of w·cos φ, w·sin φ and w.
    coverage : ndarray of int32, shape (rows, cols)
    cosine, sine : ndarray of float32, shape (n, h, w)
        Of the phase.
    weight : ndarray of float32, shape (h, w)
    corner : ndarray of float64, shape (n, 2)
        Canvas position (row, col) of each patch's pixel ``[0, 0]``.
    sign : int
    """
    n, h, w = cosine.shape
    # zero borders spare the inner loop every test of an edge
    u = np.zeros((h + 2, w + 2), dtype=np.float32)
    v = np.zeros((h + 2, w + 2), dtype=np.float32)
    p = np.zeros((h + 2, w + 2), dtype=np.float32)
    buffer = np.zeros(w + 1, dtype=np.float32)
    first_r, last_r, first_c, last_c = h, -1, w, -1
    for r in range(h):
        for c in range(w):
            p[r + 1, c + 1] = weight[r, c]
            if weight[r, c] > 0:
                first_r, last_r = min(first_r, r), max(last_r, r)
                first_c, last_c = min(first_c, c), max(last_c, c)
    s = np.float32(sign)
    one = np.int32(sign)
    zero = np.int32(0)
    for k in range(n):
        for r in range(first_r, last_r + 1):
            for c in range(first_c, last_c + 1):
                u[r + 1, c + 1] = weight[r, c] * cosine[k, r, c]
                v[r + 1, c + 1] = weight[r, c] * sine[k, r, c]
        row = int(np.floor(corner[k, 0]))
        col = int(np.floor(corner[k, 1]))
        fr = np.float32(corner[k, 0] - row)
        fc = np.float32(corner[k, 1] - col)
        gr, gc = np.float32(1) - fr, np.float32(1) - fc  # an integer literal would make the arithmetic double
        b00 = gr * gc
        b10 = fr * gc
        b01 = gr * fc
        b11 = fr * fc
        for r in range(first_r, last_r + 2):
            # one short call an array: the compiler turns each into vector instructions, one loop over all it does not
            first, last = first_c, last_c + 2
            _add_row(real[row + r, col : col + w + 1], u[r], u[r + 1], first, last, s, b00, b10, b01, b11)
            _add_row(imag[row + r, col : col + w + 1], v[r], v[r + 1], first, last, s, b00, b10, b01, b11)
            out_weight = weight_sum[row + r, col : col + w + 1]
            out_cover = coverage[row + r, col : col + w + 1]
            buffer[:] = 0
            _add_row(buffer, p[r], p[r + 1], first, last, np.float32(1), b00, b10, b01, b11)
            for c in range(first, last):
                out_weight[c] += s * buffer[c]
            for c in range(first, last):
                out_cover[c] += one if buffer[c] > MIN_WEIGHT else zero


@numba.njit(cache=True, nogil=True)
def paint_values(sums, weight_sum, values, weight, corner, sign):  # pragma: no cover - compiled
    """Add (or take out) one value a frame and map, spread over the patch's weight at the nearest pixel.

    Parameters
    ----------
    sums : ndarray of float32, shape (maps, rows, cols)
    weight_sum : ndarray of float32, shape (rows, cols)
    values : ndarray of float32, shape (n, maps)
    weight : ndarray of float32, shape (h, w)
    corner : ndarray of float64, shape (n, 2)
    sign : int
    """
    h, w = weight.shape
    for k in range(len(values)):
        row = int(np.round(corner[k, 0]))
        col = int(np.round(corner[k, 1]))
        for r in range(h):
            for c in range(w):
                a = weight[r, c]
                if a > 0:
                    weight_sum[row + r, col + c] += sign * a
                    for m in range(len(sums)):
                        sums[m, row + r, col + c] += sign * a * values[k, m]


@numba.njit(cache=True, nogil=True)
def render(real, imag, weight_sum, coverage):  # pragma: no cover - compiled
    """Phase of the mean, and circular variance 1 − |Σ w e^{iφ}| / Σ w, both 0 where nothing was added."""
    rows, cols = real.shape
    phase = np.zeros((rows, cols), dtype=np.float32)
    variance = np.zeros((rows, cols), dtype=np.float32)
    weight = np.zeros((rows, cols), dtype=np.float32)
    for r in range(rows):
        for c in range(cols):
            if coverage[r, c] > 0:
                x, y, w = real[r, c], imag[r, c], weight_sum[r, c]
                phase[r, c] = np.arctan2(y, x)
                variance[r, c] = min(max(np.float32(1) - np.hypot(x, y) / w, np.float32(0)), np.float32(1))
                weight[r, c] = w
    return phase, variance, weight
