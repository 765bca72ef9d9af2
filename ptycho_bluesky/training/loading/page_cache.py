"""Bringing rows of an HDF5 file into the page cache by few large reads, before HDF5 asks for them one by one.

HDF5 reads a chunked dataset chunk by chunk, each a request to the disk that waits for its answer. Chunks that were
written one after the other lie one after the other, so the bytes of many rows are read at once here, and HDF5 finds
them in memory.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import h5py
import numpy as np
from numpy.typing import NDArray

__all__ = ["RowBytes", "merged_spans", "read_through"]

GAP_BYTES = 256 * 1024
"""A gap that is read along: at 2 GB/s it takes the tenth of a millisecond that another request would wait."""
BLOCK_BYTES = 4 * 1024 * 1024


class RowBytes:
    """Where the rows of a dataset lie in its file.

    Parameters
    ----------
    dataset : h5py.Dataset
        Chunked along its first axis, or contiguous; of any other layout nothing is known and nothing read ahead.

    Attributes
    ----------
    first, behind : ndarray of int64, shape (n,)
        Bytes of each row: the first one, and the one behind the last.
    """

    def __init__(self, dataset: h5py.Dataset) -> None:
        rows = dataset.shape[0]
        self.first = np.zeros(rows, dtype=np.int64)
        self.behind = np.zeros(rows, dtype=np.int64)
        offset = dataset.id.get_offset()
        if dataset.chunks is not None:
            self._of_chunks(dataset, dataset.chunks[0])
        elif offset is not None and rows:
            size = dataset.nbytes // rows
            self.first = offset + size * np.arange(rows, dtype=np.int64)
            self.behind = self.first + size

    def _of_chunks(self, dataset: h5py.Dataset, rows_a_chunk: int) -> None:
        chunks: list[tuple[int, int, int]] = []
        dataset.id.chunk_iter(lambda chunk: chunks.append((chunk.chunk_offset[0], chunk.byte_offset, chunk.size)))
        self.first[:] = np.iinfo(np.int64).max
        for row, offset, size in chunks:
            rows = slice(row, row + rows_a_chunk)
            self.first[rows] = np.minimum(self.first[rows], offset)
            self.behind[rows] = np.maximum(self.behind[rows], offset + size)


def merged_spans(where: Sequence[RowBytes], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bytes to read for some rows of several datasets of a file, merged over gaps of `GAP_BYTES`, shape (k, 2)."""
    first = np.concatenate([each.first[rows[each.behind[rows] > 0]] for each in where])
    behind = np.concatenate([each.behind[rows[each.behind[rows] > 0]] for each in where])
    if not len(first):
        return np.zeros((0, 2), dtype=np.int64)
    order = np.argsort(first)
    first, behind = first[order], np.maximum.accumulate(behind[order])
    cut = np.flatnonzero(first[1:] > behind[:-1] + GAP_BYTES)
    starts = first[np.concatenate([[0], cut + 1])]
    return np.stack([starts, behind[np.concatenate([cut, [len(first) - 1]])]], axis=1)


def read_through(descriptor: int, spans: NDArray[np.int64], scratch: bytearray) -> int:
    """Read bytes of a file and forget them, which leaves them in the page cache.

    Parameters
    ----------
    descriptor : int
        Of the open file.
    spans : ndarray of int64, shape (k, 2)
    scratch : bytearray
        Read into, in blocks of its size.

    Returns
    -------
    int
        Bytes read.
    """
    view, total = memoryview(scratch), 0
    for first, behind in spans.tolist():
        for offset in range(first, behind, len(scratch)):
            total += os.preadv(descriptor, [view[: min(len(scratch), behind - offset)]], offset)
    return total
