"""Thinned counts have the statistics of shorter exposures; draws follow from seed, epoch and frame alone."""

from __future__ import annotations

import numpy as np
import pytest

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import D4_OPERATIONS, apply_d4
from ptycho_bluesky.training.augmentation import Augmentation, thin_counts


def test_thinned_photons_are_poisson_of_the_smaller_mean():
    rng = np.random.default_rng(5)
    thinned = thin_counts(rng.poisson(12.0, 200_000).astype(np.uint16), 0.25, rng)
    assert thinned.mean() == pytest.approx(3.0, rel=0.01)
    assert thinned.var() == pytest.approx(3.0, rel=0.02)
    calculated = thin_counts(np.full(200_000, 12.5, np.float32), 0.4, rng)
    assert calculated.mean() == pytest.approx(5.0, rel=0.01)
    assert calculated.var() == pytest.approx(5.0, rel=0.02)


def test_whole_counts_are_thinned_alike_whatever_their_type():
    counts = np.random.default_rng(2).poisson(6.0, (40, 40))
    whole, real = (
        thin_counts(counts.astype(dtype), 0.3, np.random.default_rng(7)) for dtype in (np.uint16, np.float32)
    )
    np.testing.assert_array_equal(whole, real)
    assert (real <= counts).all()


def test_thinned_frames_stay_at_the_light_of_the_training():
    image = np.random.default_rng(1).poisson(40.0, (64, 32, 32)).astype(np.uint16)
    labels = np.zeros((64, 1, 32, 32), np.float32)
    rows = np.arange(64)
    counts, same = Augmentation(3, thin_to=0.1).apply(image, labels, rows * 0, rows)
    assert same is labels
    np.testing.assert_allclose(counts.mean(axis=(1, 2)), 40.0, rtol=0.06)
    noise = counts.var(axis=(1, 2)) / 40.0  # 1 / share: from 1 to 10
    assert 0.85 < noise.min() < 2.0
    assert 6.0 < noise.max() < 11.0


def test_draws_depend_on_the_frame_not_on_its_company():
    image = np.random.default_rng(2).poisson(5.0, (40, 8, 8)).astype(np.uint16)
    labels = image[:, None].astype(np.float32)
    augmentation = Augmentation(7, D4_OPERATIONS, 0.5)
    rows, epoch = np.arange(40), np.full(40, 3)
    counts, turned = augmentation.apply(image, labels, epoch, rows)
    part = rows[5::3]
    again, turned_again = augmentation.apply(image[part], labels[part], epoch[part], part)
    np.testing.assert_array_equal(again, counts[part])
    np.testing.assert_array_equal(turned_again, turned[part])
    other = augmentation.apply(image, labels, epoch + 1, rows)[1]
    assert (other != turned).any()
    assert (Augmentation(8, D4_OPERATIONS).apply(image, labels, epoch, rows)[1] != turned).any()


def test_every_operation_is_drawn_as_often():
    square = np.arange(9, dtype=np.float32).reshape(3, 3)
    rows = np.arange(8000)
    labels = np.broadcast_to(square, (8000, 1, 3, 3))
    turned = Augmentation(0, D4_OPERATIONS).apply(labels[:, 0], labels, rows * 0, rows)[1]
    for name in D4_OPERATIONS:
        share = (turned[:, 0] == apply_d4(square[None], name)[0]).all(axis=(1, 2)).mean()
        assert share == pytest.approx(1 / 8, abs=0.015)


def test_shares_out_of_range_are_refused():
    with pytest.raises(InputError, match="thin_to"):
        Augmentation(0, thin_to=0.0)
