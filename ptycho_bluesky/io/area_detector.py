"""The detector's NeXus file: names, creation, and reading while it grows or after its writer died.

One file a run: frames, and for each of them the unique id, the time stamp, the position at the trigger and the beam
monitor, as areaDetector's HDF5 plugin stores NDAttributes. Rows are joined to the stream on the *stored* unique id: a
plugin may drop frames, so the row number says nothing.

A row is whole when its unique id is written: that comes last. After a writer died the file is read to its last flush.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.geometry import Geometry
from ptycho_bluesky.io.hdf5 import dataset, float_attribute, open_file, read_string
from ptycho_bluesky.io.units import real_numbers

__all__ = [
    "BEAM",
    "COLUMNS",
    "DETECTOR",
    "FRAMES",
    "I0",
    "NO_ID",
    "POSITION_X",
    "POSITION_Y",
    "TIMESTAMP",
    "UNIQUE_ID",
    "append_rows",
    "create_datasets",
    "num_rows",
    "open_file",
    "read_columns",
    "read_geometry",
    "read_rows",
]

logger = logging.getLogger(__name__)

_ATTRIBUTES = "/entry/instrument/NDAttributes"
FRAMES = "/entry/data/data"
"""Frames (n, H, W), counts, chunk (1, H, W)."""
UNIQUE_ID = f"{_ATTRIBUTES}/NDArrayUniqueId"
"""Unique id (n,) int64; -1 where a row was made but never written."""
TIMESTAMP = f"{_ATTRIBUTES}/NDArrayTimeStamp"
"""End of exposure (n,) float64, seconds since the Unix epoch."""
POSITION_Y = f"{_ATTRIBUTES}/SampleY_m"
"""Row position (n,) float64, m."""
POSITION_X = f"{_ATTRIBUTES}/SampleX_m"
"""Column position (n,) float64, m."""
I0 = f"{_ATTRIBUTES}/I0"
"""Beam monitor (n,) float64."""
DETECTOR = "/entry/instrument/detector"
"""Group with attributes ``distance`` and ``x_pixel_size``, ``y_pixel_size`` in m, ``orientation``."""
BEAM = "/entry/instrument/beam"
"""Group with the attribute ``incident_energy`` in eV."""

COLUMNS = {"timestamp_s": TIMESTAMP, "position_y_m": POSITION_Y, "position_x_m": POSITION_X, "i0": I0}
"""Float columns by the name under which `append_rows` and documents know them."""
NO_ID = -1
"""Unique id of a row that was made but never written."""
COLUMN_CHUNK_ROWS = 1024


def create_datasets(
    file: h5py.File, frame_shape: tuple[int, int], dtype: Any, *, geometry: Geometry | None = None
) -> dict[str, h5py.Dataset]:
    """Create every group, dataset and attribute, empty, so that nothing is created after SWMR starts.

    Parameters
    ----------
    file : h5py.File
        Opened for writing with ``libver="latest"``.
    frame_shape : tuple of int
        (H, W).
    dtype : dtype
        Of the frames.
    geometry : Geometry, optional
        Left out when unknown.

    Returns
    -------
    dict
        Datasets by column name: ``image``, ``unique_id`` and the keys of `COLUMNS`.
    """
    entry = file.require_group("/entry")
    file.attrs["default"] = "entry"
    for path, kind in (
        ("/entry", "NXentry"),
        ("/entry/data", "NXdata"),
        ("/entry/instrument", "NXinstrument"),
        (DETECTOR, "NXdetector"),
        (BEAM, "NXbeam"),
        (_ATTRIBUTES, "NXcollection"),
    ):
        file.require_group(path).attrs["NX_class"] = kind
    entry.attrs["default"] = "data"
    file["/entry/data"].attrs["signal"] = "data"
    datasets = {
        "image": file.create_dataset(
            FRAMES, (0, *frame_shape), dtype=dtype, maxshape=(None, *frame_shape), chunks=(1, *frame_shape)
        ),
        "unique_id": file.create_dataset(
            UNIQUE_ID, (0,), dtype=np.int64, maxshape=(None,), chunks=(COLUMN_CHUNK_ROWS,), fillvalue=NO_ID
        ),
    }
    datasets["image"].attrs["interpretation"] = "image"
    datasets["image"].attrs["units"] = "counts"
    for name, path in COLUMNS.items():
        datasets[name] = file.create_dataset(
            path, (0,), dtype=np.float64, maxshape=(None,), chunks=(COLUMN_CHUNK_ROWS,), fillvalue=np.nan
        )
    for name, unit in (("timestamp_s", "s"), ("position_y_m", "m"), ("position_x_m", "m")):
        datasets[name].attrs["units"] = unit
    file[f"{DETECTOR}/data"] = h5py.SoftLink(FRAMES)
    if geometry is not None:
        file[DETECTOR].attrs.update(
            distance=geometry.distance_m,
            x_pixel_size=geometry.detector_pixel_m,
            y_pixel_size=geometry.detector_pixel_m,
            orientation=geometry.orientation,
        )
        file[BEAM].attrs["incident_energy"] = geometry.energy_eV
    return datasets


def append_rows(
    datasets: dict[str, h5py.Dataset], image: NDArray[Any], unique_id: NDArray[np.int64], **columns: NDArray[np.float64]
) -> None:
    """Append n frames with their columns; the unique ids come last, as they mark a row as whole.

    Parameters
    ----------
    datasets : dict
        From `create_datasets`.
    image : ndarray, shape (n, H, W)
    unique_id : ndarray of int64, shape (n,)
    **columns : ndarray of float64, shape (n,)
        Keys of `COLUMNS`; NaN where left out.
    """
    start = datasets["unique_id"].shape[0]
    stop = start + len(image)
    for name in ("image", *COLUMNS):
        datasets[name].resize(stop, axis=0)
        if name == "image":
            datasets[name][start:stop] = image
        elif name in columns:
            datasets[name][start:stop] = columns[name]
    datasets["unique_id"].resize(stop, axis=0)
    datasets["unique_id"][start:stop] = unique_id


def _refreshed(file: h5py.File, path: str) -> h5py.Dataset:
    found = dataset(file, path)
    found.refresh()
    return found


def num_rows(file: h5py.File) -> int:
    """Rows of which every column has been flushed."""
    return min(_refreshed(file, path).shape[0] for path in (FRAMES, UNIQUE_ID, *COLUMNS.values()))


def read_rows(source: str | Path | h5py.File, start: int = 0, stop: int | None = None) -> dict[str, NDArray[Any]]:
    """Read whole rows, as far as they are flushed.

    Parameters
    ----------
    source : path or h5py.File
        A path is opened for SWMR reading and closed again; a file must have been opened by `open_file`.
    start, stop : int
        Range of rows; what is not yet flushed is left out.

    Returns
    -------
    dict
        ``image`` (n, H, W), ``unique_id`` (n,) int64; ``timestamp_s`` (n,), ``position_m`` (n, 2), ``i0`` (n,) float64.
        Rows without a unique id, made but never written, are left out: n may be smaller than the range.

    Raises
    ------
    InputError
        The file cannot be opened or lacks a dataset.
    """
    if isinstance(source, h5py.File):
        return _read_rows(source, start, stop)
    with open_file(source) as file:
        return _read_rows(file, start, stop)


def _read_rows(file: h5py.File, start: int, stop: int | None) -> dict[str, NDArray[Any]]:
    available = num_rows(file)
    rows = slice(min(max(start, 0), available), available if stop is None else max(0, min(stop, available)))
    column, written = read_columns(file, rows)
    image = dataset(file, FRAMES)[rows]
    return {"image": image if written.all() else image[written], **column}


def read_columns(file: h5py.File, rows: slice) -> tuple[dict[str, NDArray[Any]], NDArray[np.bool_]]:
    """Read the columns beside the frames, for rows that are flushed.

    Returns
    -------
    dict
        As `read_rows`, without the frames.
    ndarray of bool
        Which of the rows were written; the others are left out of the columns.
    """
    unique_id = np.asarray(dataset(file, UNIQUE_ID)[rows], dtype=np.int64)
    column = {name: real_numbers(dataset(file, path)[rows], path) for name, path in COLUMNS.items()}
    content = {
        "unique_id": unique_id,
        "timestamp_s": column["timestamp_s"],
        "position_m": np.stack([column["position_y_m"], column["position_x_m"]], axis=1),
        "i0": column["i0"],
    }
    written = unique_id != NO_ID
    if not written.all():
        logger.warning("%s: %d rows were made but never written", file.filename, np.count_nonzero(~written))
    return {name: values[written] for name, values in content.items()}, written


def read_geometry(file: h5py.File) -> Geometry | None:
    """Geometry that the file states, None when any part is missing."""
    detector, beam = file.get(DETECTOR), file.get(BEAM)
    if not isinstance(detector, h5py.Group) or not isinstance(beam, h5py.Group):
        return None
    energy_eV = float_attribute(beam, "incident_energy")
    distance_m, pixel_m = float_attribute(detector, "distance"), float_attribute(detector, "x_pixel_size")
    if energy_eV is None or distance_m is None or pixel_m is None:
        return None
    orientation = read_string(detector.attrs.get("orientation", "identity"))
    return Geometry(energy_eV, distance_m, pixel_m, int(dataset(file, FRAMES).shape[-1]), orientation)
