"""How far two independent reconstructions of one object agree: by ring of spatial frequency, and in one number.

Both are compared in one gauge (common shift to a fraction of a pixel, linear ramp, phase and scale removed), in the
area that both have lit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_cdt

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.fourier import fftfreq
from ptycho_bluesky.metrics import GaugeFit, fit_gauge, fourier_ring_correlation
from ptycho_bluesky.reconstruction.gauge import LIT_FRACTION, illumination, lit_median
from ptycho_bluesky.records import Reconstruction

__all__ = ["RingCorrelation", "correlate_rings", "first_crossing", "ring_threshold"]

HALF_BIT, ONE_BIT = (np.sqrt(2.0) - 1.0) / 2.0, 0.5
"""Signal-to-noise ratio of each half at which both together tell log2(1 + 2s) = half a bit, or one, a component."""
ONE_SEVENTH = 1.0 / 7.0
MIN_SIDE_PX = 16
FIT_SIDE_PX = 160
FIRST_RINGS = 4


@dataclass(frozen=True)
class RingCorrelation:
    """Agreement of two reconstructions.

    Attributes
    ----------
    freq : ndarray of float64, shape (k,)
        Cycles a pixel in the middle of each ring, up to 0.5.
    frc : ndarray of float64, shape (k,)
        Correlation on it.
    half_bit, one_bit : ndarray of float64, shape (k,)
        Threshold curves of `ring_threshold`.
    resolution_px : float
        Half period at which the correlation first falls below the half-bit curve; 1 if it never does, NaN if it lies
        below from the beginning.
    resolution_one_bit_px, resolution_one_seventh_px : float
        The same with the other two thresholds.
    resolution_m : float
        ``resolution_px`` in metres; NaN where the pixel is unknown.
    correlation : float
        Correlation of the complex objects over the lit area, means removed, 0 to 1.
    side_px : int
        Side of the square, inside the lit area, on which the rings were taken.
    shift_px, ramp_rad_per_px : tuple of float
        What lay between the two.
    passes : int
        Passes of each.
    duration_s : float
        Wall-clock time that the two took; 0 where they were there already.
    """

    freq: NDArray[np.float64]
    frc: NDArray[np.float64]
    half_bit: NDArray[np.float64]
    one_bit: NDArray[np.float64]
    resolution_px: float
    resolution_one_bit_px: float
    resolution_one_seventh_px: float
    resolution_m: float
    correlation: float
    side_px: int
    shift_px: tuple[float, float]
    ramp_rad_per_px: tuple[float, float]
    passes: int = 0
    duration_s: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        content = asdict(self)
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in content.items()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> RingCorrelation:
        """Inverse of `as_dict`."""
        values = {name: content[name] for name in cls.__dataclass_fields__}
        curves = {name: np.asarray(values[name], dtype=np.float64) for name in ("freq", "frc", "half_bit", "one_bit")}
        pairs = {name: tuple(values[name]) for name in ("shift_px", "ramp_rad_per_px")}
        numbers = ("resolution_px", "resolution_one_bit_px", "resolution_one_seventh_px", "resolution_m")
        # JSON writers turn what is not a number into null.
        known = {name: np.nan if values[name] is None else values[name] for name in numbers}
        return cls(**{**values, **curves, **pairs, **known})


def ring_threshold(components: NDArray[Any], snr: float) -> NDArray[np.float64]:
    """Correlation expected of rings whose components have a signal-to-noise ratio.

    Parameters
    ----------
    components : ndarray, shape (k,)
        Independent Fourier components on each ring.
    snr : float
        Of power, in each of the two images: `HALF_BIT`, `ONE_BIT`.

    Returns
    -------
    ndarray of float64, shape (k,)

    Notes
    -----
    T(n) = (s + (2√s + 1)/√n) / (s + 1 + 2√s/√n), van Heel & Schatz, J. Struct. Biol. 151, 250 (2005), eq. 16.
    """
    root = np.sqrt(np.asarray(components, dtype=np.float64))
    return (snr + (2.0 * np.sqrt(snr) + 1.0) / root) / (snr + 1.0 + 2.0 * np.sqrt(snr) / root)


def first_crossing(freq: NDArray[np.float64], frc: NDArray[np.float64], threshold: NDArray[np.float64]) -> float:
    """Half period, in pixels, at which a ring correlation first falls below a threshold curve, all of shape (k,).

    The first rings may lie below: a curve for few components is near 1. Returns 1 if the correlation stays above to the
    last ring, NaN if none of the first `FIRST_RINGS` lies above.
    """
    excess = frc - threshold
    above = np.flatnonzero(excess[:FIRST_RINGS] >= 0)
    if not len(above):
        return float("nan")
    below = np.flatnonzero(excess[above[0] :] < 0)
    if not len(below):
        return 1.0
    k = int(below[0] + above[0])
    crossing = np.interp(0.0, [excess[k], excess[k - 1]], [freq[k], freq[k - 1]])
    return float(0.5 / crossing)


def correlate_rings(first: Reconstruction, second: Reconstruction, *, max_shift_px: float = 16.0) -> RingCorrelation:
    """Compare two reconstructions of one object.

    Parameters
    ----------
    first, second : Reconstruction
        At one pixel size, from different frames.
    max_shift_px : float
        Largest shift between them that is looked for.

    Returns
    -------
    RingCorrelation
        Of the complex objects on the largest square that both have lit.

    Raises
    ------
    InputError
        Pixels differ, or the commonly lit area is smaller than `MIN_SIDE_PX`.

    Notes
    -----
    The Hann window mixes neighbouring components: of n on a ring (Σw²)²/(Σ1·Σw⁴), about a quarter, count as independent
    in the threshold curves.
    """
    one, other, mask = _on_one_canvas(first, second)
    box = _largest_square(mask)
    fit = _registration(one, other, box, max_shift_px)
    other = fit.apply(other)
    other *= np.exp(-1j * np.angle(np.vdot(one[mask], other[mask])))
    freq, frc = fourier_ring_correlation(one[box], other[box])
    components = _independent_components(box[0].stop - box[0].start)[: len(freq)]
    half_bit, one_bit = (ring_threshold(components, snr) for snr in (HALF_BIT, ONE_BIT))
    resolution = first_crossing(freq, frc, half_bit)
    known = first.provenance.get("pixel_size_known", first.geometry is not None)
    return RingCorrelation(
        freq,
        frc,
        half_bit,
        one_bit,
        resolution,
        first_crossing(freq, frc, one_bit),
        first_crossing(freq, frc, np.full_like(frc, ONE_SEVENTH)),
        resolution * first.frame.pixel_size_m if known else float("nan"),
        _correlation(one[mask], other[mask]),
        int(box[0].stop - box[0].start),
        fit.shift_px,
        fit.ramp_rad_per_px,
    )


def _on_one_canvas(
    first: Reconstruction, second: Reconstruction
) -> tuple[NDArray[np.complex128], NDArray[np.complex128], NDArray[np.bool_]]:
    """Both objects where their canvases overlap, to the nearest pixel, and where both are lit."""
    if not np.isclose(first.frame.pixel_size_m, second.frame.pixel_size_m, rtol=1e-6, atol=0.0):
        raise InputError(
            f"objects with pixels of {first.frame.pixel_size_m:.4g} and {second.frame.pixel_size_m:.4g}",
            "two reconstructions are compared pixel by pixel",
            "reconstruct both with one geometry",
        )
    move = np.rint(first.frame.to_px(np.asarray(second.frame.origin_m))).astype(np.int64)
    low = np.maximum(move, 0)
    high = np.minimum(np.asarray(first.frame.shape), move + second.frame.shape)
    if (high - low < MIN_SIDE_PX).any():
        raise InputError("objects that do not overlap", "they are of one area", "compare halves of one scan")
    own = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    its = tuple(slice(a, b) for a, b in zip(low - move, high - move, strict=True))
    mask = _lit(first)[own] & _lit(second)[its]
    pair = (np.asarray(r.object, dtype=np.complex128)[w] for r, w in ((first, own), (second, its)))
    one, other = pair
    return one, other, mask


def _lit(reconstruction: Reconstruction) -> NDArray[np.bool_]:
    frame = reconstruction.frame
    light = illumination(reconstruction.probe, frame.to_px(reconstruction.position_m), frame.shape)
    return light > LIT_FRACTION * lit_median(light)


def _registration(
    one: NDArray[np.complex128], other: NDArray[np.complex128], box: tuple[slice, slice], max_shift_px: float
) -> GaugeFit:
    """Shift and ramp that take the other onto the one, from the middle of the box: some 10⁴ pixels tell both."""
    side = min(FIT_SIDE_PX, box[0].stop - box[0].start)
    first = [part.start + (part.stop - part.start - side) // 2 for part in box]
    middle = tuple(slice(start, start + side) for start in first)
    inside = np.zeros((side, side), dtype=bool)
    margin = side // 16
    # The fit shifts periodically: what comes in from the other side does not count.
    inside[margin : side - margin, margin : side - margin] = True
    found = fit_gauge(other[middle], one[middle], inside, max_shift_px=min(max_shift_px, side / 4))
    # The factor depends on where the ramp is zero, and does not enter a correlation.
    return GaugeFit(1.0, found.ramp_rad_per_px, found.shift_px)


def _largest_square(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    """Slices of the largest square with an odd side inside a mask."""
    # A frame of False: the distance to the rim of the array counts as well.
    distance = np.asarray(distance_transform_cdt(np.pad(mask, 1), metric="chessboard"))
    at = np.unravel_index(int(np.argmax(distance)), distance.shape)
    reach = int(distance[at]) - 1
    if 2 * reach + 1 < MIN_SIDE_PX:
        raise InputError(
            f"a commonly lit area that holds a square of {max(2 * reach + 1, 0)} pixels",
            f"rings are taken on at least {MIN_SIDE_PX}",
            "take more frames",
        )
    row, col = (int(v) - 1 for v in at)
    return slice(row - reach, row + reach + 1), slice(col - reach, col + reach + 1)


def _independent_components(size: int) -> NDArray[np.float64]:
    """Independent components on the rings 1, 2, … of a tapered square."""
    q = fftfreq(size)
    ring = np.rint(np.hypot(q[:, None], q[None, :]) * size).astype(np.int64).ravel()
    window = np.hanning(size)
    share = (np.sum(window**2) ** 2 / (size * np.sum(window**4))) ** 2
    return np.maximum(np.bincount(ring)[1 : size // 2 + 1] * share, 1.0)


def _correlation(one: NDArray[np.complex128], other: NDArray[np.complex128]) -> float:
    one, other = one - one.mean(), other - other.mean()
    norm = np.linalg.norm(one) * np.linalg.norm(other)
    return float(np.abs(np.vdot(one, other)) / norm) if norm > 0 else 0.0
