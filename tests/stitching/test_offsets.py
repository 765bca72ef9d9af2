"""Solved phase offsets: recovered where they are known, their drift stated, and nothing done where nothing is under."""

from __future__ import annotations

import numpy as np
import pytest

from ptycho_bluesky.geometry import ObjectFrame
from ptycho_bluesky.stitching import MosaicBuilder
from ptycho_bluesky.stitching.offsets import OffsetRecord

PIXEL = 1e-8
PATCH = (32, 32)


@pytest.fixture
def scan():
    """Patches of one smooth object along a spiral, each with a constant of its own."""
    rng = np.random.default_rng(3)
    angle = np.sqrt(np.arange(80)) * 2.4
    position_px = 1.8 * np.sqrt(np.arange(80))[:, None] * np.stack([np.sin(angle), np.cos(angle)], axis=1)
    axis = np.arange(32) - 16
    rows, cols = position_px[:, 0, None, None] + axis[:, None], position_px[:, 1, None, None] + axis[None, :]
    patches = (0.8 * np.sin(rows / 5) + 0.5 * np.cos(cols / 4)).astype(np.float32)
    offset = rng.uniform(-2.5, 2.5, 80)
    offset[0] = 0.0
    return patches, position_px * PIXEL, offset


def canvas(position_m):
    return MosaicBuilder(ObjectFrame.around(position_m, PATCH, PIXEL), PATCH)


def test_known_offsets_are_taken_out(scan):
    patches, position_m, offset = scan
    truth, disturbed, solved = (canvas(position_m) for _ in range(3))
    truth.add(patches, position_m)
    shifted = (patches + offset[:, None, None]).astype(np.float32)
    disturbed.add(shifted, position_m)
    placed, found = solved.add_levelled(shifted, position_m)
    assert placed.all()
    assert np.abs(np.angle(np.exp(1j * (found + offset)))).max() < 0.05
    inner = truth.snapshot().coverage >= 3
    errors = [
        np.abs(np.angle(np.exp(1j * (each.snapshot().phase_rad - truth.snapshot().phase_rad))))[inner].mean()
        for each in (solved, disturbed)
    ]
    assert errors[0] < 0.05 < 0.5 < errors[1]
    assert solved.snapshot().variance[inner].mean() < 0.01 < disturbed.snapshot().variance[inner].mean()


def test_too_little_overlap_leaves_the_patch_as_it_is():
    position_m = np.array([[0.0, 0.0], [0.0, 24 * PIXEL]])
    mosaic = canvas(position_m)
    _, offset = mosaic.add_levelled(np.stack([np.zeros(PATCH), np.ones(PATCH)]).astype(np.float32), position_m)
    assert offset.tolist() == [0.0, 0.0]


def test_a_patch_that_cannot_be_placed_is_left_out():
    position_m = np.array([[0.0, 0.0], [np.nan, 0.0], [0.0, 0.0]])
    phase = np.stack([np.full(PATCH, value) for value in (0.5, 0.1, -0.2)]).astype(np.float32)
    placed, offset = canvas(position_m).add_levelled(phase, position_m)
    assert placed.tolist() == [True, False, True]
    np.testing.assert_allclose(offset, [0.0, 0.0, 0.7], atol=1e-6)


def test_the_drift_is_the_plane_of_the_offsets():
    rng = np.random.default_rng(0)
    position_m = rng.uniform(-2e-6, 3e-6, (500, 2))
    offset = 0.2 + position_m * 1e6 @ [0.03, -0.05]
    record = OffsetRecord()
    record.add(offset[:200], position_m[:200])
    record.add(offset[200:], position_m[200:])
    drift = record.drift()
    assert drift.patches == 500
    np.testing.assert_allclose(drift.slope_rad_per_um, [0.03, -0.05], atol=1e-9)
    np.testing.assert_allclose(drift.rms_rad, np.sqrt(np.mean(offset**2)))
    span = np.ptp(position_m * 1e6, axis=0)
    np.testing.assert_allclose(drift.walk_rad, [0.03, 0.05] @ span)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_offsets_have_no_slope_of_their_own(count):
    record = OffsetRecord()
    record.add(np.zeros(count), np.zeros((count, 2)))
    assert record.drift().walk_rad == 0.0
