"""Mosaics of edges that shared a stream, put together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import ObjectFrame
from ptycho_bluesky.records import FrameState, Mosaic
from ptycho_bluesky.stitching import MosaicBuilder, merge_mosaics

PIXEL = 1e-8
N = 60
RNG = np.random.default_rng(3)
POSITIONS = RNG.uniform(-40, 40, (N, 2)) * PIXEL
PATCHES = RNG.uniform(-3, 3, (N, 16, 16)).astype(np.float32)
VALUES = RNG.uniform(1, 5, (N, 3)).astype(np.float32)


def stitched(rows, model_ids=("a",)):
    """Mosaic of some of the frames, with the log of an edge that missed all others."""
    builder = MosaicBuilder(ObjectFrame.around(POSITIONS[rows], 16, PIXEL), (16, 16))
    builder.add(PATCHES[rows], POSITIONS[rows])
    builder.add_values(VALUES[rows], POSITIONS[rows])
    image = builder.snapshot()
    state = np.full(N, FrameState.MISSED, dtype=np.uint8)
    state[rows] = FrameState.INFERRED
    model = np.full(N, -1, dtype=np.int32)
    model[rows] = len(model_ids) - 1
    log = {"frame_index": np.arange(N), "state": state, "model": model}
    return Mosaic(
        image.phase_rad, image.weight, image.coverage, image.variance, image.frame, "run", log, model_ids, image.maps
    )


def test_shares_of_a_stream_merge_to_what_one_edge_would_have():
    every = np.arange(N)
    merged = merge_mosaics([stitched(every[k::3]) for k in range(3)])
    whole = stitched(every)
    row, col = np.rint(merged.frame.to_px([whole.frame.origin_m])[0]).astype(int)
    here = np.s_[row : row + whole.frame.shape[0], col : col + whole.frame.shape[1]]
    np.testing.assert_array_equal(merged.coverage[here], whole.coverage)
    # a weight under 0.001 counts as none, in each mosaic
    np.testing.assert_allclose(merged.weight[here], whole.weight, atol=3e-3)
    clear = (whole.variance < 0.9) & (whole.weight > 0.5)
    np.testing.assert_allclose(merged.variance[here][clear], whole.variance[clear], atol=5e-3)
    assert np.abs(np.angle(np.exp(1j * (merged.phase_rad[here] - whole.phase_rad))))[clear].max() < 0.05
    full = (whole.coverage > 0) & (np.abs(merged.weight[here] - whole.weight) < 1e-6) & clear
    assert full.sum() > 1000
    assert np.abs(np.angle(np.exp(1j * (merged.phase_rad[here] - whole.phase_rad))))[full].max() < 1e-4
    assert merged.coverage.sum() == whole.coverage.sum()
    assert set(merged.maps) == set(whole.maps)
    assert (merged.frame_log["state"] == FrameState.INFERRED).all()


def test_models_keep_their_frames():
    merged = merge_mosaics([stitched(np.arange(0, N, 2), ("a",)), stitched(np.arange(1, N, 2), ("a", "b"))])
    assert merged.model_ids == ("a", "b")
    np.testing.assert_array_equal(merged.frame_log["model"], np.arange(N) % 2)


def test_one_mosaic_is_itself():
    whole = stitched(np.arange(N))
    merged = merge_mosaics([whole])
    np.testing.assert_allclose(merged.phase_rad, whole.phase_rad, atol=1e-5)
    assert merged.frame == whole.frame


def test_what_cannot_be_merged_is_refused():
    whole = stitched(np.arange(N))
    with pytest.raises(InputError, match="at least one"):
        merge_mosaics([])
    with pytest.raises(InputError, match="once"):
        merge_mosaics([whole, stitched(np.arange(5))])
    with pytest.raises(InputError, match="runs"):
        merge_mosaics([whole, replace(whole, run_uid="other")])
    shifted = replace(whole.frame, origin_m=(whole.frame.origin_m[0] + 0.4 * PIXEL, whole.frame.origin_m[1]))
    with pytest.raises(InputError, match="grid"):
        merge_mosaics([whole, replace(whole, frame=shifted)])
