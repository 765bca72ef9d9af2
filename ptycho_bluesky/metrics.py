"""Figures of merit of images and reconstructions, each defined once.

Intensities fix an object only up to gauges: a constant phase, a linear ramp, a scale and a common shift with the probe.
Whatever is compared here is compared after these are removed, in the area that the beam lit, and says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.fourier import fft2, fftfreq
from ptycho_bluesky.gauges import GaugeFit, fit_gauge, phase_rms_rad, remove_gauge

__all__ = [
    "GaugeFit",
    "SsimResult",
    "fit_gauge",
    "fourier_ring_correlation",
    "mosaic_ssim",
    "pearson",
    "phase_rms_rad",
    "remove_gauge",
    "resolution_px",
    "ssim_map",
    "wrap",
]

SSIM_SIGMA_PX = 1.5
SSIM_TRUNCATE = 3.5
MIN_COVERAGE = 3
MIN_ILLUMINATION = 0.1
MIN_CORRELATION_OVERLAP = 0.5
"""Part of the mask that must remain in common for a shift to be considered."""
MIN_SUBPIXEL_SHIFT = 0.1
"""Fractions of a pixel below this are not worth an interpolation, which blurs."""
FWHM_PER_SIGMA = 2.0 * np.sqrt(2.0 * np.log(2.0))


def wrap(phase_rad: NDArray[Any]) -> NDArray[Any]:
    """Phase wrapped into [−π, π)."""
    return (phase_rad + np.pi) % (2.0 * np.pi) - np.pi


def _circular_mean(phase_rad: NDArray[Any]) -> float:
    return float(np.angle(np.mean(np.exp(1j * phase_rad))))


@dataclass(frozen=True)
class SsimResult:
    """Structural similarity of a mosaic, and what trivial images score in the same place.

    Attributes
    ----------
    ssim : float
        Of the image; NaN when no whole window lies in the mask.
    constant : float
        Of a constant image.
    blurred : float
        Of the reference blurred to the probe's width; NaN when no width was given.
    shift_px : tuple of float
        Registration (rows, cols) that was applied to the image.
    masked_px : int
        Pixels that are scored: centres of whole windows inside the mask.
    offset_rad : float
        Constant by which the image lay above the reference.
    data_range_rad : float
        Peak to peak of the reference in the mask.
    pearson : float
        Correlation over the scored pixels. Structural similarity cannot be trusted to tell a sign: where mean and
        structure are both inverted their product is positive. This one can.
    """

    ssim: float
    constant: float
    blurred: float
    shift_px: tuple[float, float]
    masked_px: int
    offset_rad: float
    data_range_rad: float
    pearson: float


def ssim_map(
    image: NDArray[Any], reference: NDArray[Any], data_range: float, sigma_px: float = SSIM_SIGMA_PX
) -> NDArray[np.float64]:
    """Structural similarity about every pixel, shape (rows, cols), with a Gaussian window.

    Wang et al., IEEE Trans. Image Process. 13, 600 (2004), K1 = 0.01, K2 = 0.03, population covariances.
    """
    if not data_range > 0:
        raise InputError(f"data_range = {data_range}", "the reference must have contrast")

    def blur(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return scipy.ndimage.gaussian_filter(values, sigma_px, truncate=SSIM_TRUNCATE, mode="constant")

    a, b = np.asarray(image, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return luminance * (2 * covariance + c2) / (var_a + var_b + c2)


def _scored_mask(
    coverage: NDArray[Any], illumination: NDArray[Any], min_coverage: int, min_illumination: float, sigma_px: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The mask, and within it the centres of whole windows."""
    mask = np.asarray(coverage) >= min_coverage
    lit = np.asarray(illumination, dtype=np.float64)
    if mask.any():
        mask &= lit >= min_illumination * np.median(lit[mask])
    width = 2 * int(SSIM_TRUNCATE * sigma_px + 0.5) + 1
    # An erosion by a square is two by lines.
    return mask, _eroded(_eroded(mask, (width, 1)), (1, width))


def _eroded(mask: NDArray[np.bool_], structure: tuple[int, int]) -> NDArray[np.bool_]:
    return np.asarray(scipy.ndimage.binary_erosion(mask, np.ones(structure, dtype=bool)), dtype=bool)


