"""Factors of the light, warnings, flags and maps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptycho_bluesky.geometry import ObjectFrame
from ptycho_bluesky.trust.disagreement import disagreement
from ptycho_bluesky.trust.flags import Flag, Limits, flag_frames, run_flags
from ptycho_bluesky.trust.light import Light, LightScale
from ptycho_bluesky.trust.maps import map_values
from ptycho_bluesky.trust.residual import FrameFit


def fit(excess=0.01, flat=0.1, brightness=1.0, residual=2.0, num=100) -> FrameFit:
    rng = np.random.default_rng(0)
    spread = rng.uniform(0.9, 1.1, (4, num)).astype(np.float32)
    values = (residual, excess, 10 * residual, flat, brightness)
    return FrameFit(*(np.full(num, value, np.float32) * spread[i % 4] for i, value in enumerate(values)))


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_the_monitor_brings_counts_to_the_reference(reference, monitor):
    factor, flagged = LightScale(Light(i0=reference), Light()).factors(np.array([monitor, np.nan, 0.0]))
    assert factor[0] == pytest.approx(reference / monitor, rel=1e-5)
    assert factor[1:].tolist() == [1.0, 1.0]
    assert flagged.tolist() == [False, True, True]


def test_without_monitor_exposure_and_attenuation_count_where_both_are_stated():
    reference = Light(i0=100.0, exposure_s=5e-3, transmission=1.0)
    scale = LightScale(reference, Light(exposure_s=5e-4, transmission=0.5))
    factor, flagged = scale.factors(np.array([np.nan]))
    assert factor.tolist() == [20.0]
    assert flagged.tolist() == [True]
    assert scale.as_dict()["scaled_by"] == "exposure"
    assert LightScale(reference, Light()).factors(np.array([np.nan]))[0].tolist() == [1.0]


def test_a_monitor_that_gives_a_rate_in_front_of_the_attenuator():
    described = {"i0_integrates": False, "i0_behind_attenuator": False}
    reference = Light(i0=100.0, exposure_s=5e-3, transmission=1.0, **described)
    scale = LightScale(reference, Light(exposure_s=5e-4, transmission=0.5, **described))
    assert scale.factors(np.array([100.0]))[0][0] == pytest.approx(20.0)
    run = {"scan": {"exposure_s": 5e-4}, "light": described}
    assert Light.of_run(run, 0.5) == scale.run


@pytest.mark.parametrize(("i0", "warned"), [(100.0, False), (7.0, False), (6.0, True), (1700.0, True)])
def test_beyond_sixteen_times_a_run_is_warned_of(i0, warned):
    scale = LightScale(Light(i0=100.0), Light())
    scale.factors(np.array([100.0, i0]))
    assert bool(scale.warning()) == warned
    if warned:
        assert "Remedy" in scale.warning()
        assert "16" in scale.warning()


def test_a_monitor_that_contradicts_the_exposure_is_mentioned():
    scale = LightScale(Light(i0=100.0, exposure_s=1e-3), Light(exposure_s=1e-3))
    scale.factors(np.array([20.0]))
    assert "monitor" in scale.warning()


def test_usual_frames_have_no_flag_and_unusual_ones_the_right_one():
    limits = Limits.of_frames(fit(), 0.2, 1.2)
    assert limits is not None
    assert not flag_frames(fit(), limits).any()
    assert limits.disagreement == pytest.approx(0.2**0.5)
    for changes, flag in (
        ({"excess": 0.05}, Flag.UNEXPLAINED),
        ({"flat": 0.001, "excess": 1e-4}, Flag.CONTRAST),
        ({"brightness": 1.6}, Flag.BRIGHTNESS),
        ({"brightness": 0.6}, Flag.BRIGHTNESS),
    ):
        assert (flag_frames(fit(**changes), limits) == flag).all(), flag
    nothing = fit(residual=np.nan, excess=np.nan, flat=np.nan, brightness=0.0)
    assert (flag_frames(nothing, limits) == Flag.CONTRAST | Flag.BRIGHTNESS).all()
    assert Limits.of_frames(nothing) is None
    assert Limits.from_dict(limits.as_dict()) == limits


def test_a_run_is_flagged_by_its_frames_or_its_disagreement():
    limits = Limits((0.0, 1.0), (0.5, 2.0), 0.3, 0.6)
    assert run_flags(100, {Flag.CONTRAST: 10}, 0.5, limits) == Flag.NONE
    assert run_flags(100, {Flag.CONTRAST: 11, Flag.UNEXPLAINED: 2}, 0.7, limits).words == "contrast+disagreement"
    assert run_flags(10, {Flag.CONTRAST: 10}, float("nan"), limits) == Flag.NONE


def test_disagreement_of_patches_that_agree_and_of_noise():
    shape = (60, 60)
    phase = np.sin(np.arange(60) / 5.0)[:, None] * np.ones(shape)
    coverage, weight = np.full(shape, 5), np.ones(shape)
    assert disagreement(phase, np.zeros(shape), coverage, weight) == pytest.approx(0.0)
    # nothing of a patch is about its place: the mean over each pixel is the same, the spread within it everything
    assert disagreement(np.zeros(shape), np.full(shape, 0.4), coverage, weight) == pytest.approx(1.0)
    assert np.isnan(disagreement(phase, np.zeros(shape), np.ones(shape), weight))


def test_a_map_has_the_frames_values_near_them_and_nothing_far_away():
    frame = ObjectFrame((0.0, 0.0), 1.0, (80, 80))
    position = np.stack(np.meshgrid([15.0, 25.0], [15.0, 25.0]), axis=-1).reshape(-1, 2)
    image = map_values(np.array([3.0, 3.0, 3.0, np.nan]), position, frame, 5.0)
    near = image[10:20, 10:20]
    np.testing.assert_allclose(near, 3.0, rtol=1e-5)
    assert image[70, 70] == 0.0
