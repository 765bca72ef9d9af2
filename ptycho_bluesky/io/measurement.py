"""Reading a scan from a file of any known format, and checking it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from ptycho_bluesky.config import DetectorSettings
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.io.area_detector import FRAMES
from ptycho_bluesky.io.area_detector_scan import read_area_detector
from ptycho_bluesky.io.assemble import RawScan, StatedGeometry, assemble
from ptycho_bluesky.io.cxi import is_cxi, read_cxi
from ptycho_bluesky.io.hdf5 import HDF5_SIGNATURE, has_dataset, open_file
from ptycho_bluesky.io.npz import read_npz
from ptycho_bluesky.records import Measurement

__all__ = ["read_measurement", "validate_measurement"]

CHECKED_FRAMES = 256
"""Frames that are checked at a time, so that a scan read on demand stays on disk."""


def read_measurement(
    path: str | Path,
    *,
    energy_eV: float | None = None,
    distance_m: float | None = None,
    detector_pixel_m: float | None = None,
    object_pixel_m: float | None = None,
    limit: int | None = None,
    position_datasets: tuple[str, str] | None = None,
    position_signs: tuple[int, int] = (1, 1),
    centre_px: tuple[int, int] | None = None,
    detector: DetectorSettings | None = None,
    orientation: str | None = None,
    first_row: int = 0,
    all_placed: bool = True,
) -> Measurement:
    """Read a scan: CXI, NXcxi_ptycho, areaDetector NeXus, tike's or PtychoNN's ``.npz`` (also ``.npz.bz2``).

    Parameters
    ----------
    path : path
    energy_eV, distance_m, detector_pixel_m : float, optional
        Geometry, where the file has none or a wrong one; all three or none.
    object_pixel_m : float, optional
        Pixel at the sample, stated instead of a geometry.
    limit : int, optional
        Frames to read at most.
    position_datasets : tuple of str, optional
        Datasets of y and x in an areaDetector file whose names are its beamline's own; their attribute ``units`` says
        in what they are.
    position_signs : tuple of int
        1 or −1 for y and x: what the stage's description says, where the file's positions are those of the sample
        instead of the beam, or its axes point the other way. Kept in the metadata.
    centre_px : tuple of int, optional
        Detector pixel (row, column) of the zero frequency in an HDF5 file: frames are cut to the largest even square
        about it.
    detector : DetectorSettings, optional
        Centre, region, mask and saturation of an areaDetector file, as calibrated.
    orientation : str, optional
        Orientation of an areaDetector file, as calibrated; by default what the file states.
    first_row : int
        Rows of an areaDetector file that are passed over: what came to a growing scan since it was read last, when
        ``metadata["next_row"]`` said where to go on.
    all_placed : bool
        Whether a frame without position is an error.

    Returns
    -------
    Measurement
        Checked by `validate_measurement`. Positions are in metres when a pixel is known, else in object pixels. Frames
        beyond 1 GiB stay in their HDF5 file until they are indexed.

    Raises
    ------
    InputError
        The file cannot be read, is of no known format, or holds what cannot be measured data.
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise InputError(f"limit = {limit}", "at least one frame is read")
    stated = StatedGeometry(energy_eV, distance_m, detector_pixel_m, object_pixel_m)
    if len(position_signs) != 2 or not set(position_signs) <= {1, -1}:
        raise InputError(f"position_signs = {position_signs}", "each is 1 or -1, y first")
    raw = _reader(path, position_datasets, centre_px, detector, orientation, first_row)(path, limit)
    if position_signs != (1, 1):
        metadata = {**raw.metadata, "position_signs": list(position_signs)}
        raw = replace(raw, position=raw.position * np.array(position_signs), metadata=metadata)
    measurement = assemble(raw, stated, run_uid=path.name)
    validate_measurement(measurement, all_placed=all_placed)
    return measurement


