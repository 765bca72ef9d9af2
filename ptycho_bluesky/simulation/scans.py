"""Whole simulated scans with their truth, for measurements and tests."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.geometry import spiral_positions_m
from ptycho_bluesky.records import Measurement
from ptycho_bluesky.simulation.experiment import Experiment, default_geometry
from ptycho_bluesky.simulation.forward import diffract
from ptycho_bluesky.simulation.sample_map import Area, SampleMap

__all__ = ["line_scan", "spiral_scan"]

PHOTONS = 1e6
"""Of a frame."""
STEP_M = 60e-9
WIDTH_M = 1.2e-6
"""Of a band that `line_scan` covers."""


def spiral_scan(num_points: int, size_px: int, seed: int = 0) -> tuple[Measurement, Experiment]:
    """Noise-free spiral over random shapes, frames of ``size_px`` a side, and the experiment that holds its truth."""
    return _scan(spiral_positions_m(num_points, STEP_M), size_px, 6e-6, seed)


def line_scan(num_points: int, size_px: int, seed: int = 0) -> tuple[Measurement, Experiment]:
    """As `spiral_scan`, on a long band of rows, jittered by a fifth of a step."""
    columns = max(1, round(WIDTH_M / STEP_M))
    index = np.arange(num_points)
    position_m = STEP_M * np.stack([index // columns, index % columns], axis=1).astype(np.float64)
    position_m += 0.2 * STEP_M * np.random.default_rng(seed).standard_normal(position_m.shape)
    position_m -= position_m.mean(axis=0)
    return _scan(position_m, size_px, 4e-6 + float(np.ptp(position_m)), seed)


def _scan(position_m: NDArray[np.float64], size_px: int, side_m: float, seed: int) -> tuple[Measurement, Experiment]:
    geometry = default_geometry(size_px)
    sample = SampleMap((Area("shapes", (0.0, 0.0), side_m, seed=seed),), geometry.object_pixel_m)
    experiment = Experiment.default(size_px, sample)
    obj, frame = experiment.truth()
    image = diffract(np.sqrt(PHOTONS) * experiment.probe, obj, frame.to_px(position_m))
    unknown, index = np.full(len(position_m), np.nan), np.arange(len(position_m))
    measurement = Measurement(
        image=image, position_m=position_m, pixel_size_m=geometry.object_pixel_m, geometry=geometry,
        run_uid="simulated", frame_index=index, unique_id=index, timestamp_s=unknown, i0=unknown,
    )  # fmt: skip
    return measurement, experiment
