"""Payloads as areaDetector lays them, whole, with HDF5's header, cut short, and of any content at all."""

from __future__ import annotations

import contextlib
import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.streaming import codecs
from ptycho_bluesky.streaming.codecs import LIBRARIES, decompress, missing_libraries, original_dtype

bitshuffle = pytest.importorskip("bitshuffle")
blosc = pytest.importorskip("blosc")
lz4 = pytest.importorskip("lz4.block")
DTYPES = ("uint8", "int16", "uint16", "int32", "uint32", "float32", "float64")


def lz4_hdf5(image: np.ndarray, block: int) -> bytes:
    """A chunk of the HDF5 filter LZ4, by its specification: a block that LZ4 cannot shorten is stored as it is."""
    raw = image.tobytes()
    parts = [struct.pack(">QI", len(raw), block)]
    for at in range(0, len(raw), block):
        piece = raw[at : at + block]
        packed = lz4.compress(piece, store_size=False)
        packed = piece if len(packed) >= len(piece) else packed
        parts.append(struct.pack(">I", len(packed)) + packed)
    return b"".join(parts)


def compress(codec: str, image: np.ndarray) -> bytes:
    if codec == "lz4":
        return lz4.compress(image.tobytes(), store_size=False)
    if codec == "lz4hdf5":
        return lz4_hdf5(image, 1000)
    if codec == "bslz4":
        return bitshuffle.compress_lz4(image.ravel()).tobytes()
    if codec == "blosc":
        return blosc.compress(image.tobytes(), typesize=image.itemsize, cname="lz4")
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=100)
    return stream.getvalue()


def frame(dtype: str, shape=(23, 37), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(5.0, shape).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("codec", ["lz4", "lz4hdf5", "bslz4", "blosc"])
def test_lossless_codecs_give_back_every_pixel(codec, dtype):
    image = frame(dtype)
    for payload in (compress(codec, image), np.frombuffer(compress(codec, image), dtype=np.uint8)):
        out = decompress(codec, payload, dtype, image.size)
        assert out.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(out.reshape(image.shape), image)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
def test_chunks_of_an_hdf5_file_are_recognised_by_their_header(tmp_path, dtype):
    import h5py
    import hdf5plugin

    image = frame(dtype, (128, 128))
    filters = {"bslz4": hdf5plugin.Bitshuffle(cname="lz4"), "lz4": hdf5plugin.LZ4()}
    with h5py.File(tmp_path / "chunks.h5", "w") as file:
        for codec, options in filters.items():
            item = file.create_dataset(codec, data=image, chunks=image.shape, **options)
            _, payload = item.id.read_direct_chunk((0, 0))
            assert payload != compress(codec, image)
            np.testing.assert_array_equal(decompress(codec, payload, dtype, image.size), image.ravel())


def test_jpeg_holds_eight_bits():
    image = np.tile(np.arange(32, dtype=np.uint8) * 4, (24, 1))
    payload = compress("jpeg", image)
    out = decompress("jpeg", payload, "uint8", image.size).reshape(image.shape)
    assert np.abs(out.astype(int) - image).max() <= 3
    with pytest.raises(InputError, match="8 bits"):
        decompress("jpeg", payload, "uint16", image.size)
    with pytest.raises(InputError, match="another size"):
        decompress("jpeg", payload, "uint8", image.size + 1)


@pytest.mark.parametrize("codec", list(LIBRARIES))
@settings(max_examples=40, deadline=None)
@given(cut=st.floats(0.0, 0.999), seed=st.integers(0, 5))
def test_a_truncated_payload_is_refused(codec, cut, seed):
    image = frame("uint8" if codec == "jpeg" else "uint16", (64, 64), seed)
    payload = compress(codec, image)
    with pytest.raises(InputError, match=codec.removesuffix("hdf5")):
        decompress(codec, payload[: int(cut * len(payload))], image.dtype, image.size)


@pytest.mark.parametrize("codec", list(LIBRARIES))
@settings(max_examples=60, deadline=None)
@given(
    position=st.floats(0.0, 0.999),
    noise=st.binary(min_size=1, max_size=40),
    replace=st.booleans(),
)
def test_a_damaged_payload_is_refused_or_read_never_a_crash(codec, position, noise, replace):
    image = frame("uint8" if codec == "jpeg" else "uint16", (64, 64))
    payload = compress(codec, image)
    at = int(position * len(payload))
    damaged = noise if replace else payload[:at] + noise + payload[at + len(noise) :]
    try:
        out = decompress(codec, damaged, image.dtype, image.size)
    except InputError:
        return
    assert out.shape == (image.size,)


@given(st.one_of(st.none(), st.integers(), st.text(max_size=5), st.tuples(st.dictionaries(st.text(), st.integers()))))
def test_types_of_pixels_are_those_of_pvdata(value):
    if isinstance(value, int) and 1 <= value <= 10:
        assert original_dtype(value) == original_dtype(({"value": value},))
    else:
        with contextlib.suppress(InputError):
            assert original_dtype(value).itemsize


@pytest.mark.parametrize("value", [None, 0, 11, "x", ({"value": None},), ()])
def test_no_type_of_pixels(value):
    with pytest.raises(InputError, match="ScalarType"):
        original_dtype(value)


def test_pvdata_scalar_types():
    pva = pytest.importorskip("pvaccess")
    for name, dtype in (("UBYTE", "u1"), ("SHORT", "i2"), ("USHORT", "u2"), ("UINT", "u4"), ("FLOAT", "f4")):
        assert original_dtype(int(getattr(pva, name))) == np.dtype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "float32"])
@pytest.mark.parametrize("codec", ["lz4", "bslz4", "blosc", "jpeg"])
def test_compressed_structures_become_frames(codec, dtype):
    pytest.importorskip("pvaccess")
    from pvapy.utility.adImageUtility import AdImageUtility

    from ptycho_bluesky.streaming.sources_pva import frame_of

    if codec == "jpeg" and dtype != "uint8":
        return
    image = np.full((24, 40), 7, dtype=dtype)
    payload = np.frombuffer(compress(codec, image), dtype=np.uint8)
    structure = AdImageUtility.generateNtNdArray2D(9, payload, nx=40, ny=24, dtype=dtype, compressorName=codec)
    got = frame_of(structure, "c", 1.0)
    assert (got.fault, got.unique_id, got.image.dtype) == ("", 9, np.dtype(dtype))
    np.testing.assert_array_equal(got.image, image)
    cut = AdImageUtility.generateNtNdArray2D(9, payload[:9], nx=40, ny=24, dtype=dtype, compressorName=codec)
    assert "cannot be decompressed" in frame_of(cut, "c", 1.0).fault


def test_a_missing_library_is_named(monkeypatch):
    assert missing_libraries() == {}
    monkeypatch.setitem(codecs.LIBRARIES, "bslz4", "no_such_library")
    assert missing_libraries() == {"bslz4": "no_such_library"}
    image = frame("uint16")
    with pytest.raises(InputError, match=r"no_such_library.*ptycho_bluesky\[codecs\]"):
        decompress("bslz4", compress("bslz4", image), "uint16", image.size)
    with pytest.raises(InputError, match="known ones are"):
        decompress("zfp", b"", "uint16", 1)
