"""Label sets as HDF5 files: one chunk a frame, compressed, so that single frames and ranges are read by their bytes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError, StorageError
from ptycho_bluesky.geometry import Geometry
from ptycho_bluesky.records import LabelSet

__all__ = [
    "compression",
    "frame_hashes",
    "read_header",
    "read_label_set",
    "rounded",
    "stored_hashes",
    "sweep",
    "write_frames",
    "write_label_set",
]

BY_FRAME = ("image", "phase_rad", "amplitude")
ARRAYS = (*BY_FRAME, "position_m", "frame_index", "probe", "weight")
COLUMNS = (*BY_FRAME, "position_m", "frame_index")
FORMAT_VERSION = 2
"""1: contiguous datasets without `HASHES`; read as well."""
HASHES = "frame_hash"
TEMPORARY = re.compile(r"\..+\.(h5|u64)\.\d+")
"""Names of files that are not yet whole."""
LEFT_S = 3600.0
"""Age from which on such a file is one whose writer died: none takes so long to write what is packed already."""
STEPS = {"phase_rad": 2.0**-13, "amplitude": 2.0**-13}
"""Phases and amplitudes are stored to 1.2e-4, wrong by 6e-5 at most; the best of labels are wrong by some 1e-2."""
LEAST_ROUNDED = 2.0**-6
"""Largest value under which a column is stored as it is: amplitudes in another unit, or a sample hardly there."""


def compression() -> Mapping[str, Any]:
    """Options of h5py for a dataset of frames: Blosc with LZ4, which unpacks fastest, after a shuffle of bits.

    Counts shrink to about a fifth by it (to two fifths after a shuffle of bytes), phases to two fifths once they are
    `rounded`: the bits below the rounding are zeros.
    """
    return hdf5plugin.Blosc(cname="lz4", clevel=5, shuffle=hdf5plugin.Blosc.BITSHUFFLE)


def rounded(name: str, value: NDArray[Any]) -> NDArray[Any]:
    """Frames as they are stored: phases and amplitudes as multiples of a step far below what a label knows.

    Parameters
    ----------
    name : str
        Of the column; those without an entry in `STEPS` stay as they are.
    value : ndarray, shape (..., h, w)
        Of a whole label set: where all of it is below `LEAST_ROUNDED` it stays as it is too.

    Returns
    -------
    ndarray
        Of the same type. Rounding twice changes nothing, so that files made of files are equal to them.
    """
    step = STEPS.get(name)
    if step is None or not np.issubdtype(value.dtype, np.floating):
        return value
    if np.nanmax(np.abs(value), initial=0.0) < LEAST_ROUNDED:
        return value
    # a power of two: quotient and product are exact, and in double precision neither leaves the range of the type
    return (np.rint(value.astype(np.float64) / step) * step).astype(value.dtype)


def frame_hashes(labels: LabelSet) -> NDArray[np.uint64]:
    """Name of every frame by its content and its number in the run, shape (n,): what is known under it is not new."""
    image = np.ascontiguousarray(labels.image)
    kind = f"{image.dtype.str}{image.shape[1:]}".encode()
    found = np.empty(len(image), dtype=np.uint64)
    for row, index in enumerate(np.asarray(labels.frame_index).tolist()):
        digest = hashlib.blake2b(image[row].data, digest_size=8, key=kind[:64])
        digest.update(int(index).to_bytes(8, "little", signed=True))
        found[row] = int.from_bytes(digest.digest(), "little")
    return found


def write_label_set(path: Path | str, labels: LabelSet, description: Mapping[str, Any] | None = None) -> None:
    """Write a label set to an HDF5 file, which appears whole or not at all.

    Phases and amplitudes are `rounded`; the header says so. The file is made in memory, which takes its packed size
    twice for a moment, and is written by Python: HDF5 cannot close a file that a full disk does not take, keeps its
    space until the process ends, and may crash then.

    Parameters
    ----------
    path : path
    labels : LabelSet
    description : mapping, optional
        JSON-able; kept in the file's header (`ptycho_bluesky.training.catalog` puts regime and acceptance there).

    Raises
    ------
    StorageError
        The file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{time.time_ns()}")
    try:
        temporary.write_bytes(_packed(labels, description))
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # HDF5 raises both
        with contextlib.suppress(OSError):  # the folder may be gone
            temporary.unlink(missing_ok=True)
        raise StorageError(
            f"label set {path}: {error}", "it must be writable", "free space or name another folder"
        ) from error


def sweep(directory: Path) -> None:
    """Remove files that writers who were killed left unfinished in a folder.

    Parameters
    ----------
    directory : path
        Others may be writing to it: what is young stays.
    """
    latest_s = time.time() - LEFT_S
    for path in directory.glob(".*"):
        if TEMPORARY.fullmatch(path.name):
            with contextlib.suppress(OSError):  # it is gone, or another user's: neither keeps anyone from working
                if path.stat().st_mtime < latest_s:
                    path.unlink()


