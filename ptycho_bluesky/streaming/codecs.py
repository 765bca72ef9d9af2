"""Compressed NTNDArrays as areaDetector sends them, decompressed without trusting a byte of them.

ADCore's NDPluginCodec puts the bare output of the library into ``value.ubyteValue``: one LZ4 block, bitshuffle's
blocks, a Blosc buffer or a JPEG stream; ``codec.parameters`` holds the type of the original pixels as an int, a
pvData ``ScalarType``. Drivers that forward chunks of an HDF5 file send them with the filter's header (12 bytes:
uncompressed size and block size, big endian) before the data; both layouts are told apart by their first bytes.

Libraries are optional (extra ``codecs``; Pillow always comes along). They are looked for when they are needed, and
`missing_libraries` names those that a machine lacks before the first frame.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError

__all__ = ["LIBRARIES", "decompress", "missing_libraries", "original_dtype"]

LIBRARIES = {"lz4": "lz4", "lz4hdf5": "lz4", "bslz4": "bitshuffle", "blosc": "blosc", "jpeg": "PIL"}
"""Module that each codec needs."""
SCALAR_TYPES = {
    1: np.dtype(np.int8),
    2: np.dtype(np.int16),
    3: np.dtype(np.int32),
    4: np.dtype(np.int64),
    5: np.dtype(np.uint8),
    6: np.dtype(np.uint16),
    7: np.dtype(np.uint32),
    8: np.dtype(np.uint64),
    9: np.dtype(np.float32),
    10: np.dtype(np.float64),
}
"""pvData's enumeration ``ScalarType`` (0 is boolean, 11 string: neither is a pixel)."""
HDF5_HEADER = struct.Struct(">QI")
"""Header of the HDF5 filters LZ4 (32004) and bitshuffle (32008): uncompressed bytes, bytes a block."""
BLOCK_HEADER = struct.Struct(">I")
BLOSC_HEADER = struct.Struct("<BBBBIII")
"""Version, version of the codec, flags, bytes an element, uncompressed, block and compressed bytes."""
BITSHUFFLE_MULTIPLE = 8
BITSHUFFLE_BLOCK_BYTES, BITSHUFFLE_MIN_BLOCK = 8192, 128


def missing_libraries() -> dict[str, str]:
    """Codecs whose library is not installed, with the name of the library."""
    return {codec: module for codec, module in LIBRARIES.items() if find_spec(module) is None}


def original_dtype(parameters: Any) -> np.dtype[Any]:
    """Type of the pixels before compression.

    Parameters
    ----------
    parameters : int, or what pvaPy makes of the union ``codec.parameters``

    Raises
    ------
    InputError
        It is no number, or none of a type of pixels.
    """
    value = parameters
    while isinstance(value, (tuple, list)) and value:
        value = value[0]
    if isinstance(value, dict):
        value = value.get("value")
    try:
        return SCALAR_TYPES[int(value)]  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(
            f"codec.parameters = {parameters!r}",
            "it states the type of the original pixels as a pvData ScalarType",
            "let areaDetector's codec plugin compress the frames",
        ) from error


def decompress(codec: str, payload: Any, dtype: Any, num_px: int) -> NDArray[Any]:
    """Decompress the pixels of one frame.

    Parameters
    ----------
    codec : str
        ``codec.name``: one of `LIBRARIES`.
    payload : bytes or ndarray of 8-bit integers
    dtype : dtype
        Of the pixels, see `original_dtype`.
    num_px : int
        Pixels of the frame, from its dimensions.

    Returns
    -------
    ndarray of ``dtype``, shape (num_px,)

    Raises
    ------
    InputError
        The codec is unknown, its library is not installed, or the payload is damaged.
    """
    reader = _READERS.get(codec)
    if reader is None:
        raise InputError(f"codec {codec!r}", f"known ones are {', '.join(LIBRARIES)}", "send the frames uncompressed")
    dtype = np.dtype(dtype)
    content = payload if isinstance(payload, bytes) else np.ascontiguousarray(payload).tobytes()
    flat = reader(content, dtype, int(num_px))
    if flat.size != num_px:
        raise _damaged(codec, "another number of pixels than the frame has")
    return flat


def _library(codec: str) -> Any:
    name = LIBRARIES[codec]
    try:
        return import_module({"lz4": "lz4.block", "PIL": "PIL.Image"}.get(name, name))
    except ImportError as error:
        raise InputError(
            f"frames compressed with {codec}",
            f"the library {name!r} is not installed",
            "pip install ptycho_bluesky[codecs]",
        ) from error


def _damaged(codec: str, why: Any) -> InputError:
    return InputError(f"{codec} payload: {why}", "it must hold one whole frame", "check the detector's codec plugin")


def _hdf5_block(content: bytes, expected: int) -> int | None:
    """Bytes a block that an HDF5 header states; None where there is none.

    No bare payload begins so: bitshuffle's first block would have a length of 0, LZ4's first match an offset of 0.
    """
    if len(content) < HDF5_HEADER.size:
        return None
    total, block = HDF5_HEADER.unpack_from(content)
    return block if total == expected and expected < 2**32 else None


