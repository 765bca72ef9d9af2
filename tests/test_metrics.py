from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.fourier import fourier_shift
from ptycho_bluesky.metrics import (
    fit_gauge,
    fourier_ring_correlation,
    mosaic_ssim,
    pearson,
    phase_rms_rad,
    remove_gauge,
    resolution_px,
    ssim_map,
    wrap,
)
from ptycho_bluesky.simulation.samples import random_shapes

SHAPE = (150, 140)
REFERENCE = -random_shapes(SHAPE, seed=3).astype(float)
COVERAGE = np.full(SHAPE, 5)
LIT = np.ones(SHAPE)


def score(image, reference=REFERENCE, coverage=COVERAGE, lit=LIT, **options):
    return mosaic_ssim(image, reference, coverage, lit, **options)


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def test_perfect_mosaic_scores_one():
    result = score(REFERENCE, probe_width_px=30)
    assert result.ssim == pytest.approx(1.0)
    assert result.shift_px == (0.0, 0.0)
    assert result.data_range_rad == pytest.approx(np.ptp(REFERENCE))


@pytest.mark.parametrize("value", [0.0, 1.3, -3.0])
def test_constant_mosaic_scores_nothing(value):
    result = score(np.full(SHAPE, value), probe_width_px=30)
    assert result.ssim == pytest.approx(0.0, abs=0.005)
    assert result.constant == pytest.approx(result.ssim, abs=1e-9)
    assert 0.0 < result.blurred < 0.2


def test_empty_canvas_is_not_let_in():
    """Figure that an all-zero mosaic gets if the empty canvas counts, and what it gets here."""
    canvas = np.zeros((400, 400))
    canvas[100:250, 100:240] = REFERENCE
    coverage = np.zeros((400, 400), int)
    coverage[100:250, 100:240] = 5
    with_canvas = ssim_map(np.zeros_like(canvas), canvas, 1.0).mean()
    assert with_canvas > 0.7
    result = mosaic_ssim(np.zeros_like(canvas), canvas, coverage, (coverage > 0).astype(float))
    assert result.ssim == pytest.approx(0.0, abs=0.005)
    assert result.masked_px == (150 - 10) * (140 - 10)


@given(offset=st.floats(-20, 20))
@settings(max_examples=10, deadline=None)
def test_constant_offset_is_a_gauge_also_across_wraps(offset):
    result = score(wrap(REFERENCE + offset))
    assert result.ssim == pytest.approx(1.0, abs=1e-6)
    assert wrap(np.asarray(result.offset_rad - offset)) == pytest.approx(0.0, abs=1e-6)


def test_contrast_is_not_rescaled():
    assert score(0.5 * REFERENCE).ssim < 0.8


def test_inverted_contrast_shows_in_the_correlation():
    assert score(REFERENCE).pearson == pytest.approx(1.0)
    assert score(-REFERENCE).pearson == pytest.approx(-1.0)
    assert score(-REFERENCE).ssim < 0.6


def test_agrees_with_scikit_image_inside(rng):
    image = REFERENCE + 0.1 * rng.standard_normal(SHAPE)
    zero_mean = [wrap(v - np.angle(np.exp(1j * v).mean())) for v in (image, REFERENCE)]
    _, expected = structural_similarity(
        *zero_mean,
        data_range=np.ptp(zero_mean[1]),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    assert score(image, max_shift_px=0).ssim == pytest.approx(expected[5:-5, 5:-5].mean(), abs=1e-6)


def test_only_covered_and_lit_pixels_count(rng):
    image = REFERENCE.copy()
    image[:, 100:] = rng.uniform(-1, 1, (SHAPE[0], 40))
    assert score(image).ssim < 0.8
    thin = COVERAGE.copy()
    thin[:, 100:] = 2
    assert score(image, coverage=thin).ssim == pytest.approx(1.0)
    dark = LIT.copy()
    dark[:, 100:] = 0.09
    result = score(image, lit=dark)
    assert result.ssim == pytest.approx(1.0)
    assert result.masked_px == (SHAPE[0] - 10) * (100 - 10)


def test_values_outside_the_mask_are_never_read():
    image = REFERENCE.copy()
    coverage = COVERAGE.copy()
    coverage[:, 100:] = 0
    image[:, 100:] = np.nan
    assert score(image, coverage=coverage).ssim == pytest.approx(1.0)


@pytest.mark.parametrize("shift", [(2.0, -3.0), (0.4, 0.0), (-1.5, 2.5)])
def test_one_global_shift_is_found_and_reported(shift):
    smooth = scipy.ndimage.gaussian_filter(REFERENCE, 1.5)
    result = score(scipy.ndimage.shift(smooth, shift, mode="nearest"), smooth)
    np.testing.assert_allclose(result.shift_px, np.negative(shift), atol=0.15)
    assert result.ssim > 0.98
    assert score(scipy.ndimage.shift(smooth, shift, mode="nearest"), smooth, max_shift_px=0).ssim < result.ssim


def test_nothing_covered_gives_no_figure():
    result = score(REFERENCE, coverage=np.zeros(SHAPE))
    assert np.isnan(result.ssim)
    assert result.masked_px == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: score(REFERENCE[:-1]),
        lambda: score(np.full(SHAPE, np.nan)),
        lambda: score(REFERENCE, np.ones(SHAPE)),
        lambda: ssim_map(REFERENCE, REFERENCE, 0.0),
        lambda: pearson(REFERENCE, REFERENCE[:, 1:]),
        lambda: fit_gauge(REFERENCE, REFERENCE, np.zeros(SHAPE)),
        lambda: fit_gauge(REFERENCE, REFERENCE[1:], np.ones(SHAPE)),
        lambda: fourier_ring_correlation(REFERENCE, REFERENCE[1:]),
    ],
)
def test_impossible_comparisons_are_refused(call):
    with pytest.raises(InputError):
        call()


