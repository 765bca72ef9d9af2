"""Detector frames become canonical, bad pixels are filled, and faulty frames are told."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import D4_OPERATIONS, apply_d4
from ptycho_bluesky.preprocess import Canonical, find_fault, mask_ranges, ranges_mask


def test_a_square_frame_is_taken_whole():
    frames = np.random.default_rng(0).poisson(5, (3, 16, 16)).astype(np.uint16)
    out = Canonical.whole((16, 16))(frames)
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, frames)


@pytest.mark.parametrize("orientation", D4_OPERATIONS)
@pytest.mark.parametrize("shape", [(16, 16), (20, 31), (15, 15)])
def test_zero_frequency_lands_on_the_centre(shape, orientation):
    frames = np.zeros((1, *shape))
    frames[0, shape[0] // 2, shape[1] // 2] = 7
    canonical = Canonical.from_run({"geometry": {"orientation": orientation}}, shape)
    n = min(shape)
    assert canonical(frames)[0, n // 2, n // 2] == 7


def test_a_crop_about_a_given_centre():
    frames = np.zeros((1, 20, 20))
    frames[0, 9, 12] = 1
    assert Canonical((20, 20), 8, (9, 12))(frames)[0, 4, 4] == 1
    with pytest.raises(InputError, match="inside the frame"):
        Canonical((20, 20), 16, (3, 3))
    with pytest.raises(InputError, match="frames of shape"):
        Canonical.whole((8, 8))(frames)


@pytest.mark.parametrize(
    ("image", "fault"),
    [
        (np.zeros((8, 8), np.uint16), ""),
        (np.zeros((8, 8), np.int32), ""),
        (np.zeros((8, 8)), ""),
        (np.zeros((8, 7)), "shape"),
        (np.zeros(64), "shape"),
        (np.full((8, 8), -1), "negative"),
        (np.full((8, 8), np.nan), "finite"),
        (np.full((8, 8), np.inf), "finite"),
        (np.zeros((8, 8), complex), "type"),
        (np.full((8, 8), 2**32 - 1, np.uint32), "unusable"),
    ],
)
def test_faults(image, fault):
    assert (fault in find_fault(image, (8, 8))) if fault else find_fault(image, (8, 8)) == ""


@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12)))
def test_masks_travel_as_runs_of_pixels(bad):
    np.testing.assert_array_equal(ranges_mask(mask_ranges(bad), bad.shape), bad)


@pytest.mark.parametrize("ranges", [[[-1, 2]], [[60, 5]], [[0, -1]]])
def test_runs_outside_the_frame_are_refused(ranges):
    with pytest.raises(InputError, match="bad pixels"):
        ranges_mask(ranges, (8, 8))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "float32"])
@pytest.mark.parametrize("orientation", ["identity", "rot90", "antitranspose"])
def test_bad_pixels_hold_the_mean_of_their_neighbours(dtype, orientation):
    frames = np.full((2, 12, 14), 4, dtype=dtype)
    bad = np.zeros((12, 14), dtype=bool)
    bad[5, 6] = bad[5, 7] = bad[0, 0] = True
    frames[:, bad] = 200
    ptycho = {"geometry": {"orientation": orientation}, "canonical": {"bad_ranges": mask_ranges(bad)}}
    canonical = Canonical.from_run(ptycho, (12, 14))
    out, unusable = canonical.read(frames)
    assert out.dtype == np.dtype(dtype)
    assert (out == 4).all()
    assert unusable is None
    np.testing.assert_array_equal(canonical.good, apply_d4(~bad[:, 1:13], orientation))
    assert (frames[:, bad] == 200).all()  # the detector's own array is left alone


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
def test_the_largest_value_marks_a_pixel_as_unusable(dtype):
    frames = np.full((3, 8, 8), 9, dtype=dtype)
    frames[1, 2, 3] = frames[2, 4, 4] = np.iinfo(dtype).max
    out, unusable = Canonical.whole((8, 8)).read(frames)
    assert (out == 9).all()
    assert unusable is not None
    assert np.argwhere(unusable).tolist() == [[1, 2, 3], [2, 4, 4]]


def test_saturated_pixels_by_a_stated_limit():
    frames = np.full((1, 8, 8), 9.0)
    frames[0, 2, 3] = 5000
    assert Canonical.whole((8, 8)).read(frames)[0].max() == 5000  # a float's largest value says nothing
    canonical = Canonical.from_run({"canonical": {"saturation_counts": 4000}}, (8, 8))
    out, unusable = canonical.read(frames)
    assert out.max() == 9
    assert unusable is not None
    assert unusable.sum() == 1


def test_what_a_run_states_is_read_back():
    bad = np.zeros((20, 30), dtype=bool)
    bad[3, 4:9] = True
    canonical = Canonical((20, 30), 16, (9, 14), "identity", bad, 3000.0)
    again = Canonical.from_run({"canonical": canonical.as_dict()}, (20, 30))
    assert again == canonical
    np.testing.assert_array_equal(again.bad, bad)
    # a centre alone gives the largest square about it
    assert Canonical.from_run({"canonical": {"centre_px": [9, 14]}}, (20, 30)).num_px == 18


@pytest.mark.parametrize("content", [{"centre_px": "x"}, {"num_px": "many"}, {"bad_ranges": [[1]]}, {"centre_px": [1]}])
def test_content_that_cannot_be_read_is_refused(content):
    with pytest.raises(InputError, match="canonical"):
        Canonical.from_run({"canonical": content}, (8, 8))


@given(st.integers(1, 40), st.integers(0, 3))
def test_a_mask_of_nearly_everything_is_filled(good, seed):
    frames = np.random.default_rng(seed).poisson(5, (2, 8, 8)).astype(np.uint16)
    bad = np.ones(64, dtype=bool)
    bad[:good] = False
    out = Canonical((8, 8), 8, (4, 4), bad=bad.reshape(8, 8))(frames)
    assert out.max() <= frames.reshape(2, -1)[:, :good].max()
