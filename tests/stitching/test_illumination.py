"""The lit area of a scan, and one canvas read at the pixels of another."""

from __future__ import annotations

import numpy as np

from ptycho_bluesky.geometry import ObjectFrame
from ptycho_bluesky.stitching.illumination import illumination, sample_at


def test_one_position_gives_the_probe_about_it():
    rng = np.random.default_rng(0)
    probe = rng.normal(size=(2, 8, 8)) + 1j * rng.normal(size=(2, 8, 8))
    frame = ObjectFrame((-2e-6, 1e-6), 1e-7, (30, 40))
    position = frame.to_m([[12.0, 17.0]])
    lit = illumination(probe, position, frame)
    np.testing.assert_allclose(lit[8:16, 13:21], (np.abs(probe) ** 2).sum(0), rtol=1e-5)
    np.testing.assert_allclose(lit.sum(), (np.abs(probe) ** 2).sum(), rtol=1e-5)


def test_positions_outside_and_unknown_are_left_out():
    frame = ObjectFrame((0.0, 0.0), 1.0, (16, 16))
    probe = np.ones((4, 4), complex)
    lit = illumination(probe, [[8, 8], [np.nan, 0], [99, 3], [8, 8]], frame)
    assert lit.max() == np.float32(2.0)
    np.testing.assert_allclose(lit.sum(), 32.0, rtol=1e-5)


def test_a_canvas_on_the_same_grid_is_cut_out_exactly():
    rng = np.random.default_rng(1)
    values = np.exp(1j * rng.normal(size=(20, 24)))
    source = ObjectFrame((0.0, 0.0), 2.0, (20, 24))
    target = ObjectFrame((6.0, 8.0), 2.0, (10, 12))
    np.testing.assert_array_equal(sample_at(values, source, target), values[3:13, 4:16])


def test_between_pixels_a_smooth_function_is_interpolated():
    source = ObjectFrame((0.0, 0.0), 1.0, (64, 64))
    target = ObjectFrame((20.25, 18.5), 1.0, (20, 20))

    def wave(frame):
        y, x = np.meshgrid(*(np.arange(20 if frame is target else 64) + o for o in frame.origin_m), indexing="ij")
        return np.exp(1j * (0.2 * y + 0.1 * x))

    np.testing.assert_allclose(sample_at(wave(source), source, target), wave(target), atol=2e-3)