def _read_lz4(content: bytes, dtype: np.dtype[Any], num_px: int) -> NDArray[Any]:
    expected = num_px * dtype.itemsize
    block = _hdf5_block(content, expected)
    if block is not None:
        return _read_lz4_blocks(content, dtype, expected, block)
    library = _library("lz4")
    try:
        raw = library.decompress(content, uncompressed_size=expected)
    except (library.LZ4BlockError, ValueError, OverflowError, MemoryError) as error:
        raise _damaged("lz4", error) from error
    return _pixels("lz4", raw, dtype, expected)


def _read_lz4_hdf5(content: bytes, dtype: np.dtype[Any], num_px: int) -> NDArray[Any]:
    expected = num_px * dtype.itemsize
    block = _hdf5_block(content, expected)
    if block is None:
        raise _damaged("lz4hdf5", f"its header does not state {expected} bytes")
    return _read_lz4_blocks(content, dtype, expected, block)


def _read_lz4_blocks(content: bytes, dtype: np.dtype[Any], expected: int, block: int) -> NDArray[Any]:
    """Blocks of the HDF5 filter LZ4: each its length, then LZ4, or the bytes themselves where that is no shorter."""
    library = _library("lz4")
    if block < 1:
        raise _damaged("lz4", "its blocks are empty")
    parts, done, at = [], 0, HDF5_HEADER.size
    while done < expected:
        size = min(block, expected - done)
        part, at = _next_block("lz4", content, at)
        if len(part) != size:
            try:
                part = library.decompress(part, uncompressed_size=size)
            except (library.LZ4BlockError, ValueError) as error:
                raise _damaged("lz4", error) from error
        if len(part) != size:
            raise _damaged("lz4", "a block of another size than stated")
        parts.append(part)
        done += size
    return _pixels("lz4", b"".join(parts), dtype, expected)


def _next_block(codec: str, content: bytes, at: int) -> tuple[bytes, int]:
    if at + BLOCK_HEADER.size > len(content):
        raise _damaged(codec, "cut short")
    (length,) = BLOCK_HEADER.unpack_from(content, at)
    stop = at + BLOCK_HEADER.size + length
    if stop > len(content):
        raise _damaged(codec, "cut short")
    return content[at + BLOCK_HEADER.size : stop], stop


def _read_bitshuffle(content: bytes, dtype: np.dtype[Any], num_px: int) -> NDArray[Any]:
    """Bitshuffle with LZ4; its blocks are followed first, because the library trusts the lengths it reads."""
    stated = _hdf5_block(content, num_px * dtype.itemsize)
    if stated is not None:
        content = content[HDF5_HEADER.size :]
    block = (stated or 0) // dtype.itemsize
    if block % BITSHUFFLE_MULTIPLE:
        raise _damaged("bslz4", f"blocks of {block} pixels")
    size = block or max(
        BITSHUFFLE_BLOCK_BYTES // dtype.itemsize // BITSHUFFLE_MULTIPLE * BITSHUFFLE_MULTIPLE, BITSHUFFLE_MIN_BLOCK
    )
    at, whole = 0, num_px // size
    rest = num_px % size // BITSHUFFLE_MULTIPLE * BITSHUFFLE_MULTIPLE
    for _ in range(whole + bool(rest)):
        _, at = _next_block("bslz4", content, at)
    at += num_px % BITSHUFFLE_MULTIPLE * dtype.itemsize
    if at > len(content):
        raise _damaged("bslz4", "cut short")
    library = _library("bslz4")
    try:
        return library.decompress_lz4(np.frombuffer(content, dtype=np.uint8), (num_px,), dtype, block)
    except Exception as error:
        raise _damaged("bslz4", error) from error


def _read_blosc(content: bytes, dtype: np.dtype[Any], num_px: int) -> NDArray[Any]:
    expected = num_px * dtype.itemsize
    library = _library("blosc")
    if len(content) < BLOSC_HEADER.size:
        raise _damaged("blosc", "cut short")
    *_, total, _, compressed = BLOSC_HEADER.unpack_from(content)
    if total != expected:
        raise _damaged("blosc", "another number of bytes than the frame has")
    if not BLOSC_HEADER.size <= compressed <= len(content):
        raise _damaged("blosc", "cut short")
    try:
        raw = library.decompress(content[:compressed])
    except Exception as error:
        raise _damaged("blosc", error) from error
    return _pixels("blosc", raw, dtype, expected)


def _read_jpeg(content: bytes, dtype: np.dtype[Any], num_px: int) -> NDArray[Any]:
    if dtype.itemsize != 1:
        raise _damaged("jpeg", f"pixels of type {dtype}, but JPEG holds 8 bits")
    library = _library("jpeg")
    try:
        with library.open(io.BytesIO(content), formats=("JPEG",)) as image:
            if image.width * image.height != num_px or image.mode != "L":
                raise _damaged("jpeg", "an image of another size, or in colour")
            return np.asarray(image).reshape(-1).view(dtype)
    except InputError:
        raise
    except Exception as error:
        raise _damaged("jpeg", error) from error


def _pixels(codec: str, raw: bytes, dtype: np.dtype[Any], expected: int) -> NDArray[Any]:
    if len(raw) != expected:
        raise _damaged(codec, "another number of bytes than the frame has")
    return np.frombuffer(raw, dtype=dtype)


_READERS: dict[str, Callable[[bytes, np.dtype[Any], int], NDArray[Any]]] = {
    "lz4": _read_lz4,
    "lz4hdf5": _read_lz4_hdf5,
    "bslz4": _read_bitshuffle,
    "blosc": _read_blosc,
    "jpeg": _read_jpeg,
}
