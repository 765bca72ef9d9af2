"""Records keep frame, position, time and model together."""

from __future__ import annotations

import numpy as np
import pytest

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.records import FrameBatch, ModelRecord, ModelStage, Segment


def _batch(n: int = 4, uid: str = "run") -> FrameBatch:
    return FrameBatch(
        uid,
        np.arange(n),
        np.arange(n) + 100,
        np.ones((n, 8, 8), np.uint16),
        np.zeros((n, 2)),
        np.zeros(n, np.uint8),
        np.arange(n, dtype=float),
        np.ones(n),
        np.zeros(n, np.uint8),
    )


def test_segment_maps_ids_to_indices_and_refuses_others():
    segment = Segment(index=1, first_unique_id=501, first_frame_index=40, num_frames=10)
    assert segment.frame_index(np.array([500, 501, 510, 511])).tolist() == [-1, 40, 49, -1]


def test_batch_selects_and_joins_every_column():
    batch = _batch(6)
    odd, even = batch.select(np.arange(6) % 2 == 1), batch.select(slice(0, 6, 2))
    joined = FrameBatch.concatenate([even, odd])
    assert joined.frame_index.tolist() == [0, 2, 4, 1, 3, 5]
    assert joined.unique_id.tolist() == [100, 102, 104, 101, 103, 105]


def test_batch_refuses_columns_that_drifted_apart():
    batch = _batch(4)
    with pytest.raises(InputError, match="position_m has 3 rows beside 4"):
        FrameBatch(**{**batch.__dict__, "position_m": np.zeros((3, 2))})
    with pytest.raises(InputError, match="different runs"):
        FrameBatch.concatenate([batch, _batch(2, "other")])


def test_model_record_survives_json():
    record = ModelRecord(
        "ab", "", ModelStage.PROMOTED, "ptychonn2", (64, 64), (64, 64), float("nan"), 1.0, ("u",), {}, {}, None, {}, 1.0
    )
    content = record.as_dict()
    assert content["pixel_size_m"] is None
    back = ModelRecord.from_dict({**content, "unknown": 1})
    assert back.stage is ModelStage.PROMOTED
    assert back.image_shape == (64, 64)
    assert np.isnan(back.pixel_size_m)
