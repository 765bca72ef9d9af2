"""Rows of HDF5 datasets by the bytes of their chunks: many rows in few large reads, decoded without HDF5.

HDF5 reads a chunked dataset chunk by chunk: each is a request to the disk that waits for its answer, and passes through
a filter pipeline that copies it several times. Chunks that were written one after the other lie one after the other,
so the bytes of many rows are read at once here, and each row is decoded straight into its place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from numcodecs import blosc  # pyright: ignore[reportAttributeAccessIssue] - compiled
from numpy.typing import NDArray

__all__ = ["BlockWorkers", "RowTable", "read_rows", "row_table"]

BLOSC_FILTER = 32001
"""Number of the Blosc filter in the HDF Group's registry."""
GAP_BYTES = 32 * 1024
"""A gap that is read along. All requests are announced to the kernel at once and wait for the disk together, so that a
larger one costs more than another request."""
BLOCK_BYTES = 512 * 1024
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
    workers: BlockWorkers,
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
    workers : BlockWorkers

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
    for _, base, length in blocks:  # the disk reads on while the first block is unpacked
        os.posix_fadvise(descriptor, base, length, os.POSIX_FADV_WILLNEED)

    def unpack(block: tuple[NDArray[np.int64], int, int], scratch: bytearray) -> None:
        part, base, length = block
        content = _read(descriptor, base, length, scratch)
        places = zip(part.tolist(), (first[part] - base).tolist(), size[part].tolist(), strict=True)
        for number, start, packed_size in places:
            target = out[names[number // len(rows)]][number % len(rows)]
            _decode(content[start : start + packed_size], target, bool(packed[number]))

    workers.each(unpack, blocks)
    return len(blocks)


class BlockWorkers:
    """Threads that read and unpack blocks, each with memory of its own: fresh memory would cost as much as unpacking.

    Reading and unpacking leave the interpreter to others; still more than one pays only where cores are idle.

    Parameters
    ----------
    num_threads : int
        1 works in the calling thread.
    """

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        self._pool = ThreadPoolExecutor(num_threads, "unpack") if num_threads > 1 else None
        self._scratch = [bytearray(BLOCK_BYTES) for _ in range(num_threads)]

    def each(self, work: Callable[[Any, bytearray], None], items: Sequence[Any]) -> None:
        """Do work for every item, each thread every so-manyth one."""
        if self._pool is None or len(items) < 2 * self._num_threads:
            _each(work, items, self._scratch[0])
            return
        shares = [
            self._pool.submit(_each, work, items[number :: self._num_threads], scratch)
            for number, scratch in enumerate(self._scratch)
        ]
        wait(shares)
        for share in shares:
            share.result()

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()


def _each(work: Callable[[Any, bytearray], None], items: Sequence[Any], scratch: bytearray) -> None:
    for item in items:
        work(item, scratch)


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
    view, done = memoryview(scratch if len(scratch) >= size else bytearray(size))[:size], 0
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