def mosaic_ssim(
    image_rad: NDArray[Any],
    reference_rad: NDArray[Any],
    coverage: NDArray[Any],
    illumination: NDArray[Any],
    *,
    probe_width_px: float | None = None,
    max_shift_px: int = 4,
    min_coverage: int = MIN_COVERAGE,
    min_illumination: float = MIN_ILLUMINATION,
    sigma_px: float = SSIM_SIGMA_PX,
) -> SsimResult:
    """Structural similarity of a stitched phase with its reference, on the same canvas.

    Parameters
    ----------
    image_rad, reference_rad : ndarray of float, shape (rows, cols)
        Phases; wrapped ones may be given.
    coverage : ndarray of int, shape (rows, cols)
        Frames whose patch reaches the pixel; at least ``min_coverage`` are asked for.
    illumination : ndarray of float, shape (rows, cols)
        Light on the pixel (e.g. the sum of |P|² over the positions); at least ``min_illumination`` of the median over
        the covered pixels is asked for.
    probe_width_px : float, optional
        Full width at half maximum with which the reference is blurred for the figure beside it.
    max_shift_px : int
        The image is registered by one global sub-pixel shift of at most this; 0 for none.
    min_coverage, min_illumination, sigma_px
        Of the definition; changed for tests only.

    Returns
    -------
    SsimResult

    Raises
    ------
    InputError
        The arrays differ in shape, or hold values that are not finite inside the mask.

    Notes
    -----
    Only windows that lie wholly in the mask count. The constant is a gauge: image and reference each get the circular
    mean 0 over the mask, so a constant image scores about 0 whatever its value. ``data_range`` is the peak to peak of
    the reference in the mask. No rescaling, no ramp, no empty canvas.
    """
    shapes = {np.shape(array) for array in (image_rad, reference_rad, coverage, illumination)}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise InputError(f"arrays of shapes {sorted(shapes)}", "image, reference, coverage and illumination are alike")
    mask, centres = _scored_mask(coverage, illumination, min_coverage, min_illumination, sigma_px)
    if not centres.any():
        nan = float("nan")
        return SsimResult(nan, nan, nan, (0.0, 0.0), 0, nan, nan, nan)
    image, reference = np.asarray(image_rad, dtype=np.float64), np.asarray(reference_rad, dtype=np.float64)
    if not (np.isfinite(image[mask]).all() and np.isfinite(reference[mask]).all()):
        raise InputError("phases that are not finite inside the mask", "a covered pixel has a phase")
    mean_reference = _circular_mean(reference[mask])
    target = np.where(mask, wrap(reference - mean_reference), 0.0)
    data_range = float(np.ptp(target[mask]))
    if not data_range > 0:
        raise InputError("a reference without contrast", "its peak to peak in the mask is the data range")
    offset = _circular_mean(image[mask])
    zeroed = np.where(mask, wrap(image - offset), 0.0)
    shift = _best_shift_px(zeroed, target, mask, max_shift_px) if max_shift_px else (0.0, 0.0)
    if shift != (0.0, 0.0):
        moved = _shift_phase(zeroed, mask, shift)
        mask, centres = mask & moved[1], _eroded(centres & moved[1], (3, 3))
        zeroed = np.where(mask, moved[0], 0.0)
    # A phase that wraps in one image and not in the other is the same phase.
    zeroed = np.where(mask, target + wrap(zeroed - target), 0.0)

    def score(values: NDArray[np.float64]) -> float:
        return float(ssim_map(values, target, data_range, sigma_px)[centres].mean())

    blurred = float("nan")
    if probe_width_px is not None:
        blurred = score(_masked_blur(target, mask, probe_width_px / FWHM_PER_SIGMA))
    return SsimResult(
        score(zeroed),
        score(np.zeros_like(target)),
        blurred,
        shift,
        int(centres.sum()),
        float(wrap(np.asarray(offset - mean_reference))),
        data_range,
        pearson(zeroed, target, centres),
    )


