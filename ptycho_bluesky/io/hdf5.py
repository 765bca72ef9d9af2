"""Opening HDF5 files that may still be written, and typed access to what is in them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  (registers the compression filters of detectors)
import numpy as np

from ptycho_bluesky.errors import InputError

__all__ = [
    "HDF5_SIGNATURE",
    "dataset",
    "float_attribute",
    "has_dataset",
    "is_unclosed",
    "open_file",
    "read_scalar",
    "read_string",
]

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
END_OF_FILE_OFFSET = {0: 40, 1: 44, 2: 28, 3: 28}
"""Where superblocks of each version keep the end-of-file address, for the usual 8-byte addresses."""
TRUNCATION_CHECKS = 5
TRUNCATION_CHECK_PERIOD_S = 0.1


def open_file(path: str | Path) -> h5py.File:
    """Open a file for reading that may still be written, or whose writer may have died.

    Raises
    ------
    InputError
        The file is missing or is no readable HDF5.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"file {path}", "it does not exist", "check the path")
    _refuse_truncated(path)
    try:
        # After a writer was killed nothing but SWMR opens the file.
        return h5py.File(path, "r", libver="latest", swmr=True)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"{path}: {error}", "it must be a readable HDF5 file", "check it with h5dump, and that its writer uses SWMR"
        ) from error


def _refuse_truncated(path: Path) -> None:
    """Refuse a file that is shorter than it says: HDF5 would wait for the rest, for hours, as for a slow writer."""
    size, stored = path.stat().st_size, _stored_size(path)
    for _ in range(TRUNCATION_CHECKS):
        if stored is None or size >= stored:
            return
        # A writer that lives may be between two writes.
        time.sleep(TRUNCATION_CHECK_PERIOD_S)
        size, stored = path.stat().st_size, _stored_size(path)
    raise InputError(f"{path} of {size} bytes", f"it says that it has {stored}: it was cut short", "copy it again")


def _stored_size(path: Path) -> int | None:
    """Size that the superblock states (HDF5 File Format Specification 3.0, §II.A); None where there is none."""
    with path.open("rb") as stream:
        head = stream.read(64)
    if len(head) < 64 or head[:8] != HDF5_SIGNATURE or head[8] not in END_OF_FILE_OFFSET:
        return None
    offset = END_OF_FILE_OFFSET[head[8]]
    return int.from_bytes(head[offset : offset + 8], "little")


def is_unclosed(path: str | Path) -> bool:
    """Whether a readable HDF5 file was left open by its writer: it grows, or its writer died.

    Ask before opening it: HDF5 opens a file once more without looking while this process has it open.
    """
    try:
        with h5py.File(path, "r"):
            return False
    except (OSError, RuntimeError):
        return True


def has_dataset(group: h5py.Group, path: str) -> bool:
    """Whether a dataset of this name can be reached (a broken link cannot)."""
    return isinstance(group.get(path), h5py.Dataset)


def dataset(group: h5py.Group, path: str) -> h5py.Dataset:
    """The dataset of this name.

    Raises
    ------
    InputError
        It is missing, or is something else.
    """
    found = group.get(path)
    if not isinstance(found, h5py.Dataset):
        raise InputError(f"{group.file.filename}: no dataset {path}", "the format has one there", "check the file")
    return found


def float_attribute(item: h5py.Group | h5py.Dataset, name: str) -> float | None:
    """A number stored as an attribute, None where there is none."""
    return _number(item.attrs[name]) if name in item.attrs else None


def read_scalar(group: h5py.Group, path: str) -> float | None:
    """A number stored as a dataset of one value (or of equal ones: the first), None where there is none."""
    return _number(dataset(group, path)[()]) if has_dataset(group, path) else None


def _number(value: Any) -> float | None:
    flat = np.asarray(value).ravel()
    if not flat.size or not (np.issubdtype(flat.dtype, np.integer) or np.issubdtype(flat.dtype, np.floating)):
        return None
    return float(flat[0])


def read_string(value: Any) -> str:
    """Text of an attribute or scalar dataset, whichever way HDF5 stored it."""
    item = np.asarray(value).ravel()[0] if np.size(value) else ""
    return item.decode() if isinstance(item, bytes) else str(item)
