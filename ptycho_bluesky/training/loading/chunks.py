"""Rows of HDF5 datasets by the bytes of their chunks: many rows in few large reads, decoded without HDF5.

HDF5 reads a chunked dataset chunk by chunk: each is a request to the disk that waits for its answer, and passes through
a filter pipeline that copies it several times. Chunks that were written one after the other lie one after the other,
so the bytes of many rows are read at once here, and each row is decoded straight into its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.training.loading.blocks import BlockFile, BlockReaders
from ptycho_bluesky.training.loading.unpacking import unpack_rows

__all__ = ["RowTable", "read_rows", "row_table", "store_row_tables"]

BLOSC_FILTER = 32001
"""Number of the Blosc filter in the HDF Group's registry."""
BLOCK_BYTES = 1024 * 1024
"""Bytes of one read, unless a single row is larger; they are still in the processor's cache when they are unpacked."""
DENSE = 0.15
"""Part of a stretch of a file from which on it pays to stream through it; single rows are announced to the kernel."""
GAP_BYTES = 32 * 1024
"""A gap that is read along between announced rows: these wait for the disk together, and a larger one costs more than
another request."""
ROW_TABLES = "row_table"
"""Group of a file in which its writer left the tables of its datasets, as int64 (n, 3): first byte, bytes, packed."""
STREAMED_GAP_BYTES = 256 * 1024
"""The same while a file is streamed through: what a disk reads in the time that one more request takes."""


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

    Notes
    -----
    HDF5 tells of one chunk after the other, 3 µs each. A table that the writer left in the file is taken instead if it
    is right for three of the rows; who rewrites rows in place removes it (the corpus never does).
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
    if (stored := _stored_table(dataset)) is not None:
        return stored
    table = RowTable(np.zeros(rows, np.int64), np.zeros(rows, np.int32), np.zeros(rows, np.bool_))

    def note(chunk: Any) -> None:
        row = chunk.chunk_offset[0]
        table.first[row], table.size[row] = chunk.byte_offset, chunk.size
        # a row that did not shrink is stored without its filter
        table.packed[row] = bool(numbers) and not chunk.filter_mask & 1

    dataset.id.chunk_iter(note)
    return table


def store_row_tables(file: h5py.File, names: Sequence[str]) -> None:
    """Leave the tables of datasets in their file, which has been flushed; nothing is written to these afterwards."""
    for name in names:
        dataset = file[name]
        table = row_table(dataset) if isinstance(dataset, h5py.Dataset) else None
        if table is not None:
            file[f"{ROW_TABLES}/{name}"] = np.stack([table.first, table.size, table.packed], axis=1).astype(np.int64)


def _stored_table(dataset: h5py.Dataset) -> RowTable | None:
    """Table that the writer left, None where there is none or it is not that of this file any more."""
    stored = dataset.file.get(f"{ROW_TABLES}{dataset.name}")
    if not isinstance(stored, h5py.Dataset) or stored.shape != (len(dataset), 3):
        return None
    table = np.asarray(stored[()], dtype=np.int64)
    for row in {0, len(dataset) // 2, len(dataset) - 1}:
        chunk = dataset.id.get_chunk_info_by_coord((row, *(0,) * (dataset.ndim - 1)))
        if [chunk.byte_offset, chunk.size, int(not chunk.filter_mask & 1)] != table[row].tolist():
            return None
    return RowTable(table[:, 0].copy(), table[:, 1].astype(np.int32), table[:, 2].astype(np.bool_))


def read_rows(
    file: BlockFile,
    tables: Mapping[str, RowTable],
    rows: NDArray[np.int64],
    out: Mapping[str, NDArray[Any]],
    readers: BlockReaders,
) -> int:
    """Read rows of several datasets of one file.

    Parameters
    ----------
    file : BlockFile
    tables : dict of str to RowTable
    rows : ndarray of int64, shape (n,)
        Strictly rising.
    out : dict of str to ndarray, shape (n, ...)
        C-contiguous; filled.
    readers : BlockReaders

    Returns
    -------
    int
        Reads of the file.

    Raises
    ------
    OSError
        The file ends before a row does, or a row cannot be unpacked.
    """
    for name, table in tables.items():
        out[name][table.size[rows] == 0] = 0
    found = _places(tables, rows, out)
    if not len(found.first):
        return 0
    span_bytes = int(found.first[-1] + found.size[-1] - found.first[0])
    dense = int(found.size.sum()) > DENSE * span_bytes
    groups = _groups(found.first, found.size, STREAMED_GAP_BYTES if dense else GAP_BYTES)
    spans = [(int(found.first[begin]), int(found.first[end - 1] + found.size[end - 1])) for begin, end in groups]
    spans = [(base, behind - base) for base, behind in spans]

    def unpack(number: int, content: NDArray[np.uint8], kept: Any = out) -> None:
        # `kept`: threads write to addresses in `out`, which must outlive them whatever becomes of the caller
        part = slice(*groups[number])
        damaged = unpack_rows(
            content, found.first[part] - spans[number][0], found.size[part], found.packed[part], found.address[part],
            found.row_bytes[part],
        )  # fmt: skip
        if damaged >= 0:
            raise OSError(f"the chunk at byte {found.first[groups[number][0] + damaged]} cannot be unpacked")

    use_spans = file.streamed if dense and len(spans) > 1 else file.announced
    use_spans(spans, readers, unpack)
    return len(spans)


@dataclass(frozen=True)
class _Places:
    """Rows of all datasets in the order in which they lie in the file; arrays of shape (n,), see `unpack_rows`."""

    first: NDArray[np.int64]
    size: NDArray[np.int64]
    packed: NDArray[np.bool_]
    address: NDArray[np.int64]
    row_bytes: NDArray[np.int64]


def _places(tables: Mapping[str, RowTable], rows: NDArray[np.int64], out: Mapping[str, NDArray[Any]]) -> _Places:
    """Where each row comes from and where it goes; without those that were never written."""
    names = list(tables)
    each_bytes = [out[name].itemsize * int(np.prod(out[name].shape[1:])) for name in names]
    first = np.concatenate([tables[name].first[rows] for name in names])
    size = np.concatenate([tables[name].size[rows] for name in names]).astype(np.int64)
    packed = np.concatenate([tables[name].packed[rows] for name in names])
    row_bytes = np.repeat(np.array(each_bytes, dtype=np.int64), len(rows))
    address = np.concatenate(
        [out[name].ctypes.data + each * np.arange(len(rows)) for name, each in zip(names, each_bytes, strict=True)]
    )
    order = np.argsort(first, kind="stable")
    order = order[size[order] > 0]
    return _Places(first[order], size[order], packed[order], address[order], row_bytes[order])


def _groups(first: NDArray[np.int64], size: NDArray[np.int64], max_gap_bytes: int) -> Sequence[tuple[int, int]]:
    """Rows to read at once, as slices: no gap over the one given, no group over `BLOCK_BYTES`."""
    found: list[tuple[int, int]] = []
    begin = 0
    ends = (first + size).tolist()
    starts = first.tolist()
    for place in range(1, len(starts)):
        if starts[place] - ends[place - 1] > max_gap_bytes or ends[place] - starts[begin] > BLOCK_BYTES:
            found.append((begin, place))
            begin = place
    found.append((begin, len(starts)))
    return found