def _shifted_slices(shape: tuple[int, ...], shift: tuple[int, int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Slices of source and target under which ``target[i + shift] = source[i]``."""
    source = tuple(slice(max(0, -s), min(n, n - s)) for s, n in zip(shift, shape, strict=True))
    target = tuple(slice(max(0, s), min(n, n + s)) for s, n in zip(shift, shape, strict=True))
    return source, target


def _masked_correlation(a: NDArray[np.float64], b: NDArray[np.float64], both: NDArray[np.bool_]) -> float:
    x, y = a[both], b[both]
    if len(x) < 2:
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    norm = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / norm) if norm > 0 else 0.0


def _best_shift_px(
    image: NDArray[np.float64], reference: NDArray[np.float64], mask: NDArray[np.bool_], limit: int
) -> tuple[float, float]:
    """Shift of the image, at most ``limit``, with the highest correlation inside the common mask; 0 where none is."""
    rows, cols = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    box = (slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1))
    image, reference, mask = image[box], reference[box], mask[box]
    span = np.arange(-limit, limit + 1)
    score = np.full((len(span), len(span)), -np.inf)
    for i, dy in enumerate(span):
        for j, dx in enumerate(span):
            source, target = _shifted_slices(mask.shape, (int(dy), int(dx)))
            both = mask[source] & mask[target]
            if both.sum() >= MIN_CORRELATION_OVERLAP * mask.sum():
                score[i, j] = _masked_correlation(image[source], reference[target], both)
    best = np.unravel_index(np.argmax(score), score.shape)
    if not score[best] > 0.0:
        return 0.0, 0.0
    fine = [float(span[k]) for k in best]
    for axis, k in enumerate(best):
        line = score[:, best[1]] if axis == 0 else score[best[0], :]
        if 0 < k < len(span) - 1 and np.isfinite(line[[k - 1, k + 1]]).all():
            # Vertex of the parabola through the peak and its neighbours.
            curvature = line[k - 1] - 2 * line[k] + line[k + 1]
            fine[axis] += float(0.5 * (line[k - 1] - line[k + 1]) / curvature) if curvature < 0 else 0.0
            if abs(fine[axis] - span[k]) < MIN_SUBPIXEL_SHIFT:
                fine[axis] = float(span[k])
    return fine[0], fine[1]


def _shift_phase(
    phase_rad: NDArray[np.float64], mask: NDArray[np.bool_], shift_px: tuple[float, float]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Shifted phase, by cubic splines on exp(iφ), and where it comes from inside the mask alone."""
    wave = np.exp(1j * np.where(mask, phase_rad, 0.0))
    real, imag = (
        scipy.ndimage.shift(part, shift_px, order=3, mode="nearest") for part in (np.real(wave), np.imag(wave))
    )
    inside = scipy.ndimage.shift(mask.astype(np.float64), shift_px, order=1, mode="constant") > 0.999
    return np.arctan2(imag, real), inside


def _masked_blur(values: NDArray[np.float64], mask: NDArray[np.bool_], sigma_px: float) -> NDArray[np.float64]:
    """Gaussian blur that mixes pixels of the mask only; 0 outside."""
    total = scipy.ndimage.gaussian_filter(np.where(mask, values, 0.0), sigma_px, mode="constant")
    weight = scipy.ndimage.gaussian_filter(mask.astype(np.float64), sigma_px, mode="constant")
    return np.where(mask, total / np.maximum(weight, 1e-12), 0.0)


def pearson(a: NDArray[Any], b: NDArray[Any], mask: NDArray[np.bool_] | None = None) -> float:
    """Pearson's correlation of two images inside a mask; NaN where one of them is constant.

    Parameters
    ----------
    a, b : ndarray of float, alike in shape
    mask : ndarray of bool, optional
        Everything by default.
    """
    x, y = (np.asarray(v, dtype=np.float64)[... if mask is None else mask].ravel() for v in (a, b))
    if x.shape != y.shape or len(x) < 2:
        raise InputError(f"{x.size} and {y.size} values", "a correlation compares two images of one shape, ≥ 2 pixels")
    x, y = x - x.mean(), y - y.mean()
    norm = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / norm) if norm > 0 else float("nan")


def fourier_ring_correlation(
    a: NDArray[Any], b: NDArray[Any], *, taper: bool = True
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Correlation of two images on rings of spatial frequency.

    Parameters
    ----------
    a, b : ndarray of float or complex, shape (rows, cols)
        Independent images of one thing, registered and in one gauge; cropped to a central square.
    taper : bool
        Multiply by a Hann window, so that the edges of the crop do not correlate.

    Returns
    -------
    freq : ndarray of float64, shape (N // 2,)
        Cycles a pixel at the middle of each ring, up to 0.5.
    frc : ndarray of float64, shape (N // 2,)
        Real part of the normalised correlation (van Heel and Schatz, J. Struct. Biol. 151, 250 (2005)); 0 on empty
        rings.
    """
    if a.shape != b.shape or a.ndim != 2 or min(a.shape) < 8:
        raise InputError(f"images of shapes {a.shape} and {b.shape}", "both are of one shape and at least 8 × 8 pixels")
    n = min(a.shape)
    crop = tuple(slice((size - n) // 2, (size - n) // 2 + n) for size in a.shape)
    window = np.outer(np.hanning(n), np.hanning(n)) if taper else np.ones((n, n))
    spectra = [fft2((image[crop] - image[crop].mean()) * window) for image in (a, b)]
    q = fftfreq(n)
    ring = np.rint(np.hypot(q[:, None], q[None, :]) * n).astype(np.int64).ravel()

    def sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.bincount(ring, values.ravel())[1 : n // 2 + 1].astype(np.float64)

    cross = sums(np.real(spectra[0] * np.conj(spectra[1])))
    norm = np.sqrt(sums(np.abs(spectra[0]) ** 2) * sums(np.abs(spectra[1]) ** 2))
    frc = np.divide(cross, norm, out=np.zeros_like(cross), where=norm > 0)
    return np.arange(1, n // 2 + 1) / n, frc


def resolution_px(freq: NDArray[np.float64], frc: NDArray[np.float64], threshold: float = 1 / 7) -> float:
    """Half period, in pixels, at which the ring correlation first falls below the threshold; 1.0 (Nyquist) if never."""
    below = np.flatnonzero(frc < threshold)
    if not len(below):
        return 1.0
    k = int(below[0])
    if k == 0:
        return float(0.5 / freq[0])
    crossing = np.interp(threshold, [frc[k], frc[k - 1]], [freq[k], freq[k - 1]])
    return float(0.5 / crossing)
