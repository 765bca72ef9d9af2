from __future__ import annotations

import numpy as np
import pytest

from ptycho_bluesky.fourier import fourier_shift
from ptycho_bluesky.geometry import ObjectFrame, spiral_positions_m
from ptycho_bluesky.reconstruction.gauge import (
    fix_gauge,
    flat_ramp,
    illumination,
    orthogonal_modes,
    phase_ramp,
    remove_ramp,
)
from ptycho_bluesky.simulation import default_geometry, samples, zone_plate_probe
from ptycho_bluesky.simulation.forward import diffract
from ptycho_bluesky.simulation.optics import ZonePlate

GEOMETRY = default_geometry(64)
PIXEL = GEOMETRY.object_pixel_m


def shapes(shape, seed=0):
    return samples.transmission(samples.random_shapes(shape, seed=seed), max_phase_rad=-1.0, min_amplitude=0.9)


def gauged_scene(seed=0):
    position = spiral_positions_m(300, 60e-9)
    frame = ObjectFrame.around(position, 64, PIXEL)
    probe = zone_plate_probe(ZonePlate(), GEOMETRY, photons=1e6)[None].astype(complex)
    return shapes(frame.shape, seed).astype(complex), probe, frame, frame.to_px(position)


def test_illumination_is_the_sum_of_shifted_probes():
    rng = np.random.default_rng(0)
    probe = rng.standard_normal((2, 16, 16)) + 1j * rng.standard_normal((2, 16, 16))
    position = np.array([[20.2, 30.4], [8.0, 9.0], [50.0, 41.0]])
    expected = np.zeros((60, 50))
    power = np.sum(np.abs(probe) ** 2, axis=0)
    for row, col in np.rint(position).astype(int) - 8:
        for i in range(16):
            for j in range(16):
                if 0 <= row + i < 60 and 0 <= col + j < 50:
                    expected[row + i, col + j] += power[i, j]
    np.testing.assert_allclose(illumination(probe, position, (60, 50)), expected, atol=1e-9)


@pytest.mark.parametrize("slope", [(0.0, 0.0), (0.05, -0.02), (-0.3, 0.11), (1.2, 0.7)])
def test_flat_ramp_finds_a_ramp_that_wraps(slope):
    obj, probe, frame, position_px = gauged_scene()
    light = illumination(probe, position_px, frame.shape)
    found = np.array(flat_ramp(obj * phase_ramp(frame.shape, slope, (3.0, 5.0)), light))
    own = np.array(flat_ramp(obj, light))
    np.testing.assert_allclose(found - own, slope, atol=1e-6)


def test_flat_ramp_follows_the_structure_less_than_a_plane_does():
    _, probe, frame, position_px = gauged_scene()
    light = illumination(probe, position_px, frame.shape)
    rows, cols = np.nonzero(light > 0.1 * np.median(light[light > 0.01 * light.max()]))
    basis = np.stack([np.ones(len(rows)), rows - rows.mean(), cols - cols.mean()], axis=1)
    planes, found = [], []
    for seed in range(8):
        obj = shapes(frame.shape, seed)
        planes.append(np.linalg.lstsq(basis, np.angle(obj[rows, cols]), rcond=None)[0][1:])
        found.append(flat_ramp(obj, light))
    assert np.linalg.norm(found) < 0.4 * np.linalg.norm(planes)


def test_gauge_is_fixed_and_the_frames_stay_the_same():
    obj, probe, frame, position_px = gauged_scene()
    position_m = frame.to_m(position_px)
    shift = np.array([1.3, -0.7])
    # A ramp that repeats in the probe's window, or its sub-pixel shift would not be undone at the window's edges.
    slope = (2 * np.pi / 64, -2 * np.pi / 64)
    moved = ObjectFrame(tuple(np.array(frame.origin_m) + shift * PIXEL), PIXEL, frame.shape)
    turned_obj, turned_probe = remove_ramp(obj, fourier_shift(probe, shift), slope, moved)
    turned_obj, turned_probe = turned_obj * 1.7 * np.exp(2.1j), turned_probe / 1.7
    want_obj, want_probe, want_frame = fix_gauge(obj, probe, frame, position_m)
    found_obj, found_probe, found_frame = fix_gauge(turned_obj, turned_probe, moved, position_m)
    np.testing.assert_allclose(found_frame.origin_m, want_frame.origin_m, rtol=0, atol=0.01 * PIXEL)
    np.testing.assert_allclose(found_obj, want_obj, atol=1e-3)
    assert np.linalg.norm(found_probe - want_probe) < 0.01 * np.linalg.norm(want_probe)
    before, after = (
        diffract(p, o, f.to_px(position_m[:10]))
        for p, o, f in ((turned_probe, turned_obj, moved), (found_probe, found_obj, found_frame))
    )
    # The window cuts the probe's faint tails a pixel further left or right.
    assert np.abs(before - after).sum() < 0.02 * before.sum()


def test_gauge_scale_puts_the_counts_into_the_probe():
    obj, probe, frame, position_px = gauged_scene()
    found_obj, found_probe, found_frame = fix_gauge(obj * 3.0, probe / 3.0, frame, frame.to_m(position_px))
    light = illumination(found_probe, found_frame.to_px(frame.to_m(position_px)), frame.shape)
    assert np.sum(light * np.abs(found_obj) ** 2) / light.sum() == pytest.approx(1.0, abs=1e-6)
    counts = diffract(probe, obj, position_px).sum(axis=(1, 2)).mean()
    assert np.sum(np.abs(found_probe) ** 2) == pytest.approx(counts, rel=0.01)


def test_orthogonal_modes_keep_the_intensity():
    rng = np.random.default_rng(1)
    modes = rng.standard_normal((3, 8, 8)) + 1j * rng.standard_normal((3, 8, 8))
    found = orthogonal_modes(modes)
    flat = found.reshape(3, -1)
    overlap = np.abs(flat @ flat.conj().T)
    np.testing.assert_allclose(overlap - np.diag(np.diag(overlap)), 0.0, atol=1e-10)
    assert (np.diff(np.diag(overlap)) < 0).all()
    np.testing.assert_allclose(np.sum(np.abs(found) ** 2, axis=0), np.sum(np.abs(modes) ** 2, axis=0))
