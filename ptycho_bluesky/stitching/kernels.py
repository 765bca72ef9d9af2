"""Inner loops of the mosaic, compiled by numba, without the interpreter's lock.

A patch whose corner lies at a fractional canvas pixel is spread over the four pixels around each of its own with
bilinear weights. The spread is the same for every pixel of a patch, so it is written as a gather: canvas pixel (r, c)
takes from patch pixels (r, c), (r−1, c), (r, c−1), (r−1, c−1). What is added, e^{iφ} times the weight, is linear: the
same call with sign −1 takes a patch out again.

One patch is worked off row by row, from its phase to the canvas, in buffers of a few rows that stay in the nearest
cache; the work a patch does not depend on the canvas. For the compiler's sake every loop over columns has one output,
and arrays are flat with unsigned offsets: views of rows would be counted references, signed indices be tested for
Python's counting from the end, and either costs as much as the arithmetic.
"""

from __future__ import annotations

import numba
import numpy as np

from ptycho_bluesky.stitching.phasor import EXACT_MATH, arctan2, weighted_phasor

__all__ = ["TILE_PX", "add_patches", "are_finite", "paint_values", "render", "render_phase"]

MIN_WEIGHT = np.float32(1e-3)
"""Interpolated weight from which a patch counts as reaching a pixel."""
TILE_PX = 64
"""Side of the squares in which the canvas remembers what has changed."""

ZERO, ONE, TINY = np.float32(0), np.float32(1), np.float32(1e-30)
EXPONENT = np.int32(0x7F800000)
U = np.uint64


@numba.njit(cache=True, nogil=True)
def are_finite(patches, finite):  # pragma: no cover - compiled
    """Say of each patch (n, pixels), given as the bits of its float32 values, whether all of it is finite."""
    for k in range(patches.shape[0]):
        odd = np.int32(0)
        for i in range(patches.shape[1]):
            odd |= np.int32((patches[k, i] & EXPONENT) == EXPONENT)
        finite[k] = odd == 0


@numba.njit(cache=True, nogil=True, fastmath=EXACT_MATH)
def _shift(row, at, out, to, n, fraction):  # pragma: no cover - compiled
    """Shift a row to the right by a fraction of a pixel; it has a zero on each side."""
    rest = ONE - fraction
    for c in range(n):
        out[to + c] = rest * row[at + c + U(1)] + fraction * row[at + c]


@numba.njit(cache=True, nogil=True, fastmath=EXACT_MATH)
def _add(out, to, rows, above, here, n, fraction, sign):  # pragma: no cover - compiled
    """Add the mixture of two successive rows to a row of the canvas."""
    low, high = sign * (ONE - fraction), sign * fraction
    for c in range(n):
        out[to + c] += low * rows[here + c] + high * rows[above + c]


@numba.njit(cache=True, nogil=True, fastmath=EXACT_MATH)
def _count(out, to, rows, above, here, n, fraction, sign):  # pragma: no cover - compiled
    """Count the pixels that a patch reaches."""
    rest = ONE - fraction
    for c in range(n):
        out[to + c] += sign if rest * rows[here + c] + fraction * rows[above + c] > MIN_WEIGHT else np.int32(0)


@numba.njit(cache=True, nogil=True)
def _support(weight):  # pragma: no cover - compiled
    """First and last row and column of the positive weights."""
    h, w = weight.shape
    first_r, last_r, first_c, last_c = h, -1, w, -1
    for r in range(h):
        for c in range(w):
            if weight[r, c] > 0:
                first_r, last_r = min(first_r, r), max(last_r, r)
                first_c, last_c = min(first_c, c), max(last_c, c)
    return first_r, last_r, first_c, last_c


