from __future__ import annotations

import numpy as np
import pytest

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.training.area_split import (
    hold_out_area,
    patch_reach,
    pearson_in_mask,
    scored_pixel_mask,
    similarity_lookup,
    split_by_area,
)


@pytest.fixture
def position_px():
    return np.random.default_rng(0).uniform(-160, 160, (516, 2))


def test_split_keeps_the_gap_between_any_two_centres(position_px):
    split = split_by_area(position_px, gap_px=60, train_fraction=0.5)
    assert split.train.sum() == 258
    assert not (split.train & split.held_out).any()
    apart = np.linalg.norm(position_px[split.train][:, None] - position_px[split.held_out][None], axis=-1)
    assert apart.min() >= 60
    assert 60 <= split.gap_px <= apart.min()


def test_split_follows_its_direction(position_px):
    split = split_by_area(position_px, 10, direction_yx=(-2, 0))
    assert position_px[split.train, 0].min() > position_px[split.held_out, 0].max()


def test_split_that_leaves_nothing_is_refused(position_px):
    with pytest.raises(InputError, match="both sides"):
        split_by_area(position_px, gap_px=400)
    with pytest.raises(InputError, match="train_fraction"):
        split_by_area(position_px, train_fraction=1.5)
    with pytest.raises(InputError, match="positions"):
        split_by_area(position_px * np.nan)


def test_patch_reach_counts_every_touched_pixel():
    count = patch_reach((10, 10), [[4, 4], [4.5, 4]], (4, 4))
    expected = np.zeros((10, 10), dtype=int)
    expected[2:6, 2:6] += 1
    expected[2:7, 2:6] += 1
    np.testing.assert_array_equal(count, expected)


def test_patches_over_the_edge_are_cut():
    count = patch_reach((6, 6), [[-5, 3], [0, 0], [6, 6]], (4, 4))
    assert count[0, 0] == 1
    assert count.sum() == 4 + 4


def test_no_scored_pixel_lies_in_a_training_patch(position_px):
    centre = position_px + 200
    split = split_by_area(position_px, 15)
    y, x = np.mgrid[-32:32, -32:32]
    light = np.exp(-(y**2 + x**2) / 200)
    mask = scored_pixel_mask((400, 400), centre[split.train], centre[split.held_out], (64, 64), light)
    assert mask.sum() > 1000
    for row, col in centre[split.train]:
        top, left = int(np.floor(row)) - 32, int(np.floor(col)) - 32
        assert not mask[max(top, 0) : top + 65, max(left, 0) : left + 65].any()
    everywhere = scored_pixel_mask((400, 400), np.zeros((0, 2)), centre[split.held_out], (64, 64), light)
    assert everywhere.sum() > mask.sum()


def test_lookup_finds_the_same_frame_at_another_exposure():
    rng = np.random.default_rng(0)
    frames = rng.gamma(1.0, 50.0, (30, 16, 16))
    labels = rng.normal(size=(30, 4, 4))
    order = rng.permutation(30)
    phase, index = similarity_lookup(frames, labels, rng.poisson(frames[order] * 20), chunk=7)
    np.testing.assert_array_equal(index, order)
    np.testing.assert_array_equal(phase, labels[order])


def test_pearson_inside_a_mask():
    a = np.arange(16.0).reshape(4, 4)
    mask = a > 3
    assert pearson_in_mask(a * 2 + 1, a, mask) == pytest.approx(1)
    assert np.isnan(pearson_in_mask(a * 0, a, mask))
    with pytest.raises(InputError, match="at least two"):
        pearson_in_mask(a, a, a > 100)


def test_a_held_out_area_shares_no_neighbour(labels_a):
    train, validation = hold_out_area(labels_a, fraction=0.2, gap_px=10)
    assert len(train) > len(validation) >= 0.15 * len(labels_a)
    apart = train.position_m[:, None, 1] - validation.position_m[None, :, 1]
    assert np.abs(apart).min() >= 10 * labels_a.pixel_size_m * (1 - 1e-9)
    np.testing.assert_array_equal(validation.image, labels_a.image[validation.frame_index])
    with pytest.raises(InputError, match="both sides"):
        hold_out_area(labels_a, gap_px=1000)
