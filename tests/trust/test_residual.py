"""Residuals against known answers: noise alone, scale and gauge, masks, patches smaller than the window."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.simulation import ZonePlate, default_geometry, zone_plate_probe
from ptycho_bluesky.trust.deviance import expected_deviance, poisson_deviance
from ptycho_bluesky.trust.light import Light
from ptycho_bluesky.trust.physics import AmplitudeLaw, Physics, fit_amplitude_law, read_physics
from ptycho_bluesky.trust.residual import ResidualMeter

SIZE = 64
PHOTONS = 2e5


@pytest.fixture(scope="module")
def probe() -> np.ndarray:
    return zone_plate_probe(ZonePlate(), default_geometry(SIZE), photons=PHOTONS)[None]


def patches(num: int = 6, seed: int = 0) -> np.ndarray:
    """Smooth phases of a fraction of a radian."""
    rng = np.random.default_rng(seed)
    grid = np.linspace(0, 2 * np.pi, SIZE)
    phase = [
        0.4 * np.sin(a * grid[:, None] + b) * np.cos(c * grid[None] + d) for a, b, c, d in rng.uniform(1, 4, (num, 4))
    ]
    return np.array(phase, dtype=np.float32)


@given(st.floats(0.01, 300.0))
@settings(max_examples=25, deadline=None)
def test_the_mean_deviance_is_that_of_poisson_counts(mean):
    rng = np.random.default_rng(1)
    drawn = poisson_deviance(rng.poisson(mean, 200_000), mean)
    table = float(expected_deviance(np.array([mean], dtype=np.float32))[0])
    assert drawn.min() >= -1e-9
    assert abs(table - drawn.mean()) < 5 * drawn.std() / np.sqrt(drawn.size) + 0.02 * table


def test_the_true_patch_leaves_nothing_but_shot_noise(probe):
    phase = patches()
    meter = ResidualMeter(Physics(probe), (SIZE, SIZE))
    rng = np.random.default_rng(2)
    for light in (1.0, 0.1):
        counts = rng.poisson(light * meter.expected(phase)).astype(np.float32)
        fit = meter.measure(counts, phase, 1.0 / light)
        np.testing.assert_allclose(fit.residual, 1.0, atol=0.08)
        np.testing.assert_allclose(fit.brightness, 1.0, atol=0.02)
        assert (fit.flat_residual > 1.5).all()
        np.testing.assert_allclose(fit.unexplained, 0.0, atol=0.1)


def test_what_is_left_unexplained_does_not_depend_on_the_exposure(probe):
    meter = ResidualMeter(Physics(probe), (SIZE, SIZE))
    rng = np.random.default_rng(3)
    truth, guess = patches(16), 0.5 * patches(16)
    bright, dim = (
        meter.measure(rng.poisson(light * meter.expected(truth)).astype(np.float32), guess) for light in (10.0, 1.0)
    )
    assert np.median(bright.residual) > 3 * np.median(dim.residual)
    np.testing.assert_allclose(np.median(bright.unexplained), np.median(dim.unexplained), rtol=0.1)
    np.testing.assert_allclose(np.median(bright.flat_excess), np.median(dim.flat_excess), rtol=0.1)


def test_a_constant_phase_and_a_scale_of_the_amplitude_change_nothing(probe):
    phase = patches()
    meter = ResidualMeter(Physics(probe), (SIZE, SIZE))
    counts = np.random.default_rng(4).poisson(meter.expected(phase)).astype(np.float32)
    usual = meter.measure(counts, phase).residual
    np.testing.assert_allclose(meter.measure(counts, phase + np.float32(0.7)).residual, usual, rtol=1e-3)
    dimmer = np.full_like(phase, 0.8)
    np.testing.assert_allclose(meter.measure(counts, phase, amplitude=dimmer).residual, usual, rtol=1e-2)


def test_zero_frequency_lies_at_the_centre_for_even_and_odd_windows():
    for size in (16, 17):
        wave = np.exp(-(np.add.outer(*[(np.arange(size) - size // 2) ** 2] * 2)) / 20.0).astype(np.complex64)[None]
        expected = ResidualMeter(Physics(100 * wave), (size, size)).expected(np.zeros((1, size, size), np.float32))
        assert np.unravel_index(expected[0].argmax(), (size, size)) == (size // 2, size // 2)
        assert expected.sum() == pytest.approx(np.sum(np.abs(100 * wave) ** 2), rel=1e-3)


def test_bad_pixels_do_not_count(probe):
    phase = patches()
    bad = np.zeros((SIZE, SIZE), dtype=bool)
    bad[30:33, 20:40] = True
    counts = np.random.default_rng(5).poisson(ResidualMeter(Physics(probe), (SIZE, SIZE)).expected(phase))
    counts = counts.astype(np.float32)
    wrong = np.where(bad, np.float32(5e4), counts)
    static = ResidualMeter(Physics(probe), (SIZE, SIZE), ~bad)
    first, second = static.measure(counts, phase), static.measure(wrong, phase)
    np.testing.assert_array_equal(first.residual, second.residual)
    np.testing.assert_array_equal(first.flat_excess, second.flat_excess)
    np.testing.assert_allclose(first.residual, 1.0, atol=0.08)
    each = ResidualMeter(Physics(probe), (SIZE, SIZE)).measure(wrong, phase, unusable=np.broadcast_to(bad, wrong.shape))
    np.testing.assert_allclose(each.residual, first.residual, rtol=1e-5)


@pytest.mark.parametrize("filling", ["edge", "mean"])
def test_a_patch_of_the_centre_explains_most_of_a_frame(probe, filling):
    phase = patches()
    whole = ResidualMeter(Physics(probe), (SIZE, SIZE))
    counts = whole.expected(phase)
    centre = phase[:, SIZE // 4 : -SIZE // 4, SIZE // 4 : -SIZE // 4]
    part = ResidualMeter(Physics(probe), centre.shape[1:], filling=filling)
    wave = part.wave(centre)
    np.testing.assert_allclose(np.angle(wave[:, SIZE // 4 : -SIZE // 4, SIZE // 4 : -SIZE // 4]), centre, atol=1e-6)
    assert part.measure(counts, centre).unexplained.max() < 0.5


def test_a_dark_frame_has_no_residual(probe):
    meter = ResidualMeter(Physics(probe), (SIZE, SIZE))
    fit = meter.measure(np.zeros((1, SIZE, SIZE), np.float32), patches(1))
    assert np.isnan(fit.residual).all()
    assert fit.brightness.tolist() == [0.0]


def test_what_does_not_fit_is_refused(probe):
    with pytest.raises(InputError, match="window"):
        ResidualMeter(Physics(probe), (SIZE + 1, SIZE))
    with pytest.raises(InputError, match="mask"):
        ResidualMeter(Physics(probe), (SIZE, SIZE), np.ones((3, 3), bool))
    with pytest.raises(InputError, match="dark"):
        Physics(np.zeros((1, 4, 4), np.complex64))


def test_one_material_has_a_straight_line():
    phase = patches()
    law = fit_amplitude_law(phase, np.exp(0.02 + 0.11 * phase), np.ones((SIZE, SIZE), np.float32))
    assert (law.offset, law.slope) == (pytest.approx(0.02, abs=1e-4), pytest.approx(0.11, abs=1e-4))
    assert fit_amplitude_law(np.zeros_like(phase), np.ones_like(phase), np.ones((SIZE, SIZE))) == AmplitudeLaw()


def test_physics_travels_as_json(probe):
    import json

    physics = Physics(
        probe, "g", AmplitudeLaw(0.1, 0.2), 0.03, Light(2.0, 5e-3, 0.5, 1e5), None, {"residual_flat": 9.0}
    )
    content = json.loads(json.dumps({"physics": physics.as_dict()}))
    again, reason = read_physics(content)
    assert reason == ""
    assert again is not None
    np.testing.assert_array_equal(again.probe, probe)
    assert again.light == physics.light
    assert again.amplitude == physics.amplitude
    assert again.figures == physics.figures


@pytest.mark.parametrize("change", [{"probe": "AAAA"}, {"probe_shape": [2, 2]}, {"probe": 3}, {"limits": {}}])
def test_damaged_physics_says_why(probe, change):
    physics, reason = read_physics({"physics": {**Physics(probe).as_dict(), **change}})
    assert physics is None
    assert "damaged" in reason or "probe" in reason


def test_a_model_without_physics_says_so():
    assert read_physics({})[0] is None
    assert "no probe" in read_physics({})[1]