def _reader(
    path: Path,
    position_datasets: tuple[str, str] | None,
    centre_px: tuple[int, int] | None,
    detector: DetectorSettings | None,
    orientation: str | None,
    first_row: int,
) -> Callable[[Path, int | None], RawScan]:
    if not path.is_file():
        raise InputError(f"file {path}", "it does not exist", "check the path")
    with path.open("rb") as stream:
        signature = stream.read(len(HDF5_SIGNATURE))
    if signature == HDF5_SIGNATURE:
        with open_file(path) as file:
            if is_cxi(file) and not first_row:
                return lambda p, limit: read_cxi(p, limit, centre_px)
            if has_dataset(file, FRAMES):
                return lambda p, limit: read_area_detector(
                    p, limit, position_datasets, centre_px, detector, orientation, first_row
                )
        raise InputError(
            f"{path}", f"an HDF5 scan has its frames in {FRAMES} or /entry_1/data_1/data", "check the file's layout"
        )
    if first_row:
        raise InputError(f"rows of {path} from {first_row} on", "only an areaDetector file grows", "read it whole")
    if signature[:2] == b"PK" or path.suffix in (".npz", ".bz2"):
        return read_npz
    raise InputError(
        f"{path}", "known formats are CXI, NXcxi_ptycho, areaDetector NeXus and .npz[.bz2]", "convert the file"
    )


def validate_measurement(measurement: Measurement, *, all_placed: bool = True) -> None:
    """Check that a measurement can be one.

    Parameters
    ----------
    measurement : Measurement
    all_placed : bool
        Whether every position must be finite.

    Raises
    ------
    InputError
        No frames, wrong shapes, counts that are not finite or negative, positions that are missing, fewer than frames
        or not finite, or columns of another length.
    """
    shape = tuple(measurement.image.shape)
    if len(shape) != 3 or shape[1] != shape[2]:
        raise InputError(f"frames of shape {shape}", "a scan is a stack of square images (n, N, N)")
    if shape[0] == 0:
        raise InputError("no frames", "a scan has at least one")
    _check_positions(measurement, shape[0], all_placed)
    for name in ("frame_index", "unique_id", "timestamp_s", "i0"):
        if np.shape(getattr(measurement, name)) != (shape[0],):
            raise InputError(f"{name} of shape {np.shape(getattr(measurement, name))}", f"there are {shape[0]} frames")
    if len(np.unique(measurement.frame_index)) != shape[0]:
        raise InputError("frame indices that repeat", "every frame has its own")
    if measurement.mask is not None and measurement.mask.shape != shape[1:]:
        raise InputError(f"mask of shape {measurement.mask.shape}", f"frames are {shape[1:]}")
    probe = measurement.probe
    if probe is not None and (probe.ndim != 3 or probe.shape[1:] != shape[1:] or not np.isfinite(probe).all()):
        raise InputError(f"probe of shape {probe.shape}", f"it is finite and of shape (modes, {shape[1]}, {shape[2]})")
    if measurement.geometry is not None and measurement.geometry.num_px != shape[1]:
        raise InputError(f"geometry of {measurement.geometry.num_px} pixels", f"frames have {shape[1]}")
    for start in range(0, shape[0], CHECKED_FRAMES):
        _check_counts(measurement, start, min(start + CHECKED_FRAMES, shape[0]))


def _check_positions(measurement: Measurement, num_frames: int, all_placed: bool) -> None:
    position = np.asarray(measurement.position_m)
    if position.ndim != 2 or position.shape[1:] != (2,):
        raise InputError(f"positions of shape {position.shape}", "a position is (y, x), one row a frame")
    if len(position) != num_frames:
        raise InputError(
            f"{len(position)} positions for {num_frames} frames",
            "every frame has a position",
            "give the missing positions, or read fewer frames with --limit",
        )
    bad = np.flatnonzero(~np.isfinite(position).all(axis=1))
    if len(bad) and all_placed:
        raise InputError(
            f"{len(bad)} of {num_frames} positions are not finite, first that of frame {bad[0]}",
            "a frame without position is not used",
            "leave these frames out, or give their positions",
        )


def _check_counts(measurement: Measurement, start: int, stop: int) -> None:
    counts = np.asarray(measurement.image[start:stop])
    if not np.issubdtype(counts.dtype, np.number) or np.iscomplexobj(counts):
        raise InputError(f"frames of type {counts.dtype}", "frames hold counts, which are real numbers")
    if np.issubdtype(counts.dtype, np.unsignedinteger):
        return
    trusted = counts if measurement.mask is None else counts[:, measurement.mask]
    flat = trusted.reshape(len(trusted), -1)
    for wrong, what in ((~np.isfinite(flat), "not finite"), (flat < 0, "negative")):
        if wrong.any():
            frame = start + int(np.flatnonzero(wrong.any(axis=1))[0])
            raise InputError(
                f"{np.count_nonzero(wrong)} counts of frame {frame} and its neighbours are {what}",
                "a detector counts photons",
                "mask these pixels, or redo the background correction",
            )
