"""From one scan to a calibration: bad pixels, centre, region of interest, orientation, pixel size."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky._version import __version__
from ptycho_bluesky.config import DetectorSettings
from ptycho_bluesky.errors import InputError, StorageError
from ptycho_bluesky.geometry import apply_d4
from ptycho_bluesky.preprocess import unusable_from
from ptycho_bluesky.reconstruction.calibration import (
    PRIORS,
    BeamCentre,
    Orientation,
    Prior,
    find_bad_pixels,
    find_centre,
    measure_orientation,
)
from ptycho_bluesky.reconstruction.pixel_check import check_pixel
from ptycho_bluesky.records import Measurement
from ptycho_bluesky.workflow.detector_scan import DetectorScan

__all__ = ["calibrate"]

Progress = Callable[[int, int, str], None]
MIN_SYMMETRY = 0.8
"""Correlation of the mean frame with its half turn below which no centre is believed."""
READ_FRAMES = 32


def calibrate(
    scan: DetectorScan,
    mask_path: Path,
    *,
    num_px: int | None = None,
    prior: str | None = "none",
    max_frames: int = 400,
    pixel: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure how a detector stands.

    Parameters
    ----------
    scan : DetectorScan
        From a file or a run (`ptycho_bluesky.workflow.detector_scan`).
    mask_path : Path
        Where the mask of bad pixels is written, if any are bad (``.npy``).
    num_px : int, optional
        Side of the region of interest; by default the largest even square about the centre.
    prior : str, optional
        See `ptycho_bluesky.reconstruction.calibration.measure_orientation`; None leaves the orientation alone.
    max_frames : int
        Frames to look at: spread over the scan for the mean frame, the first ones, which overlap, for the orientation
        and the pixel.
    pixel : bool
        Check the pixel size, in the orientation found.
    progress : callable, optional
        ``progress(done, total, name)``.

    Returns
    -------
    dict
        Sections ``detector`` and ``geometry`` of a configuration, and ``measured``: what they rest on.

    Raises
    ------
    InputError
        The scan has no frames, no centre can be found, or the prior is unknown.
    StorageError
        The mask cannot be written.
    """
    if prior is not None and prior not in PRIORS:
        raise InputError(f"prior {prior!r}", f"known ones are {', '.join(PRIORS)}")
    mean, marked = _mean_frame(scan.frames, max_frames)
    bad = find_bad_pixels(mean, marked)
    centre = find_centre(mean, bad)
    if centre.contrast < MIN_SYMMETRY:
        raise InputError(
            f"a mean frame that resembles its half turn by {centre.contrast:.2f}",
            f"a centre is believed from {MIN_SYMMETRY} on",
            "use a scan with more frames, or state detector.centre_px by hand",
        )
    detector: dict[str, Any] = {"centre_px": list(centre.locked_px), "num_px": _side(centre, mean.shape, num_px)}
    if bad.any():
        detector["mask_file"] = str(_write_mask(mask_path, bad))
    content = {"detector": detector, "measured": _measured(scan.name, centre, bad)}
    if prior is None:
        return content
    measurement = scan.build(DetectorSettings(**detector), max_frames, "identity")
    found = measure_orientation(measurement, cast(Prior, prior), progress=progress)
    content["measured"]["orientation"] = _orientation_content(found)
    if found.found and not found.ambiguous:
        # One of two twins taken by chance would turn every object: nothing is locked then.
        content["geometry"] = {"orientation": found.operation}
    if found.found and pixel:
        content["measured"]["pixel"] = _pixel_content(measurement, found, progress)
    return content


def _orientation_content(found: Orientation) -> dict[str, Any]:
    return {
        "operation": found.operation,
        "twin": found.twin,
        "resolved_by": found.resolved_by or "ambiguous",
        "errors": {name: round(error, 6) for name, error in found.errors.items()},
        "found": found.found,
    }


def _pixel_content(measurement: Measurement, found: Orientation, progress: Progress | None) -> dict[str, Any]:
    mask = None if measurement.mask is None else np.ascontiguousarray(apply_d4(measurement.mask, found.operation))
    image = np.ascontiguousarray(apply_d4(np.asarray(measurement.image), found.operation))
    checked = check_pixel(replace(measurement, image=image, mask=mask, probe=None), progress=progress)
    return {
        "stated_m": measurement.pixel_size_m,
        "measured_over_stated": round(checked.factor, 4),
        "agrees": checked.agrees,
        "errors": {f"{factor:.4g}": round(error, 6) for factor, error in checked.errors.items()},
        "near_errors": {f"{factor:.4g}": round(error, 6) for factor, error in checked.near_errors.items()},
    }


def _mean_frame(frames: Any, max_frames: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Mean counts of every pixel, without frames in which it carries the detector's mark, and which always do."""
    limit = unusable_from(np.dtype(frames.dtype), None)
    total, seen = np.zeros(frames.shape[1:]), np.zeros(frames.shape[1:])
    rows = np.unique(np.linspace(0, len(frames) - 1, min(max_frames, len(frames))).astype(np.int64))
    for first in range(0, len(rows), READ_FRAMES):
        part = np.asarray(frames[rows[first : first + READ_FRAMES]])
        usable = np.isfinite(part) if limit is None else part < limit
        total += np.where(usable, part, 0).sum(axis=0, dtype=np.float64)
        seen += usable.sum(axis=0)
    return total / np.maximum(seen, 1.0), seen == 0


def _side(centre: BeamCentre, shape: tuple[int, ...], num_px: int | None) -> int:
    row, col = centre.locked_px
    largest = 2 * min(row, col, shape[0] - row, shape[1] - col)
    if num_px is not None and num_px > largest:
        raise InputError(f"num_px = {num_px}", f"the largest square about pixel {centre.locked_px} has {largest}")
    return largest if num_px is None else num_px


def _write_mask(path: Path, bad: NDArray[np.bool_]) -> Path:
    try:
        np.save(path, bad.astype(np.uint8))
    except OSError as error:
        raise StorageError(f"mask {path}: {error}", "its folder must be writable", "name another file") from error
    return path.resolve()


def _measured(name: str, centre: BeamCentre, bad: NDArray[np.bool_]) -> dict[str, Any]:
    return {
        "scan": name,
        "time_s": time.time(),
        "version": __version__,
        "bad_pixels": int(np.count_nonzero(bad)),
        "centre_by_symmetry_px": [round(value, 3) for value in centre.symmetry_px],
        "centre_of_mass_px": [round(value, 3) for value in centre.mass_px],
        "symmetry": round(centre.contrast, 4),
    }
