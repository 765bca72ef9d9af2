"""How a detector stands in the beam, measured from a scan: bad pixels, centre, orientation.

The zero frequency is found where the mean frame is its own image under a half turn: far fields of many places of a
sample average to one that is as symmetric as the pupil. The orientation is the one under which a reconstruction
explains frames that it has not seen; frames alone leave a twin, which a stated prior resolves.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.fourier import fft2, fftfreq, fftshift, ifft2, ifftshift
from ptycho_bluesky.geometry import D4_OPERATIONS, Geometry, apply_d4
from ptycho_bluesky.preprocess import fill_pixels
from ptycho_bluesky.reconstruction.engine import frame_misfit, reconstruct
from ptycho_bluesky.reconstruction.options import EpieOptions
from ptycho_bluesky.records import Measurement, Reconstruction

__all__ = [
    "PRIORS",
    "BeamCentre",
    "Orientation",
    "Prior",
    "find_bad_pixels",
    "find_centre",
    "measure_orientation",
    "twin_of",
]

logger = logging.getLogger(__name__)

Prior = Literal["none", "absorbing", "defocus-positive", "defocus-negative"]
PRIORS: tuple[Prior, ...] = ("none", "absorbing", "defocus-positive", "defocus-negative")
"""What resolves the twin: nothing; that the sample's phase is negative where it absorbs (n = 1 − δ + iβ with δ, β > 0);
or on which side of the focus it stands (positive: downstream)."""

HOT_FACTOR, HOT_COUNTS = 8.0, 3.0
"""A pixel whose mean is so many times its neighbourhood's median, and so many counts above it, is hot."""
DEAD_COUNTS = 0.5
"""A pixel that never counts where its neighbourhood counts this much on average is dead."""
NEIGHBOURHOOD_PX = 5
PASSES = 3
"""Times that bad pixels are taken from opposite the centre found before."""
CANDIDATES = ("identity", "rot90", "flip_rows", "transpose")
"""One of each pair of twins."""
DEFOCUS_RANGE_M, DEFOCUS_STEPS = 2e-3, 161
MIN_CORRELATION = 0.1
MARGIN = 1.1
"""Ratio of the second-best error to the best from which on the best counts as found."""


