"""A measurement as a plain file between the worker and the processes that compute for it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import Geometry
from ptycho_bluesky.records import Measurement
from ptycho_bluesky.workflow.client import jsonable
from ptycho_bluesky.workflow.files import write_bytes

__all__ = ["read_measurement_file", "write_measurement_file"]

ARRAYS = ("image", "position_m", "frame_index", "unique_id", "timestamp_s", "i0")
OPTIONAL_ARRAYS = ("probe", "mask")


def write_measurement_file(path: Path, measurement: Measurement) -> None:
    """Write a measurement, whole or not at all; raises `StorageError` when the disk is full."""
    header = {
        "geometry": measurement.geometry.as_dict() if measurement.geometry else None,
        "pixel_size_m": measurement.pixel_size_m,
        "run_uid": measurement.run_uid,
        "metadata": measurement.metadata,
    }
    arrays: dict[str, Any] = {name: np.asarray(getattr(measurement, name)) for name in ARRAYS}
    arrays |= {name: value for name in OPTIONAL_ARRAYS if (value := getattr(measurement, name)) is not None}
    buffer = io.BytesIO()
    np.savez(buffer, header=np.array(json.dumps(jsonable(header))), **arrays)
    write_bytes(path, buffer.getvalue())


def read_measurement_file(path: Path) -> Measurement:
    """Read what `write_measurement_file` wrote.

    Raises
    ------
    InputError
        The file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(str(file["header"]))
            arrays: dict[str, Any] = {name: file[name] for name in (*ARRAYS, *OPTIONAL_ARRAYS) if name in file}
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"measurement {path}: {error}", "the worker writes it when it reads a run") from error
    return Measurement(
        **arrays,
        geometry=Geometry.from_dict(header["geometry"]),
        pixel_size_m=header["pixel_size_m"],
        run_uid=header["run_uid"],
        metadata=header["metadata"],
    )
