"""Labels: what the network should read in each frame, cut from a reconstruction at the frame's true position.

Interpolation happens on the complex object: an angle must never be averaged, it wraps. The gauge of a scan is fixed
once for the whole scan, never per patch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.ndimage
from numpy.typing import ArrayLike, NDArray

from ptycho_bluesky._version import __version__
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.preprocess import Canonical
from ptycho_bluesky.reconstruction import frame_misfit
from ptycho_bluesky.reconstruction.gauge import LIT_FRACTION, flat_ramp, illumination, lit_median, remove_ramp
from ptycho_bluesky.reconstruction.options import EngineOptions
from ptycho_bluesky.reconstruction.prepare import frame_options
from ptycho_bluesky.records import LabelSet, Measurement, Reconstruction
from ptycho_bluesky.trust.light import Light

__all__ = ["LabelCheck", "check_labels", "illumination_weight", "label_gauge", "make_labels"]

Interpolation = Literal["linear", "cubic"]
SPLINE_ORDER = {"linear": 1, "cubic": 3}
VALID_FRACTION = 0.1
"""Illumination, relative to its peak, from which on a pixel of a patch is fully valid."""
MIN_HELD_OUT = 0.05
MAX_RATIO = 1.5
MIN_EXPLAINED = 0.65
ERROR_FLOOR = 1e-3
"""Errors below this are as good as none: their ratio says nothing."""


@dataclass(frozen=True)
class LabelCheck:
    """Verdict on the labels of a scan.

    Attributes
    ----------
    accepted : bool
    reason : str
        One sentence with the figures that decided.
    figures : dict of str to float
        ``error_used``, ``error_held_out``, ``ratio``, ``ratio_limit``, ``explained``, ``explained_limit``,
        ``held_out_fraction``, ``frames_used``, ``frames_held_out``.
    """

    accepted: bool
    reason: str
    figures: Mapping[str, float]


def label_gauge(
    reconstruction: Reconstruction,
) -> tuple[NDArray[np.complex128], NDArray[np.complex128], NDArray[np.bool_]]:
    """Object and probe in the gauge of labels.

    Parameters
    ----------
    reconstruction : Reconstruction
        Ours or from a file of others.

    Returns
    -------
    obj : ndarray of complex128, shape (rows, cols)
        Linear ramp removed (`flat_ramp`), circular mean of the phase 0 over the lit area.
    probe : ndarray of complex128, shape (modes, N, N)
        With the ramp that the object lost.
    lit : ndarray of bool, shape (rows, cols)
        Lit to at least 10 % of the median.
    """
    frame = reconstruction.frame
    probe = np.asarray(reconstruction.probe, dtype=np.complex128)
    light = illumination(probe, frame.to_px(reconstruction.position_m), frame.shape)
    lit = light > LIT_FRACTION * lit_median(light)
    obj = np.asarray(reconstruction.object, dtype=np.complex128)
    obj, probe = remove_ramp(obj, probe, flat_ramp(obj, light), frame)
    offset = np.angle(np.mean(np.exp(1j * np.angle(obj[lit]))))
    return obj * np.exp(-1j * offset), probe, lit


def make_labels(
    reconstruction: Reconstruction,
    measurement: Measurement,
    patch_shape: tuple[int, int] | None = None,
    pixel_size_m: float | None = None,
    *,
    interpolation: Interpolation = "cubic",
) -> LabelSet:
    """Cut a label for every frame that the reconstruction was made from or validated with.

    Parameters
    ----------
    reconstruction : Reconstruction
    measurement : Measurement
        The scan that was reconstructed.
    patch_shape : tuple of int, optional
        (h, w) of a label; by default that of a frame.
    pixel_size_m : float, optional
        Pixel of the labels; by default that of the object. A wider one is low-passed before it is sampled.
    interpolation : {"cubic", "linear"}
        Of the complex object. A linear one blurs by how far a position lies between pixels.

    Returns
    -------
    LabelSet
        Patch ``k`` has its centre ``[h//2, w//2]`` on the position of frame ``k``.

    Raises
    ------
    InputError
        The measurement is not the one that was reconstructed, or shape or pixel are not positive.
    """
    shape = tuple(np.shape(measurement.image)[1:]) if patch_shape is None else tuple(int(v) for v in patch_shape)
    if len(shape) != 2 or min(shape) < 1:
        raise InputError(f"patch_shape = {patch_shape}", "a label has positive (rows, cols)")
    known = measurement.pixel_size_m is not None
    if pixel_size_m is not None and not (known and np.isfinite(pixel_size_m) and pixel_size_m > 0):
        raise InputError(
            f"pixel_size_m = {pixel_size_m}",
            "it must be positive, and the reconstruction's own pixel known",
            "leave it out, or give the geometry",
        )
    frame = reconstruction.frame
    ratio = 1.0 if pixel_size_m is None else pixel_size_m / frame.pixel_size_m
    rows = _label_rows(reconstruction, measurement)
    obj, probe, _ = label_gauge(reconstruction)
    patches = _cut_patches(obj, frame.to_px(measurement.position_m[rows]), shape, ratio, SPLINE_ORDER[interpolation])
    return LabelSet(
        image=_filled(np.asarray(measurement.image[rows]), measurement.mask),
        phase_rad=np.angle(patches).astype(np.float32),
        amplitude=np.abs(patches).astype(np.float32),
        position_m=measurement.position_m[rows],
        frame_index=np.asarray(measurement.frame_index)[rows],
        probe=probe.astype(np.complex64),
        weight=illumination_weight(probe, shape, ratio),
        pixel_size_m=frame.pixel_size_m * ratio if known else float("nan"),
        geometry=measurement.geometry,
        run_uid=measurement.run_uid,
        provenance={
            "engine": reconstruction.engine,
            "options": dict(reconstruction.options),
            "reconstruction": {k: v for k, v in reconstruction.provenance.items() if not k.startswith("frames_")},
            "gauge": "ramp removed and circular mean of the phase 0 over the lit area of the scan",
            "interpolation": interpolation,
            "light": _light(measurement, rows),
            "version": __version__,
        },
    )


def _filled(image: NDArray[Any], mask: NDArray[np.bool_] | None) -> NDArray[Any]:
    """Frames with untrusted pixels filled from their neighbours, as the edge fills them before the network."""
    if mask is None or mask.all():
        return image
    rows, cols = image.shape[1:]
    return Canonical((rows, cols), min(rows, cols), (rows // 2, cols // 2), bad=~mask).read(image)[0]


def _light(measurement: Measurement, rows: NDArray[np.int64]) -> dict[str, Any]:
    """Light of the scan: what its documents state, its mean monitor, to which frames were scaled, and its counts."""
    i0 = np.asarray(measurement.i0, dtype=np.float64)
    good = i0[np.isfinite(i0) & (i0 > 0)]
    counts = [float(np.sum(measurement.image[row], dtype=np.float64)) for row in rows[:: max(1, len(rows) // 100)]]
    stated = {"i0": float(good.mean()) if len(good) else None, "mean_counts": float(np.mean(counts))}
    return Light.from_dict({**(measurement.metadata.get("light") or {}), **stated}).as_dict()


def _label_rows(reconstruction: Reconstruction, measurement: Measurement) -> NDArray[np.int64]:
    """Rows of the measurement that the object covers: used or held out, in the order of the measurement."""
    used, held_out = (_rows_of(reconstruction, measurement, name) for name in ("frames_used", "frames_held_out"))
    return np.sort(np.concatenate([used, held_out]))


def _rows_of(reconstruction: Reconstruction, measurement: Measurement, name: str) -> NDArray[np.int64]:
    stated = reconstruction.provenance.get(name)
    if stated is None:
        raise InputError(
            f"a reconstruction without {name!r} in its provenance",
            "labels are cut for the frames that it was made from",
            "reconstruct the measurement with this package",
        )
    order = np.argsort(measurement.frame_index, kind="stable")
    index = np.asarray(measurement.frame_index)[order]
    wanted = np.asarray(stated, dtype=np.int64)
    place = np.searchsorted(index, wanted)
    missing = place >= len(index)
    missing |= index[np.minimum(place, len(index) - 1)] != wanted
    if missing.any():
        raise InputError(
            f"{int(missing.sum())} frames of the reconstruction are not in the measurement {measurement.run_uid!r}",
            "both must be of one run",
        )
    return order[place]


def _cut_patches(
    obj: NDArray[np.complex128], centre_px: NDArray[np.float64], shape: tuple[int, int], ratio: float, order: int
) -> NDArray[np.complex64]:
    """Patches (n, h, w) of a complex object (rows, cols) about fractional indices (n, 2), ``ratio`` pixels a sample."""
    parts = [np.ascontiguousarray(part) for part in (obj.real, obj.imag)]
    if ratio > 1.0:
        # The wider pixel integrates: a Gaussian of its variance, less that of the narrower one.
        sigma = np.sqrt((ratio**2 - 1.0) / 12.0)
        parts = [scipy.ndimage.gaussian_filter(part, sigma, mode="nearest") for part in parts]
    if order > 1:
        parts = [scipy.ndimage.spline_filter(part, order, mode="nearest") for part in parts]
    steps = [(np.arange(size) - size // 2) * ratio for size in shape]
    patches = np.empty((len(centre_px), *shape), dtype=np.complex64)
    for patch, (row, col) in zip(patches, centre_px, strict=True):
        grid = np.meshgrid(row + steps[0], col + steps[1], indexing="ij")
        patch.real, patch.imag = (
            scipy.ndimage.map_coordinates(part, grid, order=order, mode="nearest", prefilter=False) for part in parts
        )
    return patches


def illumination_weight(
    probe: NDArray[Any], patch_shape: tuple[int, int], ratio: float = 1.0, fraction: float = VALID_FRACTION
) -> NDArray[np.float32]:
    """Where a label is valid: a frame tells only of what its probe lit.

    Parameters
    ----------
    probe : ndarray of complex, shape (modes, N, N)
    patch_shape : tuple of int
        (h, w).
    ratio : float
        Pixel of the patch in pixels of the probe.
    fraction : float
        Illumination, relative to the peak, from which on the weight is 1; below it falls in proportion.

    Returns
    -------
    ndarray of float32, shape (h, w)
        0 to 1, a function of the distance to the centre alone that never rises: the mean illumination on rings, with
        dark rings and the shadow of a central stop filled.
    """
    if not 0 < fraction <= 1:
        raise InputError(f"fraction = {fraction}", "it lies between 0 and 1")
    power = np.sum(np.abs(np.asarray(probe, dtype=np.complex128)) ** 2, axis=0)
    rows, cols = (np.arange(n) - n // 2 for n in power.shape)
    ring = np.rint(np.hypot(rows[:, None], cols[None, :])).astype(np.int64).ravel()
    profile = np.bincount(ring, power.ravel()) / np.maximum(np.bincount(ring), 1)
    profile[min(power.shape) // 2 + 1 :] = 0.0
    envelope = np.maximum.accumulate(profile[::-1])[::-1]
    weight = np.clip(envelope / (fraction * envelope[0]), 0.0, 1.0)
    rows, cols = ((np.arange(n) - n // 2) * ratio for n in patch_shape)
    distance = np.hypot(rows[:, None], cols[None, :])
    return np.interp(distance, np.arange(len(weight)), weight, right=0.0).astype(np.float32)


def check_labels(
    labels: LabelSet,
    reconstruction: Reconstruction,
    measurement: Measurement,
    *,
    max_ratio: float = MAX_RATIO,
    min_explained: float = MIN_EXPLAINED,
    min_held_out: float = MIN_HELD_OUT,
) -> LabelCheck:
    """Accept or reject the labels of a scan by the frames that the reconstruction never saw.

    Parameters
    ----------
    labels : LabelSet
        What `make_labels` cut from the reconstruction.
    reconstruction : Reconstruction
        Made with a ``holdout_fraction`` of at least ``min_held_out``.
    measurement : Measurement
        The scan that was reconstructed.
    max_ratio : float
        Largest diffraction error of the held-out frames, in units of that of the used ones.
    min_explained : float
        Smallest part of the held-out frames' variation (about the mean frame, less shot noise) that the
        reconstruction must explain. A reconstruction from wrong positions fits what it uses as badly as what it does
        not: the ratio alone would let it pass.
    min_held_out : float
        Fraction of the frames that must have been left out.

    Returns
    -------
    LabelCheck

    Raises
    ------
    InputError
        Too few frames were left out to judge, or the measurement is another one.
    """
    used, held_out = (_rows_of(reconstruction, measurement, name) for name in ("frames_used", "frames_held_out"))
    fraction = len(held_out) / max(1, len(used) + len(held_out))
    if not len(held_out) or fraction < min_held_out:
        raise InputError(
            f"{len(held_out)} of {len(used) + len(held_out)} frames held out",
            f"labels are judged by at least {min_held_out:.0%} of the frames",
            f"reconstruct with holdout_fraction ≥ {min_held_out}",
        )
    options = frame_options(reconstruction.options)
    if not len(labels) or labels.run_uid != reconstruction.run_uid:
        raise InputError(
            f"{len(labels)} labels of run {labels.run_uid!r} for a reconstruction of {reconstruction.run_uid!r}",
            "both must be of one run",
        )
    figures = _held_out_figures(reconstruction, measurement, used, held_out, options)
    figures |= {
        "ratio_limit": max_ratio,
        "explained_limit": min_explained,
        "held_out_fraction": fraction,
        "frames_used": float(len(used)),
        "frames_held_out": float(len(held_out)),
    }
    if not (np.isfinite(labels.phase_rad).all() and np.isfinite(labels.amplitude).all()):
        return LabelCheck(False, "some labels are not finite: the reconstruction diverged", figures)
    if not figures["explained"] >= min_explained:
        reason = (
            f"the reconstruction explains {figures['explained']:.2f} of the held-out frames' variation, less than "
            f"{min_explained:.2f}: positions or geometry may be wrong, or the light too little"
        )
        return LabelCheck(False, reason, figures)
    if not figures["ratio"] <= max_ratio:
        reason = (
            f"the error of held-out frames is {figures['ratio']:.2f} times that of used ones, more than "
            f"{max_ratio:.2f}: the object is not determined between the positions"
        )
        return LabelCheck(False, reason, figures)
    reason = (
        f"held-out frames: error {figures['ratio']:.2f} times that of used ones, "
        f"{figures['explained']:.2f} of their variation explained"
    )
    return LabelCheck(True, reason, figures)


def _held_out_figures(
    reconstruction: Reconstruction,
    measurement: Measurement,
    used: NDArray[np.int64],
    held_out: NDArray[np.int64],
    options: EngineOptions,
) -> dict[str, float]:
    misfit_used, scan_used = frame_misfit(reconstruction, measurement, used, options)
    misfit, scan = frame_misfit(reconstruction, measurement, held_out, options)
    amplitude = scan.amplitude.double().cpu().numpy()
    power_used = np.mean(scan_used.amplitude.double().square().cpu().numpy(), axis=0)
    mean_amplitude = np.mean(scan_used.amplitude.double().cpu().numpy(), axis=0)
    total = np.sum(amplitude**2)
    varies = np.sum((amplitude - mean_amplitude) ** 2)
    noise = len(held_out) * np.sum(root_poisson_variance(power_used))
    error_used = float(misfit_used.sum() / (len(used) * power_used.sum()))
    error_held_out = float(misfit.sum() / total)
    explained = (varies - misfit.sum()) / (varies - noise) if varies > noise else -np.inf
    return {
        "error_used": error_used,
        "error_held_out": error_held_out,
        "ratio": max(error_held_out, ERROR_FLOOR) / max(error_used, ERROR_FLOOR),
        "explained": float(explained),
    }


def root_poisson_variance(mean: ArrayLike) -> NDArray[np.float64]:
    """Variance of √n for Poisson counts n of the given mean: the mean itself in the dark, ¼ in bright light."""
    values = np.asarray(mean, dtype=np.float64)
    grid = np.linspace(0.0, 12.0, 121)
    counts = np.arange(80)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(counts[1:]))])
    with np.errstate(divide="ignore", invalid="ignore"):
        probability = np.exp(np.where(counts == 0, 0.0, counts * np.log(grid[:, None])) - grid[:, None] - log_factorial)
    table = grid - (probability @ np.sqrt(counts)) ** 2
    bright = 0.25 * (1.0 + 3.0 / (8.0 * np.maximum(values, grid[-1])))
    return np.where(values < grid[-1], np.interp(values, grid, table), bright)