def find_bad_pixels(mean: NDArray[np.float64], always_unusable: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
    """Pixels that are hot or dead.

    Parameters
    ----------
    mean : ndarray of float64, shape (H, W)
        Mean counts over the frames of a scan.
    always_unusable : ndarray of bool, shape (H, W), optional
        Pixels that carried the detector's mark in every frame.

    Returns
    -------
    ndarray of bool, shape (H, W)
    """
    bad = np.zeros(mean.shape, dtype=bool) if always_unusable is None else always_unusable.copy()
    if bad.all():
        raise InputError("a detector without a usable pixel", "every pixel carries its mark", "check the frames")
    around = median_filter(np.where(bad, np.median(mean[~bad]), mean), NEIGHBOURHOOD_PX, mode="nearest")
    hot = (mean > HOT_FACTOR * around) & (mean > around + HOT_COUNTS)
    return bad | hot | ((mean == 0) & (around > DEAD_COUNTS))


@dataclass(frozen=True)
class BeamCentre:
    """Where the zero frequency lies on the detector.

    Attributes
    ----------
    symmetry_px : tuple of float
        Centre (row, col) of the half turn that maps the mean frame onto itself.
    mass_px : tuple of float
        Its centre of mass.
    contrast : float
        Correlation of the mean frame with its half turn about ``symmetry_px``, up to 1.
    """

    symmetry_px: tuple[float, float]
    mass_px: tuple[float, float]
    contrast: float

    @property
    def locked_px(self) -> tuple[int, int]:
        """The pixel that is used: the nearest to ``symmetry_px``."""
        return round(self.symmetry_px[0]), round(self.symmetry_px[1])


def find_centre(mean: NDArray[np.float64], bad: NDArray[np.bool_] | None = None) -> BeamCentre:
    """Find the zero frequency of far-field frames.

    Parameters
    ----------
    mean : ndarray of float64, shape (H, W)
        Mean counts; zero frequency anywhere on the detector.
    bad : ndarray of bool, shape (H, W), optional
        Pixels that do not count.

    Raises
    ------
    InputError
        There is no light.

    Notes
    -----
    The self-convolution (r ⋆ r)(s) = Σ r(x)·r(s − x) of the root of the counts is highest at twice the centre; its peak
    is found to a fraction of a pixel by a parabola. The root keeps a bright spot from deciding alone. Bad pixels take
    the value of the one opposite to them.
    """
    counts = np.maximum(np.asarray(mean, dtype=np.float64), 0.0)
    if bad is not None and bad.any():
        counts = fill_pixels(counts[None], bad)[0]
    if not counts.sum() > 0:
        raise InputError("a mean frame without light", "its centre cannot be found", "open the shutter")
    place, contrast = _symmetry(np.sqrt(counts))
    if bad is not None and bad.any():
        for _ in range(PASSES):
            # what a bad pixel would show stands opposite
            counts = _opposite(counts, bad, place)
            place, contrast = _symmetry(np.sqrt(counts))
    rows, cols = np.indices(mean.shape)
    total = counts.sum()
    mass = (float((counts * rows).sum() / total), float((counts * cols).sum() / total))
    return BeamCentre(place, mass, contrast)


def _symmetry(root: NDArray[np.float64]) -> tuple[tuple[float, float], float]:
    """Centre of the best half turn, and the correlation with it."""
    shape = (2 * root.shape[0], 2 * root.shape[1])
    spectrum: NDArray[np.complex128] = fft2(root, shape=shape)
    product: NDArray[np.complex128] = ifft2(spectrum * spectrum)
    score = np.real(product)
    peak = np.unravel_index(int(np.argmax(score)), shape)
    row = _parabola(score[:, peak[1]], int(peak[0]))
    col = _parabola(score[peak[0], :], int(peak[1]))
    return (row / 2.0, col / 2.0), float(score[peak] / np.sum(root**2))


def _opposite(counts: NDArray[np.float64], bad: NDArray[np.bool_], centre: tuple[float, float]) -> NDArray[np.float64]:
    """Bad pixels replaced by those opposite to them, where these are there and good."""
    row, col = np.nonzero(bad)
    other = np.rint(2 * np.array(centre)[:, None] - np.stack([row, col])).astype(np.int64)
    inside = np.flatnonzero(((other >= 0) & (other < np.array(counts.shape)[:, None])).all(axis=0))
    known = inside[~bad[other[0, inside], other[1, inside]]]
    filled = counts.copy()
    filled[row[known], col[known]] = counts[other[0, known], other[1, known]]
    return filled


def _parabola(values: NDArray[np.float64], at: int) -> float:
    """Place of the maximum near an index, from the three values about it."""
    before, here, after = values[at - 1], values[at], values[(at + 1) % len(values)]
    bend = before - 2.0 * here + after
    return at + (0.5 * float((before - after) / bend) if bend < 0 else 0.0)


def twin_of(operation: str) -> str:
    """The other orientation that explains the same frames, with the conjugate object: followed by a half turn."""
    marker = np.arange(9).reshape(3, 3)
    turned = apply_d4(apply_d4(marker, operation), "rot180")
    return next(name for name in D4_OPERATIONS if np.array_equal(apply_d4(marker, name), turned))


@dataclass(frozen=True)
class Orientation:
    """Which of the detector's eight orientations agrees with the positions.

    Attributes
    ----------
    operation : str
        The one to use.
    twin : str
        The other that explains the frames as well.
    resolved_by : str
        The prior that decided between the two; "" when it is ambiguous.
    errors : dict of str to float
        Normalised error on frames left out, of one orientation of each pair.
    found : bool
        Whether the best pair is better than the next by more than `MARGIN`.
    """

    operation: str
    twin: str
    resolved_by: str
    errors: Mapping[str, float]
    found: bool

    @property
    def ambiguous(self) -> bool:
        """Whether the twin could not be told from it."""
        return not self.resolved_by


def measure_orientation(
    measurement: Measurement,
    prior: Prior = "none",
    *,
    options: EpieOptions | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Orientation:
    """Reconstruct a scan in one orientation of each pair of twins and compare how frames left out are explained.

    Parameters
    ----------
    measurement : Measurement
        Square, centred frames as the detector laid them, with their positions.
    prior : str
        One of `PRIORS`.
    options : EpieOptions, optional
        20 passes with a tenth of the frames left out by default.
    progress : callable, optional
        ``progress(done, total, name)``.

    Raises
    ------
    InputError
        The prior is unknown, or the measurement cannot be reconstructed.
    """
    if prior not in PRIORS:
        raise InputError(f"prior {prior!r}", f"known ones are {', '.join(PRIORS)}")
    if prior.startswith("defocus") and measurement.geometry is None:
        raise InputError(f"prior {prior!r}", "the focus is found in metres", "state the geometry")
    options = options or EpieOptions(iterations=20, holdout_fraction=0.1)
    found: dict[str, tuple[float, Reconstruction]] = {}
    image = np.asarray(measurement.image)
    for done, name in enumerate(CANDIDATES):
        if progress is not None:
            progress(done, len(CANDIDATES), name)
        turned = replace(measurement, image=apply_d4(image, name), mask=_turned_mask(measurement, name), probe=None)
        result = reconstruct(turned, options)
        found[name] = (_held_out_error(result, turned, options), result)
    order = sorted(found, key=lambda name: found[name][0])
    best, second = (found[name][0] for name in order[:2])
    chosen, twin = order[0], twin_of(order[0])
    sign = _prior_sign(found[chosen][1], prior, measurement.geometry)
    if sign < 0:
        chosen, twin = twin, chosen
    if not sign:
        logger.warning("orientation %s or its twin %s: the frames alone cannot tell", chosen, twin)
    errors = {name: found[name][0] for name in order}
    return Orientation(chosen, twin, prior if sign else "", errors, bool(second > MARGIN * best))


def _turned_mask(measurement: Measurement, operation: str) -> NDArray[np.bool_] | None:
    return None if measurement.mask is None else np.ascontiguousarray(apply_d4(measurement.mask, operation))


def _held_out_error(result: Reconstruction, measurement: Measurement, options: EpieOptions) -> float:
    left_out = np.asarray(result.provenance["frames_held_out"], dtype=np.int64)
    if not len(left_out):
        raise InputError("no frames left out", "orientations are compared on such", "set holdout_fraction")
    rows = np.flatnonzero(np.isin(measurement.frame_index, left_out))
    misfit, scan = frame_misfit(result, measurement, rows, options)
    return float(misfit.sum() / scan.amplitude.double().square().sum().item())


def _prior_sign(result: Reconstruction, prior: Prior, geometry: Geometry | None) -> int:
    """1 when the prior says that a reconstruction is the true one, −1 for its twin, 0 when it cannot tell."""
    if prior == "none":
        return 0
    if prior == "absorbing":
        return _absorption_sign(result)
    assert geometry is not None
    defocus_m = defocus_of(result.probe, geometry)
    wanted = 1 if prior == "defocus-positive" else -1
    return wanted * int(np.sign(defocus_m))


def _absorption_sign(result: Reconstruction) -> int:
    """Sign of the correlation of ln A with φ where the sample is lit: positive when it absorbs where φ is negative."""
    from ptycho_bluesky.reconstruction.gauge import LIT_FRACTION, illumination, lit_median

    light = illumination(result.probe, result.frame.to_px(result.position_m), result.frame.shape)
    lit = light > LIT_FRACTION * lit_median(light)
    values = np.asarray(result.object)[lit]
    phase = np.angle(values * np.exp(-1j * np.angle(values.mean())))
    amplitude = np.log(np.maximum(np.abs(values), 1e-3))
    correlation = float(np.corrcoef(phase, amplitude)[0, 1])
    return int(np.sign(correlation)) if abs(correlation) >= MIN_CORRELATION else 0


def defocus_of(probe: NDArray[Any], geometry: Geometry) -> float:
    """Distance of the sample downstream of the focus, m: back over which the probe is narrowest.

    Parameters
    ----------
    probe : ndarray of complex, shape (modes, N, N)
    geometry : Geometry
    """
    strongest = probe[np.argmax((np.abs(probe) ** 2).sum(axis=(1, 2)))].astype(np.complex128)
    q = fftfreq(geometry.num_px, geometry.object_pixel_m)
    spectrum = fft2(ifftshift(strongest))
    q2 = q[:, None] ** 2 + q[None, :] ** 2
    distances = np.linspace(-DEFOCUS_RANGE_M, DEFOCUS_RANGE_M, DEFOCUS_STEPS)

    def sharpness(z: float) -> float:
        # propagation by −z multiplies the spectrum by exp(+iπλz|q|²) (Goodman, Fourier Optics, §4.2)
        wave = fftshift(ifft2(spectrum * np.exp(1j * np.pi * geometry.wavelength_m * z * q2)))
        return float(np.sum(np.abs(wave) ** 4))

    return float(distances[int(np.argmax([sharpness(z) for z in distances]))])
