"""Whatever bytes or arrays a file holds, reading it gives a checked measurement or an `InputError`."""

from __future__ import annotations

import io
import tempfile
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.io import read_measurement, validate_measurement
from ptycho_bluesky.io.units import length_factor_m

NAMES = st.sampled_from(["data", "scan", "probe", "reciprocal", "position", "pixelsize", "real", "other"])
DTYPES = st.sampled_from([np.float32, np.float64, np.uint16, np.int32, np.complex64, np.bool_])
ARRAYS = DTYPES.flatmap(
    lambda dtype: npst.arrays(dtype, npst.array_shapes(min_dims=0, max_dims=6, min_side=0, max_side=4))
)


def outcome(content: bytes, name: str):
    """Measurement, or None where the file was refused."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        try:
            measurement = read_measurement(path)
        except InputError:
            return None
    validate_measurement(measurement)
    return measurement


@given(arrays=st.dictionaries(NAMES, ARRAYS, max_size=5))
@settings(max_examples=200, deadline=None)
def test_any_archive_is_read_or_refused(arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    outcome(stream.getvalue(), "scan.npz")


@given(content=st.binary(max_size=200), name=st.sampled_from(["scan.npz", "scan.npz.bz2", "scan.h5", "scan.cxi"]))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_refused_clearly(content, name):
    assert outcome(content, name) is None


@given(cut=st.floats(0.0, 0.999), flip=st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_damaged_files_are_read_or_refused(cut, flip):
    stream = io.BytesIO()
    np.savez(stream, data=np.ones((1, 3, 4, 4), np.float32), scan=np.zeros((1, 3, 2), np.float32))
    content = bytearray(stream.getvalue()[: int(len(stream.getvalue()) * cut)])
    if content:
        content[flip % len(content)] ^= 0xFF
    outcome(bytes(content), "scan.npz")


@given(
    frames=ARRAYS,
    translation=ARRAYS,
    energy=st.one_of(st.none(), ARRAYS),
    mask=st.one_of(st.none(), ARRAYS),
    distance=st.one_of(st.none(), st.floats()),
    unit=st.sampled_from(["m", "mm", "furlong", ""]),
)
@settings(max_examples=200, deadline=None)
def test_any_cxi_content_is_read_or_refused(frames, translation, energy, mask, distance, unit):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.cxi"
        with h5py.File(path, "w") as file:
            file["/entry_1/data_1/data"] = frames
            file["/entry_1/data_1/translation"] = translation
            file["/entry_1/data_1/translation"].attrs["units"] = unit
            if energy is not None:
                file["/entry_1/instrument_1/source_1/energy"] = energy
            if mask is not None:
                file["/entry_1/instrument_1/detector_1/mask"] = mask
            if distance is not None:
                file["/entry_1/instrument_1/detector_1/distance"] = distance
            file["/entry_1/instrument_1/detector_1/x_pixel_size"] = 75e-6
        try:
            measurement = read_measurement(path)
        except InputError:
            return
        validate_measurement(measurement)


@given(
    data=npst.arrays(np.uint16, st.tuples(st.integers(1, 4), st.just(6), st.just(6))),
    corner=st.floats(-1e4, 1e4, width=32),
)
@settings(max_examples=40, deadline=None)
def test_well_formed_archives_come_back(data, corner):
    stream = io.BytesIO()
    np.savez(
        stream, data=np.fft.ifftshift(data, axes=(1, 2))[None], scan=np.full((1, len(data), 2), corner, np.float32)
    )
    measurement = outcome(stream.getvalue(), "scan.npz")
    assert measurement is not None
    np.testing.assert_array_equal(measurement.image, data)
    np.testing.assert_allclose(measurement.position_m, float(np.float32(corner)) + 3)


@given(unit=st.text(max_size=6))
def test_units_are_known_or_refused(unit):
    with suppress(InputError):
        assert 0 < length_factor_m(unit, "x") <= 1
