"""Writing that fails clearly: JSON of arrays, atomic replacement, a full disk named as such."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ptycho_bluesky.errors import StorageError
from ptycho_bluesky.geometry import Geometry
from ptycho_bluesky.io.hdf5 import read_string

__all__ = ["UNKNOWN", "read_geometry", "replacing", "storage_errors", "to_json", "write_geometry"]

UNKNOWN = "unknown"
"""What a product says where a geometry would be."""
_NO_ROOM = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EFBIG,
)


class _JsonEncoder(json.JSONEncoder):
    def default(self, o: Any) -> Any:
        if isinstance(o, np.ndarray):
            return o.tolist()
        if isinstance(o, np.generic):
            return o.item()
        if isinstance(o, Path):
            return str(o)
        return super().default(o)


def to_json(content: Any) -> str:
    """JSON text; arrays become lists, paths text."""
    return json.dumps(content, cls=_JsonEncoder)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the errors of a full disk or an unwritable folder into a `StorageError` that names the path."""
    try:
        yield
    except OSError as error:
        # h5py reports a full disk as a plain OSError whose text alone names the cause.
        text = str(error).lower()
        if error.errno in _NO_ROOM or "no space left" in text or "unable to" in text or "can't write" in text:
            raise StorageError(
                f"{path}: {error}", "it must be writable, with room", "free some space, or name another folder"
            ) from error
        raise


@contextmanager
def replacing(path: Path) -> Iterator[h5py.File]:
    """A new file that takes its name only when it is complete."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with storage_errors(path):
            with h5py.File(partial, "w") as file:
                yield file
            partial.replace(path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_geometry(group: h5py.Group, geometry: Geometry | None) -> None:
    """Store a geometry as the attribute ``geometry``."""
    group.attrs["geometry"] = UNKNOWN if geometry is None else to_json(geometry.as_dict())


def read_geometry(group: h5py.Group) -> Geometry | None:
    """Inverse of `write_geometry`."""
    text = read_string(group.attrs.get("geometry", UNKNOWN))
    return None if text == UNKNOWN else Geometry.from_dict(json.loads(text))
