"""What all engines share: when they stop, going on from a state, refined positions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from known_scans import known_scan, with_plate

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.metrics import phase_rms_rad
from ptycho_bluesky.reconstruction import CgOptions, EngineState, EpieOptions, RpieOptions, engine_options, reconstruct


@pytest.fixture(scope="module")
def small_scan():
    return known_scan(120, 75e-9)


@pytest.mark.parametrize("options", [RpieOptions(iterations=15), RpieOptions(iterations=15, momentum=0.5),
                                     RpieOptions(iterations=12, batch_size=1),
                                     EpieOptions(iterations=70, batch_size=1)])  # fmt: skip
def test_known_object_is_found_by_the_whole_family(small_scan, options):
    result = reconstruct(with_plate(small_scan), options)
    assert phase_rms_rad(result.object, small_scan.on(result.frame), small_scan.lit(result)) <= 0.02


@pytest.mark.parametrize("options", [EpieOptions(iterations=6), RpieOptions(iterations=6, momentum=0.5),
                                     CgOptions(iterations=6)])  # fmt: skip
def test_resumed_reconstruction_is_the_one_never_interrupted(small_scan, options, tmp_path):
    measurement = with_plate(small_scan)
    state = tmp_path / "state.npz"

    def interrupt(done, total, error):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reconstruct(measurement, options, progress=interrupt, checkpoint=state)
    resumed = reconstruct(measurement, options, resume=state)
    whole = reconstruct(measurement, options)
    np.testing.assert_array_equal(resumed.object, whole.object)
    np.testing.assert_array_equal(resumed.error, whole.error)
    assert resumed.provenance["probe_start"] == "resumed"


def test_state_of_another_reconstruction_is_refused(small_scan, tmp_path):
    state = tmp_path / "state.npz"
    measurement = with_plate(small_scan)
    reconstruct(measurement, EpieOptions(iterations=1), checkpoint=state)
    with pytest.raises(InputError, match="engine"):
        reconstruct(measurement, RpieOptions(iterations=2), resume=state)
    with pytest.raises(InputError, match="frames"):
        reconstruct(measurement, EpieOptions(iterations=2), resume=state, rows=np.arange(60))
    (tmp_path / "other.npz").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match=r"other\.npz"):
        EngineState.load(tmp_path / "other.npz")


def test_stops_at_the_error_that_is_asked_for(small_scan):
    result = reconstruct(with_plate(small_scan), EpieOptions(iterations=50, stop_error=2e-3))
    assert len(result.error) < 50
    assert result.error[-1] <= 2e-3 < result.error[-2]


def test_stops_when_frames_left_out_get_no_better():
    scan = known_scan(120, 75e-9, exposure_s=1e-5)
    result = reconstruct(with_plate(scan), CgOptions(iterations=60, patience=3, holdout_fraction=0.1))
    held_out = np.array(result.provenance["held_out_error"])
    assert len(result.error) < 57
    assert np.argmin(held_out) == len(held_out) - 1


@pytest.mark.parametrize("kind", [EpieOptions, RpieOptions])
def test_wrong_positions_are_corrected(kind):
    scan = known_scan(160, 60e-9)
    measurement = with_plate(scan)
    pixel_m = measurement.step_px_m
    rng = np.random.default_rng(0)
    wrong_px = rng.uniform(-3.0, 3.0, measurement.position_m.shape)
    wrong_px -= wrong_px.mean(axis=0)
    moved = replace(measurement, position_m=measurement.position_m + wrong_px * pixel_m)
    options = kind(iterations=30, correct_positions=True, position_start=4, holdout_fraction=0.0)
    result = reconstruct(moved, options)
    left = (result.position_m - measurement.position_m) / pixel_m
    left -= left.mean(axis=0)
    assert np.sqrt(np.mean(wrong_px**2)) > 1.5
    assert np.sqrt(np.mean(left**2)) <= 0.3


def test_unknown_engine_is_named():
    with pytest.raises(InputError, match="magic"):
        engine_options("magic")
    with pytest.raises(InputError, match="momentum"):
        RpieOptions.of(momentum=1.5)
