"""The mosaic: placement, gauge of the wrap, growth, re-placement."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import ObjectFrame
from ptycho_bluesky.stitching import (
    MosaicBuilder,
    cosine_weight,
    crop_weight,
    disc_weight,
    probe_weight,
    weight_from_manifest,
)
from ptycho_bluesky.stitching.phasor import arctan2

PIXEL = 1e-8
PATCH = (16, 16)


def ramp(position_px, shape=PATCH, slope=(0.03, -0.02)):
    """Patch of a plane wave of phase, as cut from an object at a fractional position."""
    rows = np.arange(shape[0]) - shape[0] // 2 + position_px[0]
    cols = np.arange(shape[1]) - shape[1] // 2 + position_px[1]
    return (slope[0] * rows[:, None] + slope[1] * cols[None, :]).astype(np.float32)


def builder(positions_m, weight=None):
    return MosaicBuilder(ObjectFrame.around(positions_m, PATCH, PIXEL), PATCH, weight)


def test_patches_of_a_plane_give_the_plane_at_sub_pixel_positions():
    rng = np.random.default_rng(1)
    position_px = rng.uniform(-20, 20, (60, 2))
    mosaic = builder(position_px * PIXEL)
    placed = mosaic.add(np.stack([ramp(p) for p in position_px]), position_px * PIXEL)
    image = mosaic.snapshot()
    rows, cols = np.indices(image.frame.shape)
    position = image.frame.to_m(np.stack([rows.ravel(), cols.ravel()], axis=1)) / PIXEL
    truth = (position @ [0.03, -0.02]).reshape(image.frame.shape)
    inner = image.coverage >= 3
    assert placed.all()
    assert inner.sum() > 200
    assert np.abs(image.phase_rad - truth)[inner].max() < 0.02  # bilinear spread at the edge of the disc
    assert image.variance[inner].max() < 1e-3


def test_patch_centre_lands_on_its_position():
    phase = np.zeros((1, *PATCH), dtype=np.float32)
    phase[0, 8, 8] = 1.0
    mosaic = builder(np.array([[0.0, 0.0]]))
    mosaic.add(phase, [[3 * PIXEL, -2 * PIXEL]])
    image = mosaic.snapshot()
    where = np.unravel_index(np.argmax(image.phase_rad), image.phase_rad.shape)
    np.testing.assert_allclose(image.frame.to_m([where])[0], [3 * PIXEL, -2 * PIXEL], atol=PIXEL * 1e-6)


def test_phases_across_the_wrap_average_to_the_wrap_not_to_zero():
    mosaic = builder(np.zeros((1, 2)))
    patches = np.stack([np.full(PATCH, np.pi - 0.1), np.full(PATCH, -np.pi + 0.1)]).astype(np.float32)
    mosaic.add(patches, np.zeros((2, 2)))
    image = mosaic.snapshot()
    assert np.abs(np.abs(image.phase_rad[image.coverage == 2]) - np.pi).max() < 1e-3


def test_variance_tells_agreement_from_contradiction():
    mosaic = builder(np.zeros((1, 2)))
    mosaic.add(np.stack([np.zeros(PATCH), np.full(PATCH, np.pi)]).astype(np.float32), np.zeros((2, 2)))
    image = mosaic.snapshot()
    assert image.variance[image.coverage == 2].min() > 0.99


@settings(max_examples=25, deadline=None)
@given(
    old=st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=1, max_size=5),
    shift=st.tuples(st.floats(-60, 60), st.floats(-60, 60)),
)
def test_moving_equals_having_placed_there(old, shift):
    old = np.array(old) * PIXEL
    new = old + np.array(shift) * PIXEL
    patches = np.random.default_rng(0).uniform(-3, 3, (len(old), *PATCH)).astype(np.float32)
    moved, direct = builder(np.zeros((1, 2))), builder(np.zeros((1, 2)))
    moved.add(patches, old)
    assert moved.move(patches, old, new).all()
    direct.add(patches, old)  # so that both canvases grow alike
    direct = MosaicBuilder(moved.frame, PATCH)
    direct.add(patches, new)
    a, b = moved.snapshot(), direct.snapshot()
    np.testing.assert_array_equal(a.coverage, b.coverage)
    np.testing.assert_allclose(a.weight, b.weight, atol=1e-5)
    strong = b.weight > 0.05
    difference = np.angle(np.exp(1j * (a.phase_rad - b.phase_rad)))
    consistent = strong & (b.variance < 0.99)  # the phase of a vanishing sum is no number to compare
    assert np.abs(difference[consistent]).max(initial=0) < 2e-2


def test_the_canvas_grows_in_every_direction_and_keeps_what_it_has():
    mosaic = builder(np.zeros((1, 2)))
    before = mosaic.frame
    positions = np.array([[0, 0], [-100, 5], [90, -3], [4, 120], [0, -70.5]]) * PIXEL
    assert mosaic.add(np.full((5, *PATCH), 0.5, dtype=np.float32), positions).all()
    image = mosaic.snapshot()
    assert image.frame.shape[0] > 200 > before.shape[0]
    for position in positions:
        row, col = np.round(image.frame.to_px([position])[0]).astype(int)
        assert image.phase_rad[row, col] == pytest.approx(0.5, abs=1e-5)
    # same grid as before: the origin moved by whole pixels
    shift = (np.array(before.origin_m) - image.frame.origin_m) / PIXEL
    np.testing.assert_allclose(shift, np.round(shift), atol=1e-6)


def test_a_wild_or_unknown_position_is_refused_not_followed():
    mosaic = builder(np.zeros((1, 2)))
    shape = mosaic.frame.shape
    placed = mosaic.add(np.zeros((3, *PATCH), dtype=np.float32), [[1e3, 0.0], [np.nan, 0.0], [0.0, 0.0]])
    assert placed.tolist() == [False, False, True]
    assert mosaic.frame.shape == shape


def test_values_are_weighted_means_and_can_be_taken_out():
    mosaic = builder(np.zeros((1, 2)))
    mosaic.add_values(np.array([[10.0, 1.0, -1.0], [20.0, 3.0, -3.0]]), np.zeros((2, 2)))
    image = mosaic.snapshot()
    row, col = np.round(image.frame.to_px([[0, 0]])[0]).astype(int)
    assert image.maps["bright_field"][row, col] == pytest.approx(15.0)
    mosaic.add_values(np.array([[20.0, 3.0, -3.0]]), np.zeros((1, 2)), sign=-1)
    assert mosaic.snapshot().maps["com_y_px"][row, col] == pytest.approx(1.0)


def test_bad_shapes_are_told():
    mosaic = builder(np.zeros((1, 2)))
    with pytest.raises(InputError, match="patches of shape"):
        mosaic.add(np.zeros((1, 8, 8), dtype=np.float32), [[0, 0]])
    with pytest.raises(InputError, match="canvas"):
        MosaicBuilder(ObjectFrame((0.0, 0.0), PIXEL, (100_000, 100_000)), PATCH)


def test_weights():
    weight = disc_weight((32, 32), 8, 4)
    assert weight[16, 16] == 1.0
    assert weight[16, 24] == pytest.approx(0.5)
    assert weight[16, 27] == 0.0
    assert weight_from_manifest({"patch_weight": {"radius_px": 8, "edge_px": 4}}, (32, 32)) == pytest.approx(weight)
    assert weight_from_manifest({"patch_weight": (2 * weight).tolist()}, (32, 32)) == pytest.approx(weight)
    assert weight_from_manifest({}, (32, 32)) == pytest.approx(disc_weight((32, 32)))
    with pytest.raises(InputError, match="shape"):
        weight_from_manifest({"patch_weight": [[1.0]]}, (32, 32))
    with pytest.raises(InputError, match="positive"):
        weight_from_manifest({"patch_weight": np.zeros((32, 32)).tolist()}, (32, 32))


def test_other_weights():
    crop = crop_weight((32, 32), 16)
    assert crop.sum() == 256
    assert crop[8:24, 8:24].all()
    cosine = cosine_weight((32, 24))
    assert cosine.shape == (32, 24)
    assert cosine.min() == pytest.approx(0.01)
    assert cosine.max() == pytest.approx(1.0, abs=0.01)
    probe = np.zeros((2, 16, 16), dtype=np.complex64)
    probe[0, 8, 8], probe[1, 8, 9] = 2.0, 1.0j
    weight = probe_weight(probe, (32, 32))
    assert (weight[16, 16], weight[16, 17], weight.sum()) == (1.0, 0.25, 1.25)
    assert probe_weight(probe, (8, 8))[4, 5] == 0.25
    assert weight_from_manifest({"patch_weight": {"crop_px": 16}}, (32, 32)) == pytest.approx(crop)
    assert weight_from_manifest({"patch_weight": {"kind": "cosine"}}, (32, 24)) == pytest.approx(cosine)
    with pytest.raises(InputError, match="crop"):
        crop_weight((32, 32), 40)
    with pytest.raises(InputError, match="lit"):
        probe_weight(np.zeros((16, 16)), (16, 16))


@pytest.mark.parametrize("turns", [0, 1, -3, 100])
def test_phases_of_any_number_of_turns(turns):
    phase = np.random.default_rng(2).uniform(-np.pi, np.pi, (1, *PATCH)) + 2 * np.pi * turns
    mosaic = builder(np.zeros((1, 2)), np.ones(PATCH, dtype=np.float32))
    mosaic.add(phase.astype(np.float32), np.zeros((1, 2)))
    image = mosaic.snapshot()
    row, col = np.rint(image.frame.to_px([[0.0, 0.0]])[0]).astype(int)
    found = image.phase_rad[row - 8 : row + 8, col - 8 : col + 8]
    assert np.abs(np.angle(np.exp(1j * (found - phase[0])))).max() < 1e-6 * (1 + 40 * abs(turns))


def test_arc_tangent():
    rng = np.random.default_rng(0)
    for y, x in (*rng.normal(size=(200, 2)).tolist(), (0.0, -1.0), (1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, 0.0)):
        assert arctan2(np.float32(y), np.float32(x)) == pytest.approx(np.arctan2(y, x), abs=1e-6)


def test_the_picture_follows_what_changes():
    rng = np.random.default_rng(5)
    mosaic = builder(np.array([[-300.0, -300.0], [300.0, 300.0]]) * PIXEL)
    assert np.isnan(mosaic.picture()).all()
    for _ in range(4):
        position = rng.uniform(-300, 300, (3, 2)) * PIXEL
        mosaic.add(rng.uniform(-3, 3, (3, *PATCH)).astype(np.float32), position)
        image, picture = mosaic.snapshot(), mosaic.picture()
        np.testing.assert_array_equal(np.isnan(picture), image.coverage == 0)
        np.testing.assert_array_equal(picture[image.coverage > 0], image.phase_rad[image.coverage > 0])
    mosaic.add(np.zeros((1, *PATCH), dtype=np.float32), [[0.0, 600 * PIXEL]])  # the canvas grows
    assert np.isnan(mosaic.picture()).sum() == (mosaic.snapshot().coverage == 0).sum()


def test_nothing_is_added_where_nothing_counts():
    mosaic = builder(np.zeros((1, 2)), np.zeros(PATCH, dtype=np.float32))
    assert mosaic.add(np.ones((1, *PATCH), dtype=np.float32), np.zeros((1, 2))).all()
    assert mosaic.add(np.ones((0, *PATCH), dtype=np.float32), np.zeros((0, 2))).shape == (0,)
    assert mosaic.snapshot().coverage.max() == 0


def test_a_patch_with_a_phase_that_is_no_number_is_left_out():
    phase = np.zeros((3, *PATCH), dtype=np.float32)
    phase[1, 3, 4], phase[2, 0, 0] = np.nan, -np.inf
    mosaic = builder(np.zeros((1, 2)))
    assert mosaic.add(phase, np.zeros((3, 2))).tolist() == [True, False, False]
    assert mosaic.snapshot().coverage.max() == 1
