"""The stitching bench, small: its rows, its baselines' images, and the error it states."""

from __future__ import annotations

import numpy as np
import pytest

from ptycho_bluesky.bench.released import NumpyStitcher, ReleasedStitcher
from ptycho_bluesky.bench.stitch import StitchBench, run
from ptycho_bluesky.geometry import ObjectFrame
from ptycho_bluesky.stitching import MosaicBuilder, cosine_weight


def test_rows():
    rows = run(StitchBench(size=16, patches=100, step_px=2.3, rounds=1, seconds=0.0, growth=2, offset_frames=60))
    by_name = {row.metric: row for row in rows}
    assert set(by_name) == {
        "stitch_patches_per_s_16",
        "stitch_patches_per_s_vs_numpy",
        "stitch_patches_per_s_disc_weight",
        "stitch_8_patches_and_picture_ms",
        "stitch_cost_after_growing_2x",
        "stitch_error_across_the_wrap",
        "mosaic_ssim_offsets_solved",
        "offset_rms",
        "offset_walk",
    }
    assert all(row.ours > 0 for row in rows)
    error = by_name["stitch_error_across_the_wrap"]
    assert error.ours < 0.02 < 0.1 < error.baseline


@pytest.fixture
def patches():
    rng = np.random.default_rng(0)
    positions = rng.uniform(-20, 20, (30, 2))
    return rng.uniform(-1, 1, (30, 16, 16)).astype(np.float32), positions, ObjectFrame.around(positions, 16, 1.0)


def test_the_numpy_baseline_makes_the_same_sums(patches):
    phase, positions, frame = patches
    weight = cosine_weight((16, 16))
    ours, theirs = MosaicBuilder(frame, (16, 16), weight), NumpyStitcher(frame.shape, weight)
    ours.add(phase, positions)
    theirs.add(phase, frame.to_px(positions) - 8)
    image = ours.snapshot()
    np.testing.assert_array_equal(image.coverage, theirs.coverage)
    np.testing.assert_allclose(image.weight, np.where(theirs.coverage, theirs.sums[2], 0), atol=1e-5)
    expected = np.arctan2(theirs.sums[1], theirs.sums[0])[image.coverage > 0]
    np.testing.assert_allclose(image.phase_rad[image.coverage > 0], expected, atol=1e-4)


def test_the_released_baseline_averages_what_does_not_wrap(patches):
    _, positions, frame = patches
    baseline = ReleasedStitcher(frame.shape)
    corner = frame.to_px(positions) - 8
    axis = np.arange(16)
    plane = 0.01 * (corner[:, 0, None] + axis)[:, :, None] - 0.02 * (corner[:, 1, None] + axis)[:, None, :]
    baseline.add(plane.astype(np.float32), corner)
    image = baseline.image()
    rows, cols = np.indices(frame.shape)
    covered = np.isfinite(image)
    np.testing.assert_allclose(image[covered], (0.01 * rows - 0.02 * cols)[covered], atol=1e-5)
