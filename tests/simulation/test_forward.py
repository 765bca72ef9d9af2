from __future__ import annotations

import numpy as np
import pytest

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.fourier import fft2, fftshift, fourier_shift, ifftshift
from ptycho_bluesky.simulation.experiment import default_geometry
from ptycho_bluesky.simulation.forward import diffract, extract_patches
from ptycho_bluesky.simulation.optics import ZonePlate, zone_plate_probe

PROBE = zone_plate_probe(ZonePlate(), default_geometry(64), photons=1000.0)


@pytest.fixture
def obj(rng):
    phase = rng.uniform(-1, 1, (150, 140))
    return np.exp(1j * phase).astype(np.complex64)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def test_whole_shift_is_a_roll_and_fractions_add_up():
    np.testing.assert_allclose(fourier_shift(PROBE, (3, -5)), np.roll(PROBE, (3, -5), (0, 1)), atol=1e-4)
    twice = fourier_shift(fourier_shift(PROBE, (0.3, 0.45)), (0.7, -0.45))
    np.testing.assert_allclose(twice, np.roll(PROBE, 1, 0), atol=1e-4)
    assert fourier_shift(PROBE, (0.5, 0.5)).dtype == np.complex64


def test_many_shifts_at_once_and_many_waves_at_once():
    shifts = np.array([[0.25, 0.5], [-1.5, 2.0], [0.0, 0.0]])
    modes = np.stack([PROBE, 1j * PROBE])
    many = fourier_shift(modes, shifts)
    assert many.shape == (3, 2, 64, 64)
    np.testing.assert_allclose(many[1, 1], fourier_shift(modes[1], shifts[1]), atol=1e-4)


def test_shift_of_a_gaussian_is_the_gaussian_elsewhere():
    y, x = np.indices((64, 64)) - 32.0
    moved = fourier_shift(np.exp(-(y**2 + x**2) / 20), (2.3, -1.6))
    np.testing.assert_allclose(moved, np.exp(-((y - 2.3) ** 2 + (x + 1.6) ** 2) / 20), atol=1e-9)


def test_energy_is_conserved_on_a_phase_object(obj):
    frames = diffract(PROBE, obj, [[70.0, 70.0], [60.4, 80.7]])
    assert frames.dtype == np.float32
    np.testing.assert_allclose(frames.sum(axis=(1, 2)), 1000.0, rtol=1e-4)


def test_empty_beam_has_its_zero_frequency_at_the_centre():
    flat = np.ones((64, 64), np.complex64)
    frame = diffract(flat, np.ones((80, 80), np.complex64), [[40, 40]])[0]
    assert np.unravel_index(frame.argmax(), frame.shape) == (32, 32)
    assert frame[32, 32] == pytest.approx(64 * 64, rel=1e-5)


def test_prism_deflects_towards_larger_indices():
    rows, cols = np.indices((100, 100))
    prism = np.exp(2j * np.pi * (3 * rows - 5 * cols) / 64)
    frame = diffract(np.ones((64, 64)), prism, [[50, 50]])[0]
    assert np.unravel_index(frame.argmax(), frame.shape) == (32 + 3, 32 - 5)


def test_against_the_plain_definition(obj, rng):
    position = rng.uniform(40, 100, (5, 2))
    frames = diffract(PROBE, obj, position)
    for frame, (row, col) in zip(frames, position, strict=True):
        top, left = round(row) - 32, round(col) - 32
        probe = fourier_shift(PROBE.astype(complex), (row - round(row), col - round(col)))
        wave = probe * obj[top : top + 64, left : left + 64]
        expected = np.abs(fftshift(np.fft.fft2(ifftshift(wave), norm="ortho"))) ** 2
        np.testing.assert_allclose(frame, expected, atol=2e-3)


def test_moving_object_and_position_together_changes_nothing(obj):
    here = diffract(PROBE, obj, [[70.3, 65.8]])
    there = diffract(PROBE, np.roll(obj, (6, -4), (0, 1)), [[76.3, 61.8]])
    np.testing.assert_allclose(here, there, atol=1e-3)


def test_modes_add_in_intensity(obj):
    modes = np.stack([0.8 * PROBE, 0.6 * np.roll(PROBE, 3, 0)])
    both = diffract(modes, obj, [[70.5, 70.2]])
    apart = sum(diffract(mode, obj, [[70.5, 70.2]]) for mode in modes)
    np.testing.assert_allclose(both, apart, atol=1e-3)


def test_beyond_the_object_there_is_background(obj):
    far = diffract(PROBE, obj, [[-5000.0, 70.0], [70.0, 1e6], [10_000.0, -10_000.0]])
    empty = diffract(PROBE, np.ones((64, 64)), [[32, 32]])
    np.testing.assert_allclose(far, np.repeat(empty, 3, 0), atol=1e-3)
    patch = extract_patches(obj, np.array([[-10, 100]]), 64, background=0.5)[0]
    np.testing.assert_array_equal(patch[10:, :40], obj[:54, 100:])
    assert (patch[:10] == 0.5).all()
    assert (patch[:, 40:] == 0.5).all()


def test_chunks_make_no_difference(obj, rng, monkeypatch):
    position = rng.uniform(40, 100, (7, 2))
    whole = diffract(PROBE, obj, position)
    monkeypatch.setattr("ptycho_bluesky.simulation.forward.CHUNK_BYTES", 8 * 64 * 64 * 3)
    seen = []
    np.testing.assert_array_equal(whole, diffract(PROBE, obj, position, progress=lambda k, n: seen.append((k, n))))
    assert seen == [(3, 7), (6, 7), (7, 7)]


def test_odd_sizes_keep_the_convention():
    probe = np.zeros((65, 65), np.complex64)
    probe[32, 32] = 1.0
    obj = np.zeros((100, 100), np.complex64)
    obj[50, 40] = 2.0
    assert diffract(probe, obj, [[50, 40]]).sum() == pytest.approx(4.0, rel=1e-4)


@pytest.mark.parametrize(("probe", "position"), [(np.ones((4, 6)), [[1.0, 2.0]]), (np.ones((4, 4)), [[np.nan, 1.0]])])
def test_impossible_input_is_refused(probe, position):
    with pytest.raises(InputError):
        diffract(probe, np.ones((20, 20)), position)


def test_unitary_transform_conserves_the_sum():
    assert np.sum(np.abs(fft2(PROBE, unitary=True)) ** 2) == pytest.approx(1000.0, rel=1e-5)
