"""Reading a run's own file: columns and frames, while the detector still writes it or after its writer died."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.io.area_detector import open_file
from ptycho_bluesky.streaming.run_documents import FileColumn

__all__ = ["FileColumns", "FileFrameSource"]

FLOAT_COLUMNS = ("timestamp_s", "position_y_m", "position_x_m", "i0")


@dataclass(frozen=True)
class FileColumns:
    """Rows of a file, without the frames.

    Attributes
    ----------
    first_row : int
    unique_id : ndarray of int64, shape (n,)
        -1 where a row was made but never written.
    timestamp_s, i0 : ndarray of float64, shape (n,)
        NaN where the file has none.
    position_m : ndarray of float64, shape (n, 2)
    """

    first_row: int
    unique_id: NDArray[np.int64]
    timestamp_s: NDArray[np.float64]
    position_m: NDArray[np.float64]
    i0: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.unique_id)


class FileFrameSource:
    """Reads the columns that a run's StreamResource documents announced.

    Parameters
    ----------
    columns : mapping of str to FileColumn
        ``image`` and ``unique_id`` are required; they may lie in one file or in several.
    """

    def __init__(self, columns: Mapping[str, FileColumn]) -> None:
        missing = {"image", "unique_id"} - set(columns)
        if missing:
            raise InputError(f"run without column {sorted(missing)}", "frames are joined on the stored unique id")
        self._columns = dict(columns)

    def read_columns(self, start: int = 0) -> FileColumns:
        """Read every column but the frames from a row on, as far as all of them are flushed.

        Raises
        ------
        InputError
            A file cannot be opened or lacks a dataset.
        """
        with self._datasets() as datasets:
            stop = min(len(dataset) for dataset in datasets.values())
            rows = slice(min(start, stop), stop)
            unique_id = np.asarray(datasets["unique_id"][rows], dtype=np.int64)
            empty = np.full(len(unique_id), np.nan)
            column = {
                name: np.asarray(datasets[name][rows], dtype=np.float64) if name in datasets else empty
                for name in FLOAT_COLUMNS
            }
        position_m = np.stack([column["position_y_m"], column["position_x_m"]], axis=1)
        return FileColumns(rows.start, unique_id, column["timestamp_s"], position_m, column["i0"])

    def read_frames(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Read frames (n, H, W) of rows (n,), sorted and without repetition, in merged ranges.

        Raises
        ------
        InputError
            The file cannot be opened or read.
        """
        with self._datasets(("image",)) as datasets:
            image = datasets["image"]
            parts = []
            try:
                for first, last in _ranges(rows):
                    block = image[first : last + 1]
                    parts.append(block[rows[(rows >= first) & (rows <= last)] - first])
            except OSError as error:
                raise InputError(f"{self._columns['image'].path}: {error}", "its frames must be readable") from error
        return np.concatenate(parts) if parts else np.zeros((0, *image.shape[1:]), dtype=image.dtype)

    @contextmanager
    def _datasets(self, names: tuple[str, ...] | None = None) -> Iterator[dict[str, h5py.Dataset]]:
        files: dict[Any, h5py.File] = {}
        try:
            found: dict[str, h5py.Dataset] = {}
            for name in names or tuple(self._columns):
                column = self._columns[name]
                if column.path not in files:
                    files[column.path] = open_file(column.path)
                dataset = files[column.path].get(column.dataset)
                if not isinstance(dataset, h5py.Dataset):
                    raise InputError(f"{column.path}: no dataset {column.dataset!r}", "the documents name it")
                dataset.refresh()
                found[name] = dataset
            yield found
        finally:
            for file in files.values():
                file.close()


def _ranges(rows: NDArray[np.int64], gap: int = 4) -> list[tuple[int, int]]:
    """Ranges (first, last) that hold the sorted rows; reading over a short gap is faster than a second seek."""
    if not len(rows):
        return []
    cuts = np.flatnonzero(np.diff(rows) > gap)
    first = rows[np.concatenate([[0], cuts + 1])]
    last = rows[np.concatenate([cuts, [len(rows) - 1]])]
    return list(zip(first.tolist(), last.tolist(), strict=True))
