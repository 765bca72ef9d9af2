"""Detector frames become canonical, and faulty ones are told."""

from __future__ import annotations

import numpy as np
import pytest

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import D4_OPERATIONS
from ptycho_bluesky.preprocess import Canonical, find_fault, normalise_i0


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
    ],
)
def test_faults(image, fault):
    assert (fault in find_fault(image, (8, 8))) if fault else find_fault(image, (8, 8)) == ""


def test_i0_scales_what_it_can_and_flags_the_rest():
    image, flagged = normalise_i0(np.ones((3, 2, 2), np.float32), np.array([2.0, np.nan, 0.0]), 4.0)
    assert image[:, 0, 0].tolist() == [2.0, 1.0, 1.0]
    assert flagged.tolist() == [False, True, True]
