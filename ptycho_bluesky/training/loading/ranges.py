"""Frames of many HDF5 files as one table, read in sorted and merged ranges of rows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401 - its import makes the compressions known to HDF5
import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.training.loading.blocks import BlockFile, BlockReaders
from ptycho_bluesky.training.loading.chunks import BLOCK_BYTES, RowTable, read_rows, row_table
from ptycho_bluesky.training.loading.unpacking import prepare

__all__ = ["FrameStore", "merge_ranges"]

LABEL_SET_COLUMNS = ("image", "phase_rad")
MAX_OPEN_FILES = 128
"""Files open at a time: a corpus may have more of them than a process may open."""


def merge_ranges(rows: NDArray[np.int64], max_gap: int = 0) -> NDArray[np.int64]:
    """Merge sorted rows into ranges.

    Parameters
    ----------
    rows : ndarray of int64, shape (n,)
        Strictly rising.
    max_gap : int
        Rows between two wanted ones that are read along rather than skipped.

    Returns
    -------
    ndarray of int64, shape (k, 2)
        First row and the one behind the last of each range.

    Raises
    ------
    InputError
        The rows do not rise.
    """
    if len(rows) == 0:
        return np.zeros((0, 2), dtype=np.int64)
    steps = np.diff(rows)
    if (steps <= 0).any():
        raise InputError("rows that do not rise", "ranges are merged from sorted rows without repeats")
    cuts = np.flatnonzero(steps > max_gap + 1)
    first = rows[np.concatenate([[0], cuts + 1])]
    last = rows[np.concatenate([cuts, [len(rows) - 1]])]
    return np.stack([first, last + 1], axis=1)


@dataclass
class _Opened:
    """A file that is being read; of one whose rows are read by their bytes, HDF5 itself has no need any more."""

    blocks: BlockFile
    file: h5py.File | None

    def close(self) -> None:
        self.blocks.close()
        if self.file is not None:
            self.file.close()


class FrameStore:
    """Rows of the same datasets in several files, numbered through.

    Rows that HDF5 stores contiguously, or one a chunk and uncompressed or by Blosc, are read by their bytes
    (`ptycho_bluesky.training.loading.chunks`); others by h5py in merged ranges.

    Parameters
    ----------
    files : sequence of path
        HDF5 files, e.g. of `ptycho_bluesky.training.corpus.Corpus`.
    columns : sequence of str
        Datasets to read; in every file their first axes are equally long, the others alike.
    max_gap : int
        See `merge_ranges`; of rows that are read by h5py.
    rows : ndarray of int64, optional
        Strictly rising: of all rows only these are in the store, numbered through anew.

    Attributes
    ----------
    frames_read : int
        Rows that were asked for and read, over the store's life.
    calls : int
        Reads of a block of bytes, or of one range of one dataset.

    Raises
    ------
    InputError
        A file or dataset is missing, or they differ in shape or type.

    Notes
    -----
    At most `MAX_OPEN_FILES` files are open. What stays in memory of a file that was read is 13 bytes a row and column.
    """

    def __init__(
        self,
        files: Sequence[Path | str],
        columns: Sequence[str] = LABEL_SET_COLUMNS,
        max_gap: int = 0,
        rows: NDArray[np.int64] | None = None,
    ) -> None:
        if not files:
            raise InputError("no files", "a corpus holds at least one label set")
        self.columns, self.max_gap = tuple(columns), max_gap
        self.shapes: Mapping[str, tuple[int, ...]]
        self.dtypes: Mapping[str, np.dtype[Any]]
        self._paths = [Path(path) for path in files]
        sizes = np.array([0, *(self._check(path) for path in self._paths)], dtype=np.int64)
        self._first = np.cumsum(sizes)
        self._tables: dict[int, dict[str, RowTable] | None] = {}
        self._open: OrderedDict[int, _Opened] = OrderedDict()
        self._closed = False
        self._readers = BlockReaders(BLOCK_BYTES)
        self._rows = rows
        if rows is not None and len(rows) and not 0 <= rows[0] <= rows[-1] < self._first[-1]:
            raise InputError(f"rows {rows[0]} to {rows[-1]}", f"the files have {self._first[-1]}")
        self.frames_read = self.calls = 0
        prepare()

    def _check(self, path: Path) -> int:
        sizes: set[int] = set()
        shapes: dict[str, tuple[int, ...]] = {}
        dtypes: dict[str, np.dtype[Any]] = {}
        with _opened(path) as file:
            for name in self.columns:
                found = _dataset(file, name)
                sizes.add(found.shape[0])
                shapes[name], dtypes[name] = tuple(found.shape[1:]), found.dtype
        if len(sizes) != 1:
            raise InputError(f"{path}: datasets of {sorted(sizes)} rows", "every frame has one label")
        known = getattr(self, "shapes", shapes), getattr(self, "dtypes", dtypes)
        if known != (shapes, dtypes):
            raise InputError(
                f"{path}: rows {shapes} of {dtypes}", f"the files before have {known[0]} of {known[1]}",
                "load each geometry by itself",
            )  # fmt: skip
        self.shapes, self.dtypes = shapes, dtypes
        return sizes.pop()

    def __len__(self) -> int:
        return int(self._first[-1]) if self._rows is None else len(self._rows)

    def file_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of the file that each row is in."""
        rows = rows if self._rows is None else self._rows[rows]
        return np.searchsorted(self._first, rows, side="right") - 1

    def empty(self, num_frames: int) -> dict[str, NDArray[Any]]:
        """Uninitialised arrays for so many rows."""
        return {name: np.empty((num_frames, *self.shapes[name]), self.dtypes[name]) for name in self.columns}

    def read(self, rows: NDArray[np.int64], out: Mapping[str, NDArray[Any]] | None = None) -> dict[str, NDArray[Any]]:
        """Read rows.

        Parameters
        ----------
        rows : ndarray of int64, shape (n,)
            Strictly rising.
        out : dict of str to ndarray, optional
            Memory to use again, of at least n rows, as `empty` makes it; what is returned are parts of it.

        Returns
        -------
        dict of str to ndarray, shape (n, ...)

        Raises
        ------
        InputError
            The store is closed, a row is not in it, or a file was cut.
        """
        if self._closed:
            raise InputError("a closed store", "it is read while it is open")
        if len(rows) and not 0 <= rows[0] <= rows[-1] < len(self):
            raise InputError(f"rows {rows[0]} to {rows[-1]}", f"the store has {len(self)}")
        wanted = rows if self._rows is None else self._rows[rows]
        memory = self.empty(len(wanted)) if out is None else out
        found = {name: memory[name][: len(wanted)] for name in self.columns}
        cuts = np.searchsorted(wanted, self._first)
        for number in np.flatnonzero(np.diff(cuts)).tolist():
            part = slice(cuts[number], cuts[number + 1])
            self._read_file(
                number, wanted[part] - self._first[number], {name: array[part] for name, array in found.items()}
            )
        self.frames_read += len(rows)
        return found

    def _read_file(self, number: int, rows: NDArray[np.int64], out: Mapping[str, NDArray[Any]]) -> None:
        opened = self._opened(number)
        tables = self._tables[number]
        try:
            if tables is not None:
                self.calls += read_rows(opened.blocks, tables, rows, out, self._readers)
            elif opened.file is not None:
                self._read_ranges(opened.file, rows, out)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"label set {self._paths[number]}: {error}", "the file must be whole", "remove it"
            ) from error

    def _read_ranges(self, file: h5py.File, rows: NDArray[np.int64], out: Mapping[str, NDArray[Any]]) -> None:
        done = 0
        for first, behind in merge_ranges(rows, self.max_gap).tolist():
            wanted = rows[done : np.searchsorted(rows, behind)] - first
            for name in self.columns:
                dataset = _dataset(file, name)
                if len(wanted) == behind - first:
                    dataset.read_direct(out[name], np.s_[first:behind], np.s_[done : done + len(wanted)])
                else:
                    out[name][done : done + len(wanted)] = dataset[first:behind][wanted]
            self.calls += len(self.columns)
            done += len(wanted)

    def _opened(self, number: int) -> _Opened:
        """A file, opened when it is first needed; the one longest unused is closed for it."""
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        if len(self._open) >= MAX_OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        path = self._paths[number]
        file: h5py.File | None = None
        if self._tables.get(number) is None:
            file = _opened(path)
            if number not in self._tables:
                found = {name: row_table(_dataset(file, name)) for name in self.columns}
                known = {name: table for name, table in found.items() if table is not None}
                self._tables[number] = known if len(known) == len(found) else None
            if self._tables[number] is not None:
                file.close()
                file = None
        self._open[number] = _Opened(BlockFile(path), file)
        return self._open[number]

    def close(self) -> None:
        """Close the files."""
        self._closed = True
        self._readers.close()
        while self._open:
            self._open.popitem()[1].close()


def _opened(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"label set {path}: {error}", "an HDF5 file of labels is needed", "remove it") from error


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    found = file.get(name)
    if not isinstance(found, h5py.Dataset) or found.ndim < 1:
        raise InputError(f"{file.filename}: no dataset {name}", "label sets hold it", "leave the file out")
    return found
