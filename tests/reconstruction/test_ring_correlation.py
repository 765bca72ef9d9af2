"""Ring correlation of objects with a known spectrum, thresholds of the literature, and half-scans of known scans."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.ndimage

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.fourier import fourier_shift
from ptycho_bluesky.geometry import ObjectFrame
from ptycho_bluesky.reconstruction import EpieOptions, reconstruct
from ptycho_bluesky.reconstruction.half_scans import (
    PROVENANCE_KEY,
    half_scan_agreement,
    reconstruct_halves,
    split_in_halves,
    stored_agreement,
    try_half_scans,
)
from ptycho_bluesky.reconstruction.ring_correlation import (
    HALF_BIT,
    ONE_BIT,
    RingCorrelation,
    correlate_rings,
    first_crossing,
    ring_threshold,
)
from ptycho_bluesky.records import Reconstruction

SIDE = 161


def in_the_light(obj, *, origin=(0.0, 0.0)) -> Reconstruction:
    """An object that a broad, dense scan lit evenly."""
    frame = ObjectFrame(origin, 1.0, obj.shape)
    axis = np.arange(8.0, obj.shape[0] - 8.0, 4.0)
    position = frame.to_m(np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2))
    return Reconstruction(obj, np.ones((1, 16, 16)), position, frame, np.ones(1), None, "none", {})


def band_limited(cutoff: float, seed: int = 0) -> np.ndarray:
    """White up to a frequency (cycles a pixel), nothing beyond; about 1, phase object."""
    rng = np.random.default_rng(seed)
    q = np.hypot(*np.meshgrid(np.fft.fftfreq(SIDE), np.fft.fftfreq(SIDE), indexing="ij"))
    spectrum = np.fft.fft2(rng.standard_normal((SIDE, SIDE)) + 1j * rng.standard_normal((SIDE, SIDE)))
    wave = np.fft.ifft2(np.where(q < cutoff, spectrum, 0.0))
    return 1.0 + 0.3 * wave / np.abs(wave).std()


def noise(level: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return level * (rng.standard_normal((SIDE, SIDE)) + 1j * rng.standard_normal((SIDE, SIDE)))


def test_thresholds_are_those_of_the_literature():
    # van Heel & Schatz 2005: (0.2071 + 1.9102/√n)/(1.2071 + 0.9102/√n) and (0.5 + 2.4142/√n)/(1.5 + 1.4142/√n)
    n = np.array([1.0, 10.0, 1000.0])
    half_bit = (0.2071 + 1.9102 / np.sqrt(n)) / (1.2071 + 0.9102 / np.sqrt(n))
    one_bit = (0.5 + 2.4142 / np.sqrt(n)) / (1.5 + 1.4142 / np.sqrt(n))
    np.testing.assert_allclose(ring_threshold(n, HALF_BIT), half_bit, atol=1e-4)
    np.testing.assert_allclose(ring_threshold(n, ONE_BIT), one_bit, atol=1e-4)
    assert ring_threshold(np.array([1e12]), HALF_BIT)[0] == pytest.approx(0.1716, abs=1e-4)


@pytest.mark.parametrize("cutoff", [0.15, 0.3])
def test_the_resolution_is_that_of_the_band(cutoff):
    obj = band_limited(cutoff)
    rings = correlate_rings(in_the_light(obj + noise(0.02, 1)), in_the_light(obj + noise(0.02, 2)))
    # The window spreads what is bright by some three rings.
    for found in (rings.resolution_px, rings.resolution_one_bit_px, rings.resolution_one_seventh_px):
        assert -1 / rings.side_px < 0.5 / found - cutoff < 4 / rings.side_px
    assert rings.correlation > 0.9
    assert np.isnan(rings.resolution_m)  # no pixel is known
    assert 100 <= rings.side_px <= SIDE


def test_gauges_between_the_two_do_not_count():
    obj = band_limited(0.2)
    rows, cols = np.indices(obj.shape)
    other = 1.7 * fourier_shift(obj, (1.3, -2.6)) * np.exp(1j * (0.7 + 0.013 * rows - 0.02 * cols))
    first = in_the_light(obj + noise(0.02, 1))
    plain = correlate_rings(first, in_the_light(obj + noise(0.02, 2)))
    moved = correlate_rings(first, in_the_light(other + 1.7 * noise(0.02, 2)))
    np.testing.assert_allclose(moved.shift_px, (-1.3, 2.6), atol=0.02)
    assert moved.correlation == pytest.approx(plain.correlation, abs=0.02)
    assert moved.resolution_px == pytest.approx(plain.resolution_px, rel=0.05)


def test_objects_that_have_nothing_in_common_do_not_correlate():
    rings = correlate_rings(in_the_light(band_limited(0.3, 1)), in_the_light(band_limited(0.3, 2)))
    assert rings.correlation < 0.2
    assert not rings.resolution_px < 10.0
    crossed = np.mean(rings.frc[5:] > rings.half_bit[5:])
    assert crossed < 0.05


def test_canvases_may_differ_by_whole_pixels():
    obj = band_limited(0.2)
    part = in_the_light(obj[10:, 6:], origin=(10.0, 6.0))
    rings = correlate_rings(in_the_light(obj), part)
    assert rings.correlation == pytest.approx(1.0, abs=1e-3)
    assert rings.resolution_px == 1.0 or rings.resolution_px == pytest.approx(2.5, rel=0.1)
    with pytest.raises(InputError, match="overlap"):
        correlate_rings(in_the_light(obj), in_the_light(obj, origin=(500.0, 0.0)))
    wide = replace(part, frame=replace(part.frame, pixel_size_m=1.1))
    with pytest.raises(InputError, match="pixel"):
        correlate_rings(in_the_light(obj), wide)


def test_crossings():
    freq, flat = np.array([0.1, 0.2, 0.3]), np.full(3, 0.5)
    assert first_crossing(freq, np.array([1.0, 0.6, 0.4]), flat) == pytest.approx(0.5 / 0.25)
    assert first_crossing(freq, np.array([0.4, 0.9, 0.8]), flat) == 1.0
    assert np.isnan(first_crossing(np.arange(1, 7) / 10, np.array([0.4, 0.3, 0.2, 0.1, 0.9, 0.9]), np.full(6, 0.5)))


def test_halves_cover_the_same_area_evenly():
    y, x = np.mgrid[:20, :20].astype(float)
    position = np.stack([y.ravel(), x.ravel()], axis=1)
    first, second = split_in_halves(position)
    assert sorted([*first, *second]) == list(range(400))
    assert abs(len(first) - len(second)) <= 4
    for rows in (first, second):
        columns = np.bincount(position[rows, 1].astype(int), minlength=20)
        assert columns.min() >= 5
    assert np.array_equal(split_in_halves(position)[0], first)
    with pytest.raises(InputError, match="halves"):
        split_in_halves(position[:1])


def test_half_scans_tell_noise_from_signal(clean_scan, noisy_scan):
    options = EpieOptions(iterations=20, holdout_fraction=0.05)
    found = []
    for scan in (clean_scan, noisy_scan):
        whole = reconstruct(scan.measurement, options)
        first, second = reconstruct_halves(scan.measurement, whole, options, passes=10)
        used = [set(half.provenance["frames_used"]) for half in (first, second)]
        assert not used[0] & used[1]
        assert used[0] | used[1] == set(whole.provenance["frames_used"])
        found.append(correlate_rings(first, second))
    clean, noisy = found
    assert clean.correlation > 0.98
    assert noisy.correlation > 0.9
    assert clean.resolution_px < 1.3
    assert clean.resolution_m == pytest.approx(clean.resolution_px * clean_scan.measurement.pixel_size_m)
    # noise decorrelates the fine rings first
    assert np.mean(noisy.frc[-10:]) < np.mean(clean.frc[-10:])


def test_the_agreement_travels_with_the_reconstruction(noisy_scan):
    options = EpieOptions(iterations=3)
    whole = reconstruct(noisy_scan.measurement, options)
    assert stored_agreement(whole) is None
    seen = []
    entry = try_half_scans(noisy_scan.measurement, whole, options, 2, lambda done, total, _: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    stored = stored_agreement(replace(whole, provenance=entry))
    assert isinstance(stored, RingCorrelation)
    assert stored.passes == 2
    assert stored.duration_s > 0
    again = half_scan_agreement(noisy_scan.measurement, whole, options, passes=2)
    np.testing.assert_allclose(stored.frc, again.frc)
    few = reconstruct(noisy_scan.measurement, options, rows=np.arange(12))
    reason = try_half_scans(noisy_scan.measurement, few, options, 2)[PROVENANCE_KEY]["reason"]
    assert "frames" in reason


def test_a_blurred_half_is_no_finer():
    obj = band_limited(0.4)
    blurred = scipy.ndimage.gaussian_filter(obj.real, 1.5) + 1j * scipy.ndimage.gaussian_filter(obj.imag, 1.5)
    sharp = correlate_rings(in_the_light(obj + noise(0.05, 1)), in_the_light(obj + noise(0.05, 2)))
    soft = correlate_rings(in_the_light(blurred + noise(0.05, 1)), in_the_light(blurred + noise(0.05, 2)))
    assert soft.resolution_px > 1.2 * sharp.resolution_px
