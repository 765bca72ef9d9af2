"""Rows of HDF5 datasets by the bytes of their chunks: many rows in few large reads, decoded without HDF5.

HDF5 reads a chunked dataset chunk by chunk: each is a request to the disk that waits for its answer, and passes through
a filter pipeline that copies it several times. Chunks that were written one after the other lie one after the other,
so the bytes of many rows are read at once here, and each row is decoded straight into its place.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from numcodecs import blosc  # pyright: ignore[reportAttributeAccessIssue] - compiled
from numpy.typing import NDArray

__all__ = ["RowTable", "read_rows", "row_table"]

BLOSC_FILTER = 32001
"""Number of the Blosc filter in the HDF Group's registry."""
GAP_BYTES = 32 * 1024
"""A gap that is read along. All requests are announced to the kernel at once and wait for the disk together, so that a
larger one costs more than another request."""
BLOCK_BYTES = 1024 * 1024
"""Bytes of one read, unless a single row is larger; they are still in the processor's cache when they are unpacked."""


@dataclass(frozen=True)
class RowTable:
    """Where the rows of a dataset lie in its file, and how they are packed.

    Attributes
    ----------
    first : ndarray of int64, shape (n,)
        First byte of each row.
    size : ndarray of int32, shape (n,)
        Bytes of each row in the file; 0 where nothing was written, which reads as zeros.
    packed : ndarray of bool, shape (n,)
        Whether the row is compressed by Blosc; it is stored as it is otherwise.
    """

    first: NDArray[np.int64]
    size: NDArray[np.int32]
    packed: NDArray[np.bool_]


def row_table(dataset: h5py.Dataset) -> RowTable | None:
    """Table of a dataset; None where only HDF5 itself can read it.

    Parameters
    ----------
    dataset : h5py.Dataset
        Contiguous, or with chunks of one row, uncompressed or by Blosc alone, in the machine's byte order.
    """
    rows, row_bytes = dataset.shape[0], dataset.dtype.itemsize * int(np.prod(dataset.shape[1:]))
    if not dataset.dtype.isnative or dataset.dtype.hasobject:
        return None
    if dataset.chunks is None:
        offset = dataset.id.get_offset()
        if offset is None:
            return None
        first = offset + row_bytes * np.arange(rows, dtype=np.int64)
        return RowTable(first, np.full(rows, row_bytes, np.int32), np.zeros(rows, np.bool_))
    filters = dataset.id.get_create_plist()
    numbers = [filters.get_filter(place)[0] for place in range(filters.get_nfilters())]
    if dataset.chunks != (1, *dataset.shape[1:]) or numbers not in ([], [BLOSC_FILTER]) or not rows:
        return None
    table = RowTable(np.zeros(rows, np.int64), np.zeros(rows, np.int32), np.zeros(rows, np.bool_))

    def note(chunk: Any) -> None:
        row = chunk.chunk_offset[0]
        table.first[row], table.size[row] = chunk.byte_offset, chunk.size
        # a row that did not shrink is stored without its filter
        table.packed[row] = bool(numbers) and not chunk.filter_mask & 1

    dataset.id.chunk_iter(note)
    return table


def read_rows(
    descriptor: int,
    tables: Mapping[str, RowTable],
    rows: NDArray[np.int64],
    out: Mapping[str, NDArray[Any]],
    scratch: bytearray,
) -> int:
    """Read rows of several datasets of one file.

    Parameters
    ----------
    descriptor : int
        Of the open file.
    tables : dict of str to RowTable
    rows : ndarray of int64, shape (n,)
        Strictly rising.
    out : dict of str to ndarray, shape (n, ...)
        C-contiguous; filled.
    scratch : bytearray
        Read into, unless a row is larger. Fresh memory would cost as much as unpacking.

    Returns
    -------
    int
        Reads of the file.

    Raises
    ------
    OSError
        The file ends before a row does.
    """
    names = list(tables)
    first = np.concatenate([tables[name].first[rows] for name in names])
    size = np.concatenate([tables[name].size[rows] for name in names]).astype(np.int64)
    packed = np.concatenate([tables[name].packed[rows] for name in names])
    for name in names:
        out[name][tables[name].size[rows] == 0] = 0
    order = np.argsort(first, kind="stable")
    order = order[size[order] > 0]
    blocks = []
    for begin, end in _blocks(first[order], size[order]):
        part = order[begin:end]
        base = int(first[part[0]])
        blocks.append((part, base, int((first[part] + size[part]).max()) - base))
    largest = max((length for _, _, length in blocks), default=0)
    scratch = scratch if len(scratch) >= largest else bytearray(largest)
    for _, base, length in blocks:  # the disk reads on while the first block is unpacked
        os.posix_fadvise(descriptor, base, length, os.POSIX_FADV_WILLNEED)
    for part, base, length in blocks:
        block = _read(descriptor, base, length, scratch)
        places = zip(part.tolist(), (first[part] - base).tolist(), size[part].tolist(), strict=True)
        for number, start, packed_size in places:
            target = out[names[number // len(rows)]][number % len(rows)]
            _decode(block[start : start + packed_size], target, bool(packed[number]))
    return len(blocks)


def _blocks(first: NDArray[np.int64], size: NDArray[np.int64]) -> Sequence[tuple[int, int]]:
    """Groups of rows to read at once, as slices: no gap over `GAP_BYTES`, no group over `BLOCK_BYTES`."""
    found: list[tuple[int, int]] = []
    begin = 0
    ends = (first + size).tolist()
    starts = first.tolist()
    for place in range(1, len(starts)):
        if starts[place] - ends[place - 1] > GAP_BYTES or ends[place] - starts[begin] > BLOCK_BYTES:
            found.append((begin, place))
            begin = place
    if starts:
        found.append((begin, len(starts)))
    return found


def _read(descriptor: int, offset: int, size: int, scratch: bytearray) -> memoryview:
    view, done = memoryview(scratch)[:size], 0
    while done < size:
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if not count:
            raise OSError(f"the file ends at byte {offset + done}; {size - done} more were expected")
        done += count
    return view


def _decode(content: memoryview, target: NDArray[Any], packed: bool) -> None:
    if packed:
        blosc.decompress(content, target)
    else:
        target[...] = np.frombuffer(content, target.dtype).reshape(target.shape)
