from __future__ import annotations

import json

import numpy as np
import pytest

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import Geometry
from ptycho_bluesky.io import read_measurement
from ptycho_bluesky.records import Measurement
from ptycho_bluesky.simulation import RecordedScan


def measurement(pixel_size_m=None, dtype=np.float32, **changes) -> Measurement:
    n = 6
    index = np.arange(n)
    image = np.arange(n)[:, None, None] * 10 + np.zeros((n, 8, 8), dtype)
    position = np.stack([index * 2.0, index % 2], axis=1) * (1.0 if pixel_size_m is None else pixel_size_m)
    columns = {"timestamp_s": np.full(n, np.nan), "i0": np.full(n, np.nan)} | changes
    return Measurement(
        image=columns.pop("image", image),
        position_m=columns.pop("position_m", position),
        frame_index=index,
        unique_id=index,
        geometry=None,
        pixel_size_m=pixel_size_m,
        run_uid="file",
        **columns,
    )


def test_each_frame_is_shown_where_it_was_recorded():
    recorded = RecordedScan(measurement(), nominal_pixel_m=2e-8)
    assert recorded.geometry is None
    scan = recorded.render(recorded.planned_position_m[::-1], exposure_s=1.0)
    assert scan.image.dtype == np.uint16
    assert scan.image[:, 0, 0].tolist() == [50, 40, 30, 20, 10, 0]
    np.testing.assert_allclose(scan.position_m[0], [10 * 2e-8, 2e-8])
    assert (scan.i0 == 1.0).all()


def test_the_nearest_frame_answers_and_says_where_it_was():
    recorded = RecordedScan(measurement(pixel_size_m=1e-8))
    scan = recorded.render([[3.4e-8, 0.9e-8]], 1.0)
    assert scan.image[0, 0, 0] == 20
    np.testing.assert_allclose(scan.position_m, [[4e-8, 0.0]])


def test_attenuator_thins_and_shutter_closes():
    big = measurement(image=np.full((6, 8, 8), 1000.0))
    recorded = RecordedScan(big)
    weak = recorded.render(recorded.planned_position_m, 1.0, transmission=0.2, seed=1)
    assert weak.image.mean() == pytest.approx(200, rel=0.02)
    assert weak.image.var() == pytest.approx(1000 * 0.2 * 0.8, rel=0.2)
    assert (weak.i0 == 0.2).all()
    assert not recorded.render(recorded.planned_position_m, 1.0, shutter_open=False).image.any()


def test_monitor_of_the_recording_is_kept():
    recorded = RecordedScan(measurement(i0=np.array([5.0, np.nan, 7.0, 8.0, 9.0, 1.0])))
    scan = recorded.render(recorded.planned_position_m, 1.0, transmission=0.5)
    np.testing.assert_allclose(scan.i0, [2.5, 0.5, 3.5, 4.0, 4.5, 0.5])


def test_description_says_that_the_geometry_is_unknown():
    content = json.loads(json.dumps(RecordedScan(measurement()).as_dict()))
    assert content["geometry"] == "unknown"
    assert content["pixel_size_m"] is None
    assert content["nominal_pixel_m"] == 1e-8
    known = RecordedScan(measurement(pixel_size_m=5e-9)).as_dict()
    assert (known["pixel_size_m"], known["nominal_pixel_m"]) == (5e-9, None)


@pytest.mark.parametrize(
    "call",
    [
        lambda: RecordedScan(measurement(), nominal_pixel_m=0.0),
        lambda: RecordedScan(measurement(position_m=np.full((6, 2), np.nan))),
        lambda: RecordedScan(measurement()).render([[np.nan, 0.0]], 1.0),
        lambda: RecordedScan(measurement()).render([[0.0, 0.0]], 1.0, transmission=2.0),
        lambda: RecordedScan(measurement(image=np.full((6, 8, 8), -1.0))).render([[0.0, 0.0]], 1.0),
    ],
)
def test_impossible_recordings_are_refused(call):
    with pytest.raises(InputError):
        call()


def test_real_scan_plays_and_keeps_its_counts(shared_data):
    star = read_measurement(shared_data / "siemens-star-small.npz.bz2", limit=40)
    recorded = RecordedScan(star)
    scan = recorded.render(recorded.planned_position_m, 1e-3)
    assert recorded.frame_shape == (128, 128)
    np.testing.assert_array_equal(scan.image, star.image)
    assert isinstance(recorded.geometry, Geometry | None)
