"""Single-precision sine, cosine and arc tangent that a compiler turns into vector instructions.

The library's functions are called for one number at a time and take ten times as long as all the rest of the mosaic.
The polynomials below were fitted at Chebyshev nodes of their interval; what they leave is smaller than the rounding of
single precision (sine and cosine within 1e-7, arc tangent within 3e-7 rad).
"""

from __future__ import annotations

import numba
import numpy as np

__all__ = ["EXACT_MATH", "arctan2", "weighted_phasor"]

EXACT_MATH = {"nnan", "nsz", "arcp", "contract"}
"""What the compiler may assume: no re-association, which would undo the two-part reduction of large angles."""

INV_PI = np.float32(1 / np.pi)
PI_HIGH, PI_LOW = np.float32(3.140625), np.float32(np.pi - 3.140625)
ZERO, ONE, TWO, HALF = np.float32(0), np.float32(1), np.float32(2), np.float32(0.5)
HALF_PI, PI = np.float32(np.pi / 2), np.float32(np.pi)
TINY = np.float32(1e-30)

# sin(r)/r and cos(r) in r² for |r| ≤ π/2
S0, S1, S2, S3, S4 = (np.float32(c) for c in (1.0, -0.16666658222, 0.0083330506459, -0.00019809046353, 2.6051661735e-6))
C0, C1, C2, C3, C4, C5 = (
    np.float32(c) for c in (1.0, -0.5, 0.041666634381, -0.0013888360700, 2.4760134692e-5, -2.6051077384e-7)
)
# atan(a)/a in a² for 0 ≤ a ≤ 1
A0, A1, A2, A3, A4, A5, A6, A7 = (
    np.float32(c)
    for c in (
        0.9999998977538578, -0.33331959724324023, 0.19969235394794482, -0.14016585042061866, 0.0990609689599303,
        -0.059367100788045885, 0.024166189521318514, -0.0046687733073601835,
    )
)  # fmt: skip


@numba.njit(cache=True, nogil=True, fastmath=EXACT_MATH)
def weighted_phasor(phase, at, weight, w_at, out, real, imag, n):  # pragma: no cover - compiled
    """Write w·cos φ and w·sin φ of n pixels; arrays are flat, offsets unsigned.

    Parameters
    ----------
    phase, weight : ndarray of float32
        Phase in rad, finite, read from offset ``at``; weight from ``w_at``.
    out : ndarray of float32
        Written from the offsets ``real`` and ``imag`` on.
    """
    for i in range(n):
        x = phase[at + i]
        k = np.rint(x * INV_PI)
        r = (x - k * PI_HIGH) - k * PI_LOW
        # sine and cosine of r + kπ are those of r with the sign of (−1)^k
        g = weight[w_at + i] * (ONE - TWO * abs(k - TWO * np.rint(k * HALF)))
        q = r * r
        out[real + i] = g * (C0 + q * (C1 + q * (C2 + q * (C3 + q * (C4 + q * C5)))))
        out[imag + i] = g * r * (S0 + q * (S1 + q * (S2 + q * (S3 + q * S4))))


@numba.njit(cache=True, nogil=True, fastmath=EXACT_MATH)
def arctan2(y, x):  # pragma: no cover - compiled
    """Angle of (x, y) in rad, 0 at the origin."""
    ax, ay = abs(x), abs(y)
    a = min(ax, ay) / max(max(ax, ay), TINY)
    q = a * a
    angle = a * (A0 + q * (A1 + q * (A2 + q * (A3 + q * (A4 + q * (A5 + q * (A6 + q * A7)))))))
    angle = HALF_PI - angle if ay > ax else angle
    angle = PI - angle if x < ZERO else angle
    return -angle if y < ZERO else angle