@numba.njit(cache=True, nogil=True)
def _mark(changed, row, col, rows, cols):  # pragma: no cover - compiled
    """Remember that a rectangle of the canvas has changed."""
    changed[row // TILE_PX : (row + rows - 1) // TILE_PX + 1, col // TILE_PX : (col + cols - 1) // TILE_PX + 1] = 1


@numba.njit(cache=True, nogil=True)
def _bordered(weight, first_r, last_r, first_c, last_c):  # pragma: no cover - compiled
    """Rows of the positive weights with a zero on each side, flat."""
    height, width = last_r - first_r + 1, last_c - first_c + 1
    rows = np.zeros((height, width + 2), dtype=np.float32)
    for r in range(height):
        for c in range(width):
            rows[r, c + 1] = weight[first_r + r, first_c + c]
    return rows.reshape(-1)


@numba.njit(cache=True, nogil=True)
def add_patches(sums, coverage, changed, phase, weight, corner, sign):  # pragma: no cover - compiled
    """Add (sign 1) or take out (sign −1) patches; every patch must lie inside the canvas and be finite.

    Parameters
    ----------
    sums : ndarray of float32, shape (3, rows, cols)
        Running sums of w·cos φ, w·sin φ and w.
    coverage : ndarray of int32, shape (rows, cols)
    changed : ndarray of uint8, shape (rows / TILE_PX, cols / TILE_PX)
        Tiles in which something changes are set to 1.
    phase : ndarray of float32, shape (n, h, w)
        rad.
    weight : ndarray of float32, shape (h, w)
    corner : ndarray of float64, shape (n, 2)
        Canvas position (row, col) of each patch's pixel ``[0, 0]``.
    sign : int
    """
    first_r, last_r, first_c, last_c = _support(weight)
    if last_r < 0:
        return
    n, h, w = phase.shape
    stride, plane = coverage.shape[1], coverage.size
    height, width = last_r - first_r + 1, last_c - first_c + 1
    line = width + 2
    weights = _bordered(weight, first_r, last_r, first_c, last_c)
    # real and imaginary part of this row and the next: what was just written cannot be read unaligned without a stall
    plain = np.zeros(4 * line, dtype=np.float32)
    # real part, imaginary part and weight, shifted, of this row and the one above
    moved = np.zeros(6 * line, dtype=np.float32)
    flat, out, cover = phase.reshape(-1), sums.reshape(-1), coverage.reshape(-1)
    s, one = np.float32(sign), np.int32(sign)
    wide = U(width + 1)
    for k in range(n):
        row, col = int(np.floor(corner[k, 0])) + first_r, int(np.floor(corner[k, 1])) + first_c
        down = np.float32(corner[k, 0] - np.floor(corner[k, 0]))
        right = np.float32(corner[k, 1] - np.floor(corner[k, 1]))
        source = (k * h + first_r) * w + first_c
        moved[:] = 0
        weighted_phasor(flat, U(source), weights, U(1), plain, U(1), U(line + 1), U(width))
        for r in range(height + 1):
            this, other = (r & 1) * 2 * line, (1 - (r & 1)) * 2 * line
            here, above = (r & 1) * 3 * line, (1 - (r & 1)) * 3 * line
            if r + 1 < height:
                at, to = U(source + (r + 1) * w), U((r + 1) * line + 1)
                weighted_phasor(flat, at, weights, to, plain, U(other + 1), U(other + line + 1), U(width))
            if r < height:
                _shift(plain, U(this), moved, U(here), wide, right)
                _shift(plain, U(this + line), moved, U(here + line), wide, right)
                _shift(weights, U(r * line), moved, U(here + 2 * line), wide, right)
            else:
                moved[here : here + 3 * line] = 0
            to = U((row + r) * stride + col)
            for p in range(3):
                a, b = U(above + p * line), U(here + p * line)
                _add(out, to + U(p * plane), moved, a, b, wide, down, s)
            _count(cover, to, moved, U(above + 2 * line), U(here + 2 * line), wide, down, one)
        _mark(changed, row, col, height + 1, width + 1)


@numba.njit(cache=True, nogil=True, fastmath=EXACT_MATH)
def _add_scaled(out, to, row, at, n, factor):  # pragma: no cover - compiled
    for c in range(n):
        out[to + c] += factor * row[at + c]


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
    first_r, last_r, first_c, last_c = _support(weight)
    stride, plane = weight_sum.shape[1], weight_sum.size
    out, total, flat = sums.reshape(-1), weight_sum.reshape(-1), weight.reshape(-1)
    wide = U(max(last_c - first_c + 1, 0))
    s = np.float32(sign)
    for k in range(len(values)):
        row, col = int(np.round(corner[k, 0])), int(np.round(corner[k, 1]))
        for r in range(first_r, last_r + 1):
            at, to = U(r * weight.shape[1] + first_c), U((row + r) * stride + col + first_c)
            _add_scaled(total, to, flat, at, wide, s)
            for m in range(len(sums)):
                _add_scaled(out, to + U(m * plane), flat, at, wide, s * values[k, m])


@numba.njit(cache=True, nogil=True, fastmath=EXACT_MATH)
def _render_row(real, imag, coverage, empty, phase):  # pragma: no cover - compiled
    for c in range(phase.shape[0]):
        angle = arctan2(imag[c], real[c])
        phase[c] = angle if coverage[c] > 0 else empty


@numba.njit(cache=True, nogil=True, fastmath=EXACT_MATH)
def _variance_row(real, imag, weight_sum, coverage, variance, weight):  # pragma: no cover - compiled
    for c in range(variance.shape[0]):
        length = np.sqrt(real[c] * real[c] + imag[c] * imag[c])
        spread = ONE - length / max(weight_sum[c], TINY)
        covered = coverage[c] > 0
        variance[c] = min(max(spread, ZERO), ONE) if covered else ZERO
        weight[c] = weight_sum[c] if covered else ZERO


@numba.njit(cache=True, nogil=True)
def render_phase(sums, coverage, changed, empty, phase):  # pragma: no cover - compiled
    """Phase of the mean in the tiles that have changed; ``empty`` where nothing was added.

    Parameters
    ----------
    sums : ndarray of float32, shape (3, rows, cols)
    coverage : ndarray of int32, shape (rows, cols)
    changed : ndarray of uint8, shape (rows / TILE_PX, cols / TILE_PX)
        Set to 0.
    empty : float32
    phase : ndarray of float32, shape (rows, cols)
        Written where something has changed.
    """
    rows, cols = coverage.shape
    for i in range(changed.shape[0]):
        for j in range(changed.shape[1]):
            if changed[i, j]:
                changed[i, j] = 0
                left, right = j * TILE_PX, min((j + 1) * TILE_PX, cols)
                for r in range(i * TILE_PX, min((i + 1) * TILE_PX, rows)):
                    _render_row(
                        sums[0, r, left:right],
                        sums[1, r, left:right],
                        coverage[r, left:right],
                        empty,
                        phase[r, left:right],
                    )


@numba.njit(cache=True, nogil=True)
def render(sums, coverage, phase, variance, weight):  # pragma: no cover - compiled
    """Phase of the mean, circular variance 1 − |Σ w e^{iφ}| / Σ w and Σ w, all 0 where nothing was added.

    Parameters
    ----------
    sums : ndarray of float32, shape (3, rows, stride)
    coverage : ndarray of int32, shape (rows, stride)
    phase, variance, weight : ndarray of float32, shape (rows, cols)
        Outputs; ``cols`` ≤ ``stride``.
    """
    rows, cols = phase.shape
    for r in range(rows):
        real, imag, total = sums[0, r, :cols], sums[1, r, :cols], sums[2, r, :cols]
        cover = coverage[r, :cols]
        _render_row(real, imag, cover, ZERO, phase[r])
        _variance_row(real, imag, total, cover, variance[r], weight[r])
