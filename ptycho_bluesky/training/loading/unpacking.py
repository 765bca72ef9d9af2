"""Unpacking the rows of a block in one call, which leaves the interpreter to other threads all the while."""

from __future__ import annotations

import ctypes
from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np
from numba import types
from numcodecs import blosc  # pyright: ignore[reportAttributeAccessIssue] - compiled
from numpy.typing import NDArray

__all__ = ["prepare", "unpack_rows"]

HEADER_BYTES = 16
UNPACKED_AT, PACKED_AT = 4, 12
"""Where Blosc's header states the bytes of the row and of the chunk."""
SYMBOL = "ptycho_bluesky_blosc_decompress_ctx"

_decompress: Any = types.ExternalFunction(SYMBOL, types.int32(types.uintp, types.uintp, types.uintp, types.int32))


def _bind() -> bool:
    """Name the function of numcodecs' Blosc for compiled code; False where its library does not show it."""
    function = getattr(ctypes.CDLL(blosc.__file__), "blosc_decompress_ctx", None)
    if function is None:
        return False
    llvm.add_symbol(SYMBOL, ctypes.cast(function, ctypes.c_void_p).value)
    return True


_BOUND = _bind()


def prepare() -> None:
    """Compile what `unpack_rows` calls, or take it from numba's cache, before anybody waits for a row."""
    nothing = np.zeros(0, np.int64)
    unpack_rows(np.zeros(0, np.uint8), nothing, nothing, np.zeros(0, np.bool_), nothing, nothing)


def unpack_rows(
    content: NDArray[np.uint8],
    start: NDArray[np.int64],
    size: NDArray[np.int64],
    packed: NDArray[np.bool_],
    address: NDArray[np.int64],
    row_bytes: NDArray[np.int64],
) -> int:
    """Unpack rows into their places.

    Parameters
    ----------
    content : ndarray of uint8
        Bytes of a file; writeable, though they stay as they are.
    start, size : ndarray of int64, shape (n,)
        Where each row lies in them, and its bytes there.
    packed : ndarray of bool, shape (n,)
        Whether it is compressed by Blosc; else it is copied.
    address : ndarray of int64, shape (n,)
        Memory that each row is written to.
    row_bytes : ndarray of int64, shape (n,)
        Bytes of each row when it is unpacked.

    Returns
    -------
    int
        Number of a row that is damaged, −1 where there is none.
    """
    outside = (start < 0) | (start + size > len(content)) | (~packed & (size != row_bytes))
    if outside.any():
        return int(np.argmax(outside))
    for row in np.flatnonzero(~packed).tolist():
        ctypes.memmove(int(address[row]), content.ctypes.data + int(start[row]), int(size[row]))
    unpack = _unpack if _BOUND else _unpack_one_by_one
    return int(unpack(content, start, size, packed, address, row_bytes))


@numba.njit(cache=True, nogil=True)
def _number(content, at):  # pragma: no cover - compiled
    """The four bytes from a place on, as a number."""
    found = np.int64(0)
    for byte in range(4):
        found |= np.int64(content[at + byte]) << np.int64(8 * byte)
    return found


@numba.njit(cache=True, nogil=True)
def _unpack(content, start, size, packed, address, row_bytes):  # pragma: no cover - compiled
    """See `unpack_rows`; a header that promises other sizes is not believed."""
    base = content.ctypes.data
    for row in range(len(start)):
        if not packed[row]:
            continue
        at = start[row]
        if size[row] < HEADER_BYTES or _number(content, at + PACKED_AT) > size[row]:
            return row
        if _number(content, at + UNPACKED_AT) != row_bytes[row]:
            return row
        done = _decompress(np.uintp(base + at), np.uintp(address[row]), np.uintp(row_bytes[row]), np.int32(1))
        if done != row_bytes[row]:
            return row
    return -1


def _unpack_one_by_one(
    content: NDArray[np.uint8],
    start: NDArray[np.int64],
    size: NDArray[np.int64],
    packed: NDArray[np.bool_],
    address: NDArray[np.int64],
    row_bytes: NDArray[np.int64],
) -> int:
    """The same by numcodecs' own binding."""
    for row in np.flatnonzero(packed).tolist():
        chunk = content[start[row] : start[row] + size[row]]
        stated = chunk[PACKED_AT:HEADER_BYTES].tobytes()
        target = (ctypes.c_uint8 * int(row_bytes[row])).from_address(int(address[row]))
        if len(chunk) < HEADER_BYTES or int.from_bytes(stated, "little") > len(chunk):
            return row
        try:
            blosc.decompress(chunk, target)
        except (RuntimeError, ValueError):
            return row
    return -1
