from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from known_scans import known_scan

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.metrics import phase_rms_rad
from ptycho_bluesky.reconstruction.growing import GrowingReconstruction
from ptycho_bluesky.reconstruction.options import RpieOptions

LIVE_PASSES, LAST_PASSES = 14, 6


@pytest.fixture(scope="module")
def scan():
    return known_scan(160, 70e-9, exposure_s=2e-3)


def probe_of(scan):
    counts = scan.measurement.image.sum(axis=(1, 2)).mean()
    return np.sqrt(counts) * scan.experiment.probe


def grow(scan, parts):
    engine = GrowingReconstruction(probe_of(scan), scan.measurement.pixel_size_m, RpieOptions(batch_size=8))
    for rows in parts:
        engine.append(scan.measurement.image[rows], scan.measurement.position_m[rows])
        engine.work(LIVE_PASSES * len(rows))
    return engine


def phase_error(scan, result):
    return phase_rms_rad(result.object, scan.on(result.frame), scan.lit(result))


def test_grown_object_is_as_good_as_the_one_of_the_finished_scan(scan):
    whole, grown = (grow(scan, np.array_split(np.arange(160), count)) for count in (1, 10))
    assert len(grown) == len(whole) == 160
    assert grown.error() <= 1.05 * whole.error()
    for engine in (whole, grown):
        engine.finish(LAST_PASSES)
    assert grown.error() <= 1.05 * whole.error()
    assert phase_error(scan, grown.result()) <= 0.05


def test_image_after_a_tenth_of_the_frames(scan):
    first = grow(scan, [np.arange(16)]).result()
    nothing = replace(first, object=np.ones_like(first.object))
    assert phase_error(scan, first) < 0.7 * phase_error(scan, nothing)


def test_empty_single_and_unplaced_frames(scan):
    engine = GrowingReconstruction(probe_of(scan), scan.measurement.pixel_size_m)
    engine.work(10)
    assert np.isnan(engine.error())
    with pytest.raises(InputError, match="without frames"):
        engine.result()
    image, position = scan.measurement.image, scan.measurement.position_m
    assert engine.append(image[:0], position[:0]) == 0
    assert engine.append(image[:1], position[:1]) == 1
    engine.work(5)
    assert engine.append(image[1:3], [[np.nan, 0.0], [1.0, 0.0]]) == 0
    assert engine.excluded == {"no position": 1, "outlier": 1, "no intensity monitor": 0}
    assert engine.append(image[3:9], position[3:9]) == 6
    engine.work(60)
    assert engine.error() < 0.1
    assert np.isfinite(engine.result().object).all()
    with pytest.raises(InputError, match="shape"):
        engine.append(image[:2], position[:1])
