"""Starting objects from mosaics and earlier reconstructions: placed, in the engines' gauge, and worth their passes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import ObjectFrame
from ptycho_bluesky.metrics import phase_rms_rad
from ptycho_bluesky.reconstruction import EpieOptions, reconstruct
from ptycho_bluesky.reconstruction.warm_start import object_from_mosaic, starting_frame, warm_start
from ptycho_bluesky.records import Mosaic

OPTIONS = EpieOptions(iterations=3)


def true_mosaic(scan, *, ramp=(0.0, 0.0), offset=0.0, reach=None) -> Mosaic:
    """The truth as a phase on its own canvas, with a gauge that differs, and covered only up to a distance (m)."""
    obj, frame = scan.experiment.truth()
    rows, cols = np.indices(frame.shape)
    phase = np.angle(obj * np.exp(1j * (offset + ramp[0] * rows + ramp[1] * cols)))
    y, x = (np.arange(n) * frame.pixel_size_m + o for n, o in zip(frame.shape, frame.origin_m, strict=True))
    weight = np.ones(frame.shape, dtype=np.float32)
    if reach is not None:
        weight[np.hypot(y[:, None], x[None, :]) > reach] = 0.0
    zeros = np.zeros(frame.shape)
    return Mosaic(phase.astype(np.float32), weight, zeros.astype(np.int32), zeros.astype(np.float32), frame, "", {})


def test_a_mosaic_of_another_gauge_lands_where_it_belongs(noisy_scan):
    frame = starting_frame(noisy_scan.measurement, OPTIONS)
    half = replace(frame, origin_m=tuple(o + 0.37 * frame.pixel_size_m for o in frame.origin_m))
    mosaic = true_mosaic(noisy_scan, ramp=(0.02, -0.011), offset=2.0)
    obj, trust = object_from_mosaic(mosaic.phase_rad, mosaic.weight, mosaic.frame, half, np.ones_like)
    assert obj.shape == frame.shape
    assert trust.min() == 1.0
    truth = noisy_scan.on(half)
    inside = np.zeros(frame.shape, dtype=bool)
    inside[20:-20, 20:-20] = True
    assert phase_rms_rad(obj, truth / np.abs(truth), inside, shift=False) < 0.06
    # no ramp is left between the levels of the sample
    assert phase_rms_rad(obj, truth / np.abs(truth), inside, shift=False, ramp=False) < 0.08


def test_outside_of_the_image_there_is_nothing(noisy_scan):
    mosaic = true_mosaic(noisy_scan, reach=4e-7)
    start = warm_start(noisy_scan.measurement, mosaic, OPTIONS, amplitude_of=lambda phase: np.exp(0.1 * phase))
    assert 0.0 < start.covered < 0.5
    np.testing.assert_allclose(start.object[:5], 1.0)
    assert np.abs(start.object - 1).max() > 0.3
    far = replace(mosaic, frame=replace(mosaic.frame, origin_m=(1.0, 1.0)))
    with pytest.raises(InputError, match="overlap"):
        warm_start(noisy_scan.measurement, far, OPTIONS)
    empty = replace(mosaic, weight=np.zeros_like(mosaic.weight))
    with pytest.raises(InputError, match="covered"):
        warm_start(noisy_scan.measurement, empty, OPTIONS)
    with pytest.raises(InputError, match="frame"):
        object_from_mosaic(mosaic.phase_rad[:-1], mosaic.weight, mosaic.frame, mosaic.frame)


def test_an_earlier_reconstruction_starts_where_it_ended(noisy_scan):
    before = reconstruct(noisy_scan.measurement, EpieOptions(iterations=8))
    start = warm_start(noisy_scan.measurement, before, OPTIONS)
    assert start.probe is not None
    again = reconstruct(noisy_scan.measurement, OPTIONS, object=start.object, probe=start.probe)
    assert again.error[0] < 1.2 * before.error[-1]
    coarse = replace(before, probe=before.probe[:, :32, :32])
    assert warm_start(noisy_scan.measurement, coarse, OPTIONS).probe is None


def test_the_stitched_phase_saves_passes(noisy_scan):
    cold = reconstruct(noisy_scan.measurement, EpieOptions(iterations=16))
    start = warm_start(noisy_scan.measurement, true_mosaic(noisy_scan), OPTIONS, probe=cold.probe)
    warm = reconstruct(noisy_scan.measurement, EpieOptions(iterations=8), object=start.object, probe=start.probe)
    assert warm.error[-1] <= cold.error[-1]


def test_the_frame_is_the_one_that_engines_ask_for(noisy_scan):
    frame = starting_frame(noisy_scan.measurement, OPTIONS, np.arange(80))
    assert isinstance(frame, ObjectFrame)
    obj = np.ones(frame.shape, dtype=complex)
    result = reconstruct(noisy_scan.measurement, EpieOptions(iterations=1), rows=np.arange(80), object=obj)
    assert result.frame.shape == frame.shape
