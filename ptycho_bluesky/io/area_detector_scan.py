"""A whole scan from an areaDetector NeXus file: ours, or a beamline's own with its positions named."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.config import DetectorSettings
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.io.area_detector import COLUMNS, FRAMES, UNIQUE_ID, num_rows, read_columns, read_geometry
from ptycho_bluesky.io.assemble import RawScan, StatedGeometry
from ptycho_bluesky.io.frames import FramesOnDemand, canonical_frames
from ptycho_bluesky.io.hdf5 import dataset, has_dataset, is_unclosed, open_file, read_string
from ptycho_bluesky.io.masks import stated_canonical
from ptycho_bluesky.io.units import length_factor_m, real_numbers
from ptycho_bluesky.preprocess import Canonical

__all__ = ["read_area_detector"]

logger = logging.getLogger(__name__)


def read_area_detector(
    path: Path,
    limit: int | None = None,
    position_datasets: tuple[str, str] | None = None,
    centre_px: tuple[int, int] | None = None,
    detector: DetectorSettings | None = None,
    orientation: str | None = None,
    first_row: int = 0,
) -> RawScan:
    """Read a whole scan, or what has come to a growing one.

    Parameters
    ----------
    path : Path
        Finished, growing, or left behind by a writer that died.
    limit : int, optional
        Frames to read at most.
    position_datasets : tuple of str, optional
        Datasets of y and x, with their attribute ``units``, where they are not `area_detector.POSITION_Y` and
        ``POSITION_X``. The file then needs no other column.
    centre_px : tuple of int, optional
        Detector pixel (row, column) of the zero frequency: frames are cut to the largest even square about it. Without
        it they must be square already.
    detector : DetectorSettings, optional
        Centre, region, mask and saturation, as calibrated; ``centre_px`` wins.
    orientation : str, optional
        As calibrated; by default the file's.
    first_row : int
        Rows of the file before it are passed over.

    Returns
    -------
    RawScan
        ``metadata["unclosed"]`` is True, with ``rows_read``, where the file was not closed: it is cut there, or grows.
        ``metadata["next_row"]`` is where a later reading goes on.

    Raises
    ------
    InputError
        Frames or positions are missing.
    """
    unclosed = is_unclosed(path)
    with open_file(path) as file:
        rows, column, position = _rows_and_positions(file, limit, position_datasets, first_row)
        geometry = read_geometry(file)
        shape = dataset(file, FRAMES).shape
        content = _canonical_content(detector, centre_px, shape[1:])
        if len(shape) != 3 or (not content and shape[1] != shape[2]):
            raise InputError(f"{FRAMES} of shape {shape}", "frames are square", "state the beam's pixel with centre_px")
    if orientation is None:
        orientation = "identity" if geometry is None else geometry.orientation
    # Positions belong to the canonical frame already; only the detector's pixels may be turned.
    canonical = Canonical.from_run({"canonical": content, "geometry": {"orientation": orientation}}, shape[1:])
    metadata: dict[str, Any] = {"format": "areaDetector NeXus", "next_row": int(rows.max(initial=first_row - 1)) + 1}
    if canonical.shape != tuple(shape[1:]):
        metadata |= {"cut_from": list(shape[1:]), "cut_centre_px": list(canonical.centre_px)}
    if unclosed:
        metadata |= {"unclosed": True, "rows_read": len(rows)}
        # Who reads a growing scan again and again is not told each time.
        level = logging.DEBUG if first_row else logging.WARNING
        logger.log(level, "%s was not closed by its writer: read to its last flush, %d rows", path, len(rows))
    return RawScan(
        canonical_frames(FramesOnDemand(path, FRAMES, rows, canonical=canonical)),
        position,
        "m",
        stated=StatedGeometry()
        if geometry is None
        else StatedGeometry(geometry.energy_eV, geometry.distance_m, geometry.detector_pixel_m),
        orientation=orientation,
        unique_id=column.get("unique_id"),
        timestamp_s=column.get("timestamp_s"),
        i0=column.get("i0"),
        mask=None if canonical.good.all() else canonical.good,
        metadata=metadata,
    )


def _canonical_content(
    detector: DetectorSettings | None, centre_px: tuple[int, int] | None, shape: tuple[int, ...]
) -> dict[str, Any]:
    content = {} if detector is None else stated_canonical(detector, (shape[0], shape[1]))
    if centre_px is not None:
        content = {**content, "centre_px": list(centre_px)}
    return content


def _rows_and_positions(
    file: h5py.File, limit: int | None, names: tuple[str, str] | None, first: int
) -> tuple[NDArray[np.int64], dict[str, NDArray[Any]], NDArray[np.float64]]:
    """Rows to read, the columns of these rows, and the positions of these frames."""
    missing = [name for name in (UNIQUE_ID, *COLUMNS.values()) if not has_dataset(file, name)]
    if missing and names is None:
        raise InputError(
            f"{file.filename}: no {', '.join(missing)}",
            "every frame has a position",
            "name the datasets of the positions",
        )
    if missing:
        rows = np.arange(first, dataset(file, FRAMES).shape[0], dtype=np.int64)[:limit]
        column: dict[str, NDArray[Any]] = {}
    else:
        available = num_rows(file)
        stop = available if limit is None else min(first + limit, available)
        column, written = read_columns(file, slice(min(first, available), stop))
        rows = min(first, available) + np.flatnonzero(written)
    if names is None:
        return rows, column, column["position_m"]
    position = _named_positions_m(file, names)
    if len(position) <= rows.max(initial=-1):
        raise InputError(f"{len(position)} positions for {len(rows)} frames", "every frame has a position")
    return rows, column, position[rows]


def _named_positions_m(file: h5py.File, names: tuple[str, str]) -> NDArray[np.float64]:
    columns = []
    for name in names:
        item = dataset(file, name)
        if "units" not in item.attrs:
            raise InputError(f"{name} without units", "units are never guessed", "set its attribute 'units'")
        columns.append(real_numbers(item[()], name).ravel() * length_factor_m(read_string(item.attrs["units"]), name))
    if len(columns[0]) != len(columns[1]):
        raise InputError(f"{len(columns[0])} y and {len(columns[1])} x positions", "every frame has both")
    return np.stack(columns, axis=1)
