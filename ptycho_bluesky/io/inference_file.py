"""Inferences on disk: frame by frame while they stream, and the mosaic at the end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky._version import __version__
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import Geometry, ObjectFrame
from ptycho_bluesky.io.hdf5 import dataset, has_dataset, open_file, read_string
from ptycho_bluesky.io.storage import UNKNOWN, read_geometry, storage_errors, to_json, write_geometry
from ptycho_bluesky.records import InferredBatch, Mosaic

__all__ = ["InferenceWriter", "StoredInference", "read_inference", "read_mosaic_group", "write_mosaic_group"]

CHUNK_FRAMES = 16
COLUMN_CHUNK_ROWS = 1024
MODEL_ID_DTYPE = np.dtype("S80")
"""A content hash has 64 characters; SWMR allows no strings of variable length."""


@dataclass(frozen=True)
class StoredInference:
    """What `InferenceWriter` wrote.

    Attributes
    ----------
    phase_rad : ndarray of float32, shape (n, h, w)
    frame_index, unique_id : ndarray of int64, shape (n,)
    position_m : ndarray of float64, shape (n, 2)
    residual : ndarray of float32, shape (n,)
    timestamp_s : ndarray of float64, shape (n,)
    model_id : tuple of str
        One a frame.
    run_uid : str
    mosaic : Mosaic or None
        None where the writer did not finish.
    metadata : dict
    """

    phase_rad: NDArray[np.float32]
    frame_index: NDArray[np.int64]
    unique_id: NDArray[np.int64]
    position_m: NDArray[np.float64]
    residual: NDArray[np.float32]
    timestamp_s: NDArray[np.float64]
    model_id: tuple[str, ...]
    run_uid: str
    mosaic: Mosaic | None
    metadata: Mapping[str, Any] = field(default_factory=dict)


class InferenceWriter:
    """Streams inferred frames to an HDF5 file, batch by batch, and closes with the mosaic.

    Parameters
    ----------
    path : path
        Replaced if it exists.
    geometry : Geometry, optional
        None is written as ``geometry: unknown``; positions are then in object pixels and called ``position_px``.
    pixel_size_m : float, optional
        Of the patches, where it is known without a geometry.
    metadata : mapping, optional
        JSON-able; stored with the file.

    Raises
    ------
    StorageError
        The disk is full or the folder cannot be written.

    Notes
    -----
    Each batch is flushed, and the file can be read while it grows or after a crash (SWMR). Use it as a context manager;
    leaving it without `finish` keeps the frames and no mosaic.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        geometry: Geometry | None = None,
        pixel_size_m: float | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        self._known = geometry is not None or pixel_size_m is not None
        with storage_errors(self.path):
            self._file = h5py.File(self.path, "w", libver="latest")
            write_geometry(self._file, geometry)
            self._file.attrs["version"] = __version__
            self._file.attrs["metadata"] = to_json(dict(metadata or {}))
            if self._known:
                pixel_m = pixel_size_m if geometry is None else geometry.object_pixel_m
                self._file.attrs["object_pixel_m"] = pixel_m
        self._rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self._rows

    def append(self, batch: InferredBatch) -> None:
        """Add the frames of a batch; the first one fixes run and patch shape.

        Raises
        ------
        InputError
            The batch is of another run or patch shape.
        StorageError
            The disk is full.
        """
        with storage_errors(self.path):
            if not self._rows and "phase_rad" not in self._file:
                self._create(batch)
            if read_string(self._file.attrs["run_uid"]) != batch.frames.run_uid:
                raise InputError(f"a batch of run {batch.frames.run_uid}", "a file holds one run")
            if batch.phase_rad.shape[1:] != dataset(self._file, "phase_rad").shape[1:]:
                raise InputError(f"patches of shape {batch.phase_rad.shape[1:]}", "a file holds one shape of patches")
            n = len(batch.frames)
            columns = {
                "phase_rad": batch.phase_rad,
                self._position_name: batch.frames.position_m,
                "frame_index": batch.frames.frame_index,
                "unique_id": batch.frames.unique_id,
                "timestamp_s": batch.frames.timestamp_s,
                "residual": batch.residual,
                "model_id": np.full(n, batch.model_id.encode(), dtype=MODEL_ID_DTYPE),
            }
            for name, values in columns.items():
                item = dataset(self._file, name)
                item.resize(self._rows + n, axis=0)
                item[self._rows :] = values
            self._rows += n
            self._file.flush()

    @property
    def _position_name(self) -> str:
        return "position_m" if self._known else "position_px"

    def _create(self, batch: InferredBatch) -> None:
        h, w = batch.phase_rad.shape[1:]
        self._file.attrs["run_uid"] = batch.frames.run_uid
        shapes: dict[str, tuple[Any, tuple[int, ...]]] = {
            "phase_rad": (np.float32, (h, w)),
            self._position_name: (np.float64, (2,)),
            "frame_index": (np.int64, ()),
            "unique_id": (np.int64, ()),
            "timestamp_s": (np.float64, ()),
            "residual": (np.float32, ()),
            "model_id": (MODEL_ID_DTYPE, ()),
        }
        for name, (dtype, item) in shapes.items():
            chunk = CHUNK_FRAMES if name == "phase_rad" else COLUMN_CHUNK_ROWS
            self._file.create_dataset(name, (0, *item), dtype=dtype, maxshape=(None, *item), chunks=(chunk, *item))
        units = {"phase_rad": "rad", self._position_name: "m" if self._known else "px", "timestamp_s": "s"}
        for name, unit in units.items():
            dataset(self._file, name).attrs["units"] = unit
        # Nothing can be created any more, but from here on a crash costs no more than the last batch.
        self._file.swmr_mode = True

    def finish(self, mosaic: Mosaic) -> None:
        """Add the mosaic and close the file.

        Raises
        ------
        StorageError
            The disk is full.
        """
        self.close()
        with storage_errors(self.path), h5py.File(self.path, "r+") as file:
            write_mosaic_group(file.create_group("mosaic"), mosaic)

    def close(self) -> None:
        """Close the file; closing twice does no harm."""
        with storage_errors(self.path):
            self._file.close()