def test_pearson_of_known_pairs(rng):
    a = rng.standard_normal((50, 50))
    assert pearson(a, 3 * a + 2) == pytest.approx(1.0)
    assert pearson(a, -a) == pytest.approx(-1.0)
    assert np.isnan(pearson(a, np.ones_like(a)))
    b = rng.standard_normal((50, 50))
    mask = np.zeros((50, 50), bool)
    mask[:25] = True
    assert pearson(np.where(mask, a, b), a, mask) == pytest.approx(1.0)
    assert pearson(a, b) == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def periodic_object(shape=(64, 60)):
    """Band limited and periodic, so that a Fourier shift of it is exact."""
    thickness = scipy.ndimage.gaussian_filter(random_shapes(shape, seed=1).astype(float), 2.0, mode="wrap")
    return 0.95 * np.exp(-1j * thickness)


def ramp(shape, slope):
    y, x = (np.arange(n) - n // 2 for n in shape)
    return np.exp(1j * (slope[0] * y[:, None] + slope[1] * x[None, :]))


@given(
    shift=st.tuples(st.floats(-6, 6), st.floats(-6, 6)),
    slope=st.tuples(st.floats(-0.06, 0.06), st.floats(-0.06, 0.06)),
    phase=st.floats(-3.1, 3.1),
    scale=st.floats(0.01, 100),
)
@settings(max_examples=20, deadline=None)
def test_gauges_are_removed_exactly(shift, slope, phase, scale):
    reference = periodic_object()
    changed = scale * np.exp(1j * phase) * ramp(reference.shape, slope) * fourier_shift(reference, shift)
    mask = np.ones(reference.shape)
    np.testing.assert_allclose(remove_gauge(changed, reference, mask), reference, atol=1e-6)
    fit = fit_gauge(changed, reference, mask)
    np.testing.assert_allclose(fit.shift_px, np.negative(shift), atol=1e-5)
    np.testing.assert_allclose(fit.ramp_rad_per_px, np.negative(slope), atol=1e-6)
    assert abs(fit.factor) == pytest.approx(1 / scale, rel=1e-5)


def test_error_that_is_no_gauge_remains(rng):
    reference = periodic_object()
    mask = np.zeros(reference.shape, bool)
    mask[10:-10, 10:-10] = True
    noise = 0.1 * rng.standard_normal(reference.shape)
    changed = 2.0 * np.exp(0.3j) * ramp(reference.shape, (0.01, -0.02)) * reference * np.exp(1j * noise)
    assert phase_rms_rad(changed, reference, mask, shift=False) == pytest.approx(np.std(noise[mask]), rel=0.02)
    assert phase_rms_rad(reference, reference, mask) == pytest.approx(0.0, abs=1e-9)


def test_gauges_can_be_held():
    reference = periodic_object()
    mask = np.ones(reference.shape)
    tilted = reference * ramp(reference.shape, (0.03, 0.0))
    fit = fit_gauge(tilted, reference, mask, ramp=False, shift=False)
    assert fit.ramp_rad_per_px == (0.0, 0.0)
    assert fit.shift_px == (0.0, 0.0)
    assert phase_rms_rad(tilted, reference, mask, ramp=False, shift=False) > 0.3


def test_ring_correlation_of_equal_and_of_independent_images(rng):
    image = rng.standard_normal((200, 180))
    freq, frc = fourier_ring_correlation(image, image)
    np.testing.assert_allclose(frc, 1.0)
    assert freq[-1] == 0.5
    assert resolution_px(freq, frc) == 1.0
    freq, frc = fourier_ring_correlation(image, rng.standard_normal((200, 180)))
    assert np.abs(frc[20:]).mean() < 0.1


def test_ring_correlation_falls_where_the_signal_ends(rng):
    q = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.fftfreq(256)[None, :])
    spectrum = np.fft.fft2(rng.standard_normal((256, 256))) * (q < 0.2)
    signal = np.fft.ifft2(spectrum).real
    pair = [signal + 0.05 * rng.standard_normal((256, 256)) for _ in range(2)]
    freq, frc = fourier_ring_correlation(*pair)
    assert (frc[(freq > 0.05) & (freq < 0.18)] > 0.9).all()
    assert resolution_px(freq, frc) == pytest.approx(0.5 / 0.2, rel=0.1)


def test_resolution_is_interpolated_between_rings():
    assert resolution_px(np.array([0.1, 0.2, 0.3]), np.array([1.0, 0.6, 0.2]), 0.4) == pytest.approx(0.5 / 0.25)
    assert resolution_px(np.array([0.1, 0.2]), np.array([0.0, 0.0])) == pytest.approx(5.0)
