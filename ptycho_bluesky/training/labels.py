"""Labels: what the network should read in each frame, cut from a reconstruction at the frame's true position.

Interpolation happens on the complex object: an angle must never be averaged, it wraps. The gauge of a scan is fixed
once for the whole scan, never per patch.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from ptycho_bluesky._version import __version__
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.preprocess import Canonical
from ptycho_bluesky.reconstruction.gauge import LIT_FRACTION, flat_ramp, illumination, lit_median, remove_ramp
from ptycho_bluesky.reconstruction.placement import rows_of, with_refined_positions
from ptycho_bluesky.records import LabelSet, Measurement, Reconstruction
from ptycho_bluesky.trust.light import Light

__all__ = ["illumination_weight", "label_gauge", "make_labels"]

Interpolation = Literal["linear", "cubic"]
SPLINE_ORDER = {"linear": 1, "cubic": 3}
VALID_FRACTION = 0.1
"""Illumination, relative to its peak, from which on a pixel of a patch is fully valid."""


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
        Patch ``k`` has its centre ``[h//2, w//2]`` on the position of frame ``k``: the measured one, or the refined one
        where the engine refined them.

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
    position_m = with_refined_positions(measurement, reconstruction).position_m[rows]
    obj, probe, _ = label_gauge(reconstruction)
    patches = _cut_patches(obj, frame.to_px(position_m), shape, ratio, SPLINE_ORDER[interpolation])
    return LabelSet(
        image=_filled(np.asarray(measurement.image[rows]), measurement.mask),
        phase_rad=np.angle(patches).astype(np.float32),
        amplitude=np.abs(patches).astype(np.float32),
        position_m=position_m,
        frame_index=np.asarray(measurement.frame_index)[rows],
        probe=probe.astype(np.complex64),
        weight=illumination_weight(probe, shape, ratio),
        pixel_size_m=frame.pixel_size_m * ratio if known else float("nan"),
        geometry=measurement.geometry,
        run_uid=measurement.run_uid,
        provenance={
            "engine": reconstruction.engine,
            "options": dict(reconstruction.options),
            "positions": "refined" if reconstruction.options.get("correct_positions") else "measured",
            "reconstruction": {k: v for k, v in reconstruction.provenance.items() if not k.startswith("frames_")},
            "gauge": "ramp removed and circular mean of the phase 0 over the lit area of the scan",
            "interpolation": interpolation,
            "light": _light(measurement, rows),
            "sample": str(measurement.metadata.get("sample") or ""),
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
    used, held_out = (rows_of(reconstruction, measurement, name) for name in ("frames_used", "frames_held_out"))
    return np.sort(np.concatenate([used, held_out]))


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
