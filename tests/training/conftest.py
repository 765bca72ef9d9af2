from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage

from ptycho_bluesky.geometry import spiral_positions_m
from ptycho_bluesky.records import LabelSet
from ptycho_bluesky.simulation.experiment import Experiment, default_geometry
from ptycho_bluesky.simulation.optics import ZonePlate, zone_plate_probe
from ptycho_bluesky.simulation.sample_map import demo_map

SIZE = 64
GEOMETRY = default_geometry(SIZE)


def true_labels(seed: int, num_frames: int = 96, uid: str = "") -> LabelSet:
    """A simulated scan with the ground truth as labels."""
    pixel = GEOMETRY.object_pixel_m
    sample = demo_map(1, size_m=4e-6, pixel_size_m=pixel, seed=seed, num_letters=0)
    experiment = Experiment(GEOMETRY, ZonePlate(), sample)
    scan = experiment.render(spiral_positions_m(num_frames, 1.5e-7), 5e-3, seed=seed)
    truth, frame = experiment.truth()
    grid = np.mgrid[:SIZE, :SIZE].astype(float) - SIZE // 2
    phase, amplitude = (
        np.stack(
            [
                scipy.ndimage.map_coordinates(part, grid + p[:, None, None], order=1)
                for p in frame.to_px(scan.position_m)
            ]
        ).astype(np.float32)
        for part in (np.angle(truth), np.abs(truth))
    )
    probe = zone_plate_probe(ZonePlate(), GEOMETRY, photons=1e5)[None]
    weight = (np.abs(probe[0]) ** 2 / np.abs(probe[0]).max() ** 2).astype(np.float32)
    return LabelSet(
        image=scan.image,
        phase_rad=phase,
        amplitude=amplitude,
        position_m=scan.position_m,
        frame_index=np.arange(num_frames),
        probe=probe,
        weight=weight,
        pixel_size_m=pixel,
        geometry=GEOMETRY,
        run_uid=uid or f"run-{seed}",
        provenance={"labels": "truth"},
    )


@pytest.fixture(scope="session")
def labels_a() -> LabelSet:
    return true_labels(1)


@pytest.fixture(scope="session")
def labels_b() -> LabelSet:
    return true_labels(2)


@pytest.fixture(scope="session")
def reserved() -> LabelSet:
    return true_labels(3)


@pytest.fixture
def make_true_labels():
    return true_labels