def write_mosaic_group(group: h5py.Group, mosaic: Mosaic) -> None:
    """Write a mosaic into a group of an open file."""
    for name in ("phase_rad", "weight", "coverage", "variance"):
        group.create_dataset(name, data=getattr(mosaic, name), compression="lzf")
    group["phase_rad"].attrs["units"] = "rad"
    for name, values in mosaic.maps.items():
        group.create_dataset(f"maps/{name}", data=values, compression="lzf")
    for name, values in mosaic.frame_log.items():
        group.create_dataset(f"frame_log/{name}", data=values)
    group.attrs["frame"] = to_json(mosaic.frame.as_dict())
    group.attrs["run_uid"] = mosaic.run_uid
    group.attrs["model_ids"] = to_json(list(mosaic.model_ids))


def read_mosaic_group(group: h5py.Group) -> Mosaic:
    """Inverse of `write_mosaic_group`."""

    def members(name: str) -> dict[str, NDArray[Any]]:
        found = group.get(name)
        if not isinstance(found, h5py.Group):
            return {}
        keys = [str(key) for key in found]
        return {key: dataset(found, key)[()] for key in keys}

    phase, weight, coverage, variance = (
        np.asarray(dataset(group, name)[()]) for name in ("phase_rad", "weight", "coverage", "variance")
    )
    return Mosaic(
        phase,
        weight,
        coverage,
        variance,
        ObjectFrame.from_dict(json.loads(read_string(group.attrs["frame"]))),
        read_string(group.attrs["run_uid"]),
        members("frame_log"),
        tuple(json.loads(read_string(group.attrs["model_ids"]))),
        members("maps"),
    )


def read_inference(path: str | Path) -> StoredInference:
    """Read what an `InferenceWriter` wrote, finished or not.

    Raises
    ------
    InputError
        The file holds no inference.
    """
    with open_file(path) as file:
        names = ("phase_rad", "frame_index", "unique_id", "residual", "timestamp_s", "model_id")
        position = "position_m" if has_dataset(file, "position_m") else "position_px"
        items = {name: dataset(file, name) for name in (*names, position)}
        # A crash may have come between two columns: rows count that every column has.
        n = min(item.shape[0] for item in items.values())
        column = {name: items[name][:n] for name in (*names, position)}
        group = file.get("mosaic")
        finished = isinstance(group, h5py.Group) and "model_ids" in group.attrs
        geometry = read_geometry(file)
        metadata = {
            "geometry": UNKNOWN if geometry is None else geometry.as_dict(),
            "version": read_string(file.attrs.get("version", "")),
            **json.loads(read_string(file.attrs.get("metadata", "{}"))),
        }
        return StoredInference(
            phase_rad=column["phase_rad"],
            frame_index=column["frame_index"],
            unique_id=column["unique_id"],
            position_m=column[position],
            residual=column["residual"],
            timestamp_s=column["timestamp_s"],
            model_id=tuple(read_string(value) for value in column["model_id"]),
            run_uid=read_string(file.attrs.get("run_uid", "")),
            mosaic=read_mosaic_group(group) if finished and isinstance(group, h5py.Group) else None,
            metadata=metadata,
        )
