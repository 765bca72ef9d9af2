"""Frames of many HDF5 files as one table, read in sorted and merged ranges of rows."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401 - its import makes the compressions known to HDF5
import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.training.loading.page_cache import BLOCK_BYTES, RowBytes, merged_spans, read_through

__all__ = ["FrameStore", "merge_ranges"]

LABEL_SET_COLUMNS = ("image", "phase_rad")
FEWEST_ROWS_AT_ONCE = 4


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


class FrameStore:
    """Rows of the same datasets in several files, numbered through.

    Parameters
    ----------
    files : sequence of path
        HDF5 files, e.g. of `ptycho_bluesky.training.corpus.Corpus`.
    columns : sequence of str
        Datasets to read; in every file their first axes are equally long, the others alike.
    max_gap : int
        See `merge_ranges`.

    Attributes
    ----------
    frames_read : int
        Rows that were asked for and read, over the store's life.
    frames_read_along : int
        Rows in gaps that were read though nobody asked.
    calls : int
        Reads of one range of one dataset.

    Raises
    ------
    InputError
        A file or dataset is missing, or they differ in shape or type.
    """

    def __init__(
        self, files: Sequence[Path | str], columns: Sequence[str] = LABEL_SET_COLUMNS, max_gap: int = 0
    ) -> None:
        if not files:
            raise InputError("no files", "a corpus holds at least one label set")
        self._files = [_opened(Path(path)) for path in files]
        self.columns, self.max_gap = tuple(columns), max_gap
        self.shapes: Mapping[str, tuple[int, ...]]
        self.dtypes: Mapping[str, np.dtype[Any]]
        sizes = [self._check(file) for file in self._files]
        self._first = np.concatenate([[0], np.cumsum(sizes)])
        self.frames_read = self.frames_read_along = self.calls = 0
        self._bytes = [[RowBytes(_dataset(file, name)) for name in self.columns] for file in self._files]
        self._descriptors = [os.open(file.filename, os.O_RDONLY) for file in self._files]
        self._scratch = bytearray(BLOCK_BYTES)

    def _check(self, file: h5py.File) -> int:
        sizes: set[int] = set()
        shapes: dict[str, tuple[int, ...]] = {}
        dtypes: dict[str, np.dtype[Any]] = {}
        for name in self.columns:
            found = _dataset(file, name)
            sizes.add(found.shape[0])
            shapes[name], dtypes[name] = tuple(found.shape[1:]), found.dtype
        if len(sizes) != 1:
            raise InputError(f"{file.filename}: datasets of {sorted(sizes)} rows", "every frame has one label")
        known = getattr(self, "shapes", shapes), getattr(self, "dtypes", dtypes)
        if known != (shapes, dtypes):
            raise InputError(
                f"{file.filename}: rows {shapes} of {dtypes}", f"the files before have {known[0]} of {known[1]}",
                "load each geometry by itself",
            )  # fmt: skip
        self.shapes, self.dtypes = shapes, dtypes
        return sizes.pop()

    def __len__(self) -> int:
        return int(self._first[-1])

    def empty(self, num_frames: int) -> dict[str, NDArray[Any]]:
        """Uninitialised arrays for so many rows."""
        return {name: np.empty((num_frames, *self.shapes[name]), self.dtypes[name]) for name in self.columns}

    def read(self, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Read rows.

        Parameters
        ----------
        rows : ndarray of int64, shape (n,)
            Strictly rising.

        Returns
        -------
        dict of str to ndarray, shape (n, ...)
        """
        if not self._descriptors:
            raise InputError("a closed store", "it is read while it is open")
        if len(rows) and not 0 <= rows[0] <= rows[-1] < len(self):
            raise InputError(f"rows {rows[0]} to {rows[-1]}", f"the store has {len(self)}")
        out = self.empty(len(rows))
        done = 0
        for number, file in enumerate(self._files):
            first, behind = self._first[number], self._first[number + 1]
            here = rows[np.searchsorted(rows, first) : np.searchsorted(rows, behind)] - first
            if len(here):
                self._read_bytes(number, here)
                self._read_file(file, here, {name: array[done : done + len(here)] for name, array in out.items()})
                done += len(here)
        self.frames_read += len(rows)
        return out

    def _read_bytes(self, number: int, rows: NDArray[np.int64]) -> None:
        """Have the rows in the page cache before HDF5 asks for one after the other."""
        if len(rows) < FEWEST_ROWS_AT_ONCE:
            return
        spans = merged_spans(self._bytes[number], rows)
        read_through(self._descriptors[number], spans, self._scratch)

    def _read_file(self, file: h5py.File, rows: NDArray[np.int64], out: Mapping[str, NDArray[Any]]) -> None:
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
            self.frames_read_along += behind - first - len(wanted)
            done += len(wanted)

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()
        while self._descriptors:
            os.close(self._descriptors.pop())


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