def _packed(labels: LabelSet, description: Mapping[str, Any] | None) -> bytes:
    """Content of the HDF5 file of a label set; nothing is written."""
    # By a name of its own: HDF5 refuses two open files of one name, in memory as well, and threads may write at once.
    # Without a cache of chunks, which keeps them until many can be put down one dataset after the other
    with h5py.File(uuid.uuid4().hex, "w", driver="core", backing_store=False, rdcc_nbytes=0) as file:
        write_frames(file, {name: np.asarray(getattr(labels, name)) for name in BY_FRAME})
        for name in ARRAYS:
            if name not in file:
                file.create_dataset(name, data=np.asarray(getattr(labels, name)))
        file.create_dataset(HASHES, data=frame_hashes(labels))
        header = {
            "format_version": FORMAT_VERSION,
            "run_uid": labels.run_uid,
            "pixel_size_m": None if np.isnan(labels.pixel_size_m) else float(labels.pixel_size_m),
            "geometry": labels.geometry.as_dict() if labels.geometry else None,
            "provenance": dict(labels.provenance),
            "description": dict(description or {}),
            "rounded_to": STEPS,
            "written_s": time.time(),
        }
        file.attrs["header"] = json.dumps(header, default=str)
        file.flush()
        return file.id.get_file_image()


def write_frames(file: h5py.File, columns: Mapping[str, NDArray[Any]]) -> None:
    """Write columns by frame, `rounded` and compressed, and where each frame lies.

    Frame and phase lie side by side, since they are read together; amplitudes, which few networks read, behind them.

    Parameters
    ----------
    file : h5py.File
        Opened without a cache of chunks (``rdcc_nbytes=0``), which would keep them until many can be put down one
        dataset after the other.
    columns : dict of str to ndarray, shape (n, h, w)
        Of `BY_FRAME`; those of another shape are passed over.
    """
    from ptycho_bluesky.training.loading.chunks import store_row_tables

    values = {name: rounded(name, value) for name, value in columns.items() if value.ndim == 3 and value.size}
    datasets = {
        name: file.create_dataset(name, value.shape, value.dtype, chunks=(1, *value.shape[1:]), **compression())
        for name, value in values.items()
    }
    for names in (BY_FRAME[:2], BY_FRAME[2:]):
        present = [name for name in names if name in values]
        for row in range(max((len(values[name]) for name in present), default=0)):
            for name in present:
                datasets[name][row] = values[name][row]
    file.flush()
    store_row_tables(file, list(values))


def read_label_set(path: Path | str, rows: NDArray[Any] | None = None) -> LabelSet:
    """Read what `write_label_set` wrote.

    Parameters
    ----------
    path : path
    rows : ndarray of int64, optional
        Strictly rising: read these frames alone.

    Raises
    ------
    InputError
        The file is missing, damaged, or of a newer format.
    """
    try:
        with h5py.File(path, "r") as file:
            header = read_header(file)
            if header["format_version"] > FORMAT_VERSION:
                raise InputError(f"label set {path}", "its format is newer than this software", "upgrade")
            pixel_size_m = header["pixel_size_m"]
            arrays: dict[str, Any] = {name: _read(file, name, rows) for name in ARRAYS}
            return LabelSet(
                **arrays,
                pixel_size_m=float("nan") if pixel_size_m is None else float(pixel_size_m),
                geometry=Geometry.from_dict(header["geometry"]),
                run_uid=header["run_uid"],
                provenance=header["provenance"],
            )
    except (OSError, KeyError) as error:
        raise InputError(f"label set {path}: {error}", "an HDF5 file written by this package is needed") from error


def stored_hashes(path: Path) -> NDArray[np.uint64]:
    """Hashes of the frames of a label-set file.

    Raises
    ------
    InputError
        The file is missing or damaged.
    """
    try:
        with h5py.File(path, "r") as file:
            stored = file.get(HASHES)
            if isinstance(stored, h5py.Dataset):
                return stored[()]
    except OSError as error:
        raise InputError(
            f"label set {path}: {error}", "an HDF5 file written by this package is needed", "remove the file"
        ) from error
    return frame_hashes(read_label_set(path))  # written by an earlier version


def _read(file: h5py.File, name: str, rows: NDArray[Any] | None) -> NDArray[Any]:
    """A dataset, of the frames' own ones only some rows."""
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise KeyError(name)
    return np.asarray(dataset[()] if rows is None or name not in COLUMNS else dataset[rows])


def read_header(file: h5py.File) -> dict[str, Any]:
    """Header of an open label-set file.

    Raises
    ------
    KeyError
        It has none.
    """
    return json.loads(str(file.attrs["header"]))
