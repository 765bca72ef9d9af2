from __future__ import annotations

from dataclasses import replace

import h5py
import numpy as np
import pytest
from scan_files import GEOMETRY, write_area_detector, write_cxi, write_nxcxi

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import apply_d4
from ptycho_bluesky.io import read_measurement, validate_measurement
from ptycho_bluesky.io.frames import FramesOnDemand, square_window
from ptycho_bluesky.simulation import RecordedScan

STACK = np.random.default_rng(5).integers(0, 500, (20, 10, 14)).astype(np.uint16)
MASK = np.random.default_rng(6).random((8, 8)) > 0.1
WINDOW = (slice(1, 9), slice(3, 11))
KEPT = np.delete(np.arange(20), [3, 7, 8])


@pytest.fixture(params=[(20,), (4, 5)])
def stored(request, tmp_path):
    with h5py.File(tmp_path / "stack.h5", "w") as file:
        file["x"] = STACK.reshape(*request.param, 10, 14)
    frames = FramesOnDemand(tmp_path / "stack.h5", "x", KEPT, WINDOW, MASK, "rot90")
    return frames, apply_d4(np.where(MASK, STACK[KEPT][:, 1:9, 3:11], 0), "rot90")


@pytest.mark.parametrize(
    "key",
    [
        0,
        -1,
        slice(None),
        slice(2, 9),
        slice(None, None, 3),
        slice(5, 5),
        [4, 1, 1, 16],
        np.array([True, False] * 8 + [True]),
        (slice(2, 6), 3),
        (0, slice(1, 4), 2),
        (slice(None), MASK),
        ...,
    ],
)
def test_indexing_is_that_of_the_array(stored, key):
    frames, expected = stored
    np.testing.assert_array_equal(frames[key], expected[key])


def test_looks_like_an_array(stored):
    frames, expected = stored
    assert frames.shape == expected.shape
    assert (frames.dtype, frames.ndim, len(frames), frames.nbytes) == (np.uint16, 3, 17, expected.nbytes)
    np.testing.assert_array_equal(np.asarray(frames), expected)
    assert np.asarray(frames, dtype=np.float32).dtype == np.float32
    with pytest.raises(ValueError, match="always copied"):
        np.array(frames, copy=False)
    with pytest.raises(IndexError):
        frames[17]


@pytest.mark.parametrize(
    ("name", "writer"), [("a.h5", write_area_detector), ("a.cxi", write_cxi), ("a.nxs", write_nxcxi)]
)
def test_large_scans_stay_on_disk_and_read_alike(tmp_path, scan, monkeypatch, name, writer):
    path = writer(tmp_path / name, scan)
    small = read_measurement(path)
    monkeypatch.setattr("ptycho_bluesky.io.frames.MAX_BYTES_IN_MEMORY", 1000)
    large = read_measurement(path)
    assert isinstance(small.image, np.ndarray)
    assert isinstance(large.image, FramesOnDemand)
    np.testing.assert_array_equal(large.image[3:7], small.image[3:7])
    validate_measurement(large)
    played = RecordedScan(large).render(large.position_m[:2], 1e-3)
    np.testing.assert_array_equal(played.image, small.image[:2])
    if small.probe is not None:
        np.testing.assert_array_equal(large.probe, small.probe)


def test_beam_that_is_not_in_the_middle_is_stated(tmp_path, scan):
    wide = np.zeros((12, 80, 100), np.uint16)
    wide[:, 3:67, 36:] = scan.image
    path = write_area_detector(tmp_path / "wide.h5", replace(scan, image=wide))
    with pytest.raises(InputError, match="state the beam's pixel"):
        read_measurement(path)
    measurement = read_measurement(path, centre_px=(35, 68))
    np.testing.assert_array_equal(measurement.image, scan.image)
    assert measurement.geometry == GEOMETRY
    assert measurement.metadata["cut_from"] == [80, 100]
    with pytest.raises(InputError, match="inside the frame"):
        read_measurement(path, centre_px=(35, 100))


@pytest.mark.parametrize(
    ("shape", "centre", "size"), [((64, 64), (32, 32), 64), ((65, 65), (32, 32), 64), ((512, 1028), (250, 600), 500)]
)
def test_window_is_the_largest_even_square(shape, centre, size):
    window, note = square_window(shape, centre)
    inside = np.zeros(shape)[window]
    assert inside.shape == (size, size)
    assert (window[0].start + size // 2, window[1].start + size // 2) == centre
    assert bool(note) == (shape != (size, size))
