from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.fourier import fftshift, ifftshift
from ptycho_bluesky.geometry import (
    D4_OPERATIONS,
    Geometry,
    ObjectFrame,
    apply_d4,
    overlap,
    spiral_positions_m,
    step_for_overlap_m,
)


@pytest.mark.parametrize(
    ("geometry", "pixel_m"),
    [(Geometry(10e3, 1.55, 55e-6, 512), 6.82e-9), (Geometry(10e3, 0.9, 75e-6, 128), 11.6e-9)],
)
def test_object_pixels_of_the_published_set_ups(geometry, pixel_m):
    assert geometry.object_pixel_m == pytest.approx(pixel_m, rel=3e-3)
    assert geometry.window_m == pytest.approx(geometry.num_px * geometry.object_pixel_m)
    assert Geometry.from_dict(geometry.as_dict()) == geometry


@pytest.mark.parametrize("content", [None, {}, {"geometry": "unknown"}])
def test_unknown_geometry_reads_as_none(content):
    assert Geometry.from_dict(content) is None


@pytest.mark.parametrize(("step_nm", "expected"), [(50, 0.89), (180, 0.61), (460, 0.0)])
def test_published_overlaps(step_nm, expected):
    assert overlap(step_nm * 1e-9, 800e-9) == pytest.approx(expected, abs=0.01)
    assert step_for_overlap_m(overlap(step_nm * 1e-9, 800e-9), 800e-9) == pytest.approx(step_nm * 1e-9)


@given(n=st.integers(2, 400), step=st.floats(1e-9, 1e-6))
def test_spiral_keeps_its_step(n, step):
    position = spiral_positions_m(n, step, (1e-6, -2e-6))
    assert position.shape == (n, 2)
    np.testing.assert_allclose(position[0], (1e-6, -2e-6), atol=1e-3 * step)
    gap = np.hypot(*np.diff(position, axis=0).T)
    assert gap.max() <= step * 1.001
    radius = np.hypot(*(position - (1e-6, -2e-6)).T)
    assert (np.diff(radius) > 0).all()


def test_every_turn_of_the_detector_has_its_inverse():
    image = np.random.default_rng(0).random((2, 8, 8))
    inverse = {"rot90": "rot270", "rot270": "rot90"}
    for operation in D4_OPERATIONS:
        turned = apply_d4(image, operation)
        np.testing.assert_array_equal(apply_d4(turned, inverse.get(operation, operation)), image)
        assert (turned[:, 4, 4] == image[:, 4, 4]).all()


@pytest.mark.parametrize("n", [6, 7])
def test_zero_frequency_stays_where_it_is_said_to_be(n):
    corner = np.zeros((n, n))
    corner[0, 0] = 1
    centred = fftshift(corner)
    assert centred[n // 2, n // 2] == 1
    np.testing.assert_array_equal(ifftshift(centred), corner)


@given(
    origin=st.tuples(st.floats(-1e-3, 1e-3), st.floats(-1e-3, 1e-3)),
    index=st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4)),
)
def test_frame_takes_indices_to_metres_and_back(origin, index):
    frame = ObjectFrame(origin, 2.3e-8, (10, 20))
    np.testing.assert_allclose(frame.to_px(frame.to_m(index)), index, atol=1e-6)
    assert ObjectFrame.from_dict(frame.as_dict()) == frame


def test_frame_holds_every_patch_and_shares_its_grid():
    position = np.random.default_rng(1).uniform(-3e-6, 5e-6, (50, 2))
    frame = ObjectFrame.around(position, 64, 2e-8)
    corner = np.rint(frame.to_px(position)) - 32
    assert (corner >= 0).all()
    assert (corner + 64 <= frame.shape).all()
    np.testing.assert_allclose(np.divide(frame.origin_m, 2e-8), np.rint(np.divide(frame.origin_m, 2e-8)), atol=1e-6)


@pytest.mark.parametrize(
    "call",
    [
        lambda: Geometry(0.0, 1.0, 1e-6, 8),
        lambda: Geometry(1e4, np.nan, 1e-6, 8),
        lambda: Geometry(1e4, 1.0, 1e-6, 8, "sideways"),
        lambda: apply_d4(np.zeros((4, 4)), "sideways"),
        lambda: apply_d4(np.zeros((4, 6)), "rot90"),
        lambda: spiral_positions_m(0, 1e-9),
        lambda: spiral_positions_m(5, 0.0),
        lambda: step_for_overlap_m(1.0, 1e-6),
        lambda: ObjectFrame.around([[np.nan, 0.0]], 8, 1e-9),
    ],
)
def test_impossible_geometry_is_refused(call):
    with pytest.raises(InputError):
        call()
