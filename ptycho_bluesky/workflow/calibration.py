"""From the file of one scan to a calibration: bad pixels, centre, region of interest, orientation."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky._version import __version__
from ptycho_bluesky.config import DetectorSettings
from ptycho_bluesky.errors import InputError, StorageError
from ptycho_bluesky.io import read_measurement
from ptycho_bluesky.io.area_detector import FRAMES
from ptycho_bluesky.io.hdf5 import dataset, has_dataset, open_file
from ptycho_bluesky.preprocess import unusable_from
from ptycho_bluesky.reconstruction.calibration import (
    PRIORS,
    BeamCentre,
    Prior,
    find_bad_pixels,
    find_centre,
    measure_orientation,
)

__all__ = ["calibrate"]

Progress = Callable[[int, int, str], None]
MIN_SYMMETRY = 0.8
"""Correlation of the mean frame with its half turn below which no centre is believed."""


def calibrate(
    path: Path,
    mask_path: Path,
    *,
    num_px: int | None = None,
    prior: str | None = "none",
    max_frames: int = 400,
    stated: Mapping[str, float | None] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure how a detector stands.

    Parameters
    ----------
    path : Path
        areaDetector NeXus file of a scan.
    mask_path : Path
        Where the mask of bad pixels is written, if any are bad (``.npy``).
    num_px : int, optional
        Side of the region of interest; by default the largest even square about the centre.
    prior : str, optional
        See `ptycho_bluesky.reconstruction.calibration.measure_orientation`; None leaves the orientation alone.
    max_frames : int
        Frames to look at: spread over the scan for the mean frame, the first ones, which overlap, for the orientation.
    stated : mapping, optional
        Geometry where the file has none (``energy_eV``, …).
    progress : callable, optional
        ``progress(done, total, name)``.

    Returns
    -------
    dict
        Sections ``detector`` and ``geometry`` of a configuration, and ``measured``: what they rest on.

    Raises
    ------
    InputError
        The file has no frames, no centre can be found, or the prior is unknown.
    StorageError
        The mask cannot be written.
    """
    if prior is not None and prior not in PRIORS:
        raise InputError(f"prior {prior!r}", f"known ones are {', '.join(PRIORS)}")
    mean, marked = _mean_frame(path, max_frames)
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
    content = {"detector": detector, "measured": _measured(path, centre, bad)}
    if prior is None:
        return content
    known = stated or {}
    measurement = read_measurement(
        path,
        limit=max_frames,
        detector=DetectorSettings(**detector),
        orientation="identity",
        energy_eV=known.get("energy_eV"),
        distance_m=known.get("distance_m"),
        detector_pixel_m=known.get("detector_pixel_m"),
        object_pixel_m=known.get("object_pixel_m"),
    )
    found = measure_orientation(measurement, cast(Prior, prior), progress=progress)
    content["measured"]["orientation"] = {
        "operation": found.operation,
        "twin": found.twin,
        "resolved_by": found.resolved_by or "ambiguous",
        "errors": {name: round(error, 6) for name, error in found.errors.items()},
        "found": found.found,
    }
    if found.found:
        content["geometry"] = {"orientation": found.operation}
    return content


def _mean_frame(path: Path, max_frames: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Mean counts of every pixel, without frames in which it carries the detector's mark, and which always do."""
    with open_file(path) as file:
        if not has_dataset(file, FRAMES):
            raise InputError(f"{path}", f"frames are expected in {FRAMES}", "calibrate with an areaDetector file")
        frames = dataset(file, FRAMES)
        if frames.ndim != 3 or not len(frames):
            raise InputError(f"{FRAMES} of shape {frames.shape}", "it holds frames (n, H, W)")
        limit = unusable_from(frames.dtype, None)
        total, seen = np.zeros(frames.shape[1:]), np.zeros(frames.shape[1:])
        for row in np.unique(np.linspace(0, len(frames) - 1, min(max_frames, len(frames))).astype(int)).tolist():
            frame = np.asarray(frames[row])
            usable = np.isfinite(frame) if limit is None else frame < limit
            total += np.where(usable, frame, 0)
            seen += usable
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


def _measured(path: Path, centre: BeamCentre, bad: NDArray[np.bool_]) -> dict[str, Any]:
    return {
        "file": str(path),
        "time_s": time.time(),
        "version": __version__,
        "bad_pixels": int(np.count_nonzero(bad)),
        "centre_by_symmetry_px": [round(value, 3) for value in centre.symmetry_px],
        "centre_of_mass_px": [round(value, 3) for value in centre.mass_px],
        "symmetry": round(centre.contrast, 4),
    }
