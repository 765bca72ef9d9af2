"""Detectors of every size and networks of every kind take the edge's path, with their residual."""

from __future__ import annotations

import numpy as np
import pytest

from ptycho_bluesky.inference import load_model
from ptycho_bluesky.models import build
from ptycho_bluesky.models.export import to_onnx
from ptycho_bluesky.records import Measurement
from ptycho_bluesky.simulation import ZonePlate, default_geometry
from ptycho_bluesky.simulation.forward import iterate_diffraction
from ptycho_bluesky.simulation.optics import zone_plate_probe
from ptycho_bluesky.streaming.replay import replay_run
from ptycho_bluesky.trust.light import Light
from ptycho_bluesky.trust.physics import PHYSICS_KEY, Physics

NUM = 4
PHOTONS = 1e6


@pytest.mark.parametrize(
    ("size", "architecture"),
    [(128, "ptychonn2"), (128, "ptychonn"), (128, "lean8"), (256, "ptychonn2"), (256, "lean8"), (512, "lean8")],
)
def test_frames_of_every_size_are_read(size, architecture):
    geometry = default_geometry(size)
    probe = zone_plate_probe(ZonePlate(), geometry, photons=PHOTONS)
    pixel = geometry.object_pixel_m
    position_px = np.array(
        [[size, size], [size + 9.0, size + 4.0], [size + 3.0, size + 12.0], [size + 6.0, size + 1.0]]
    )
    flat = np.ones((2 * size + 16, 2 * size + 16), dtype=np.complex64)
    image = np.concatenate([part for _, part in iterate_diffraction(probe, flat, position_px)])
    index = np.arange(NUM)
    scan = Measurement(
        image=np.random.default_rng(0).poisson(image).astype(np.uint32),
        position_m=position_px * pixel,
        frame_index=index,
        unique_id=index,
        timestamp_s=np.full(NUM, np.nan),
        i0=np.full(NUM, 2.0),
        geometry=geometry,
        pixel_size_m=pixel,
        run_uid=f"{size}",
    )
    physics = Physics(probe[None], light=Light(i0=2.0))
    manifest = {"architecture": architecture, PHYSICS_KEY: physics.as_dict(), "pixel_size_m": pixel}
    model = load_model(to_onnx(build(architecture), (size, size), manifest=manifest), "onnxruntime", num_threads=1)
    batches = []
    mosaic, counts = replay_run(scan, model, batch_size=2, on_batch=batches.append)
    assert (counts.inferred, counts.lost, counts.unaccounted) == (NUM, 0, 0)
    patch = model.engine.patch_shape
    assert batches[0].phase_rad.shape == (2, *patch)
    assert patch in ((size, size), (size // 2, size // 2))
    assert mosaic.coverage.max() == NUM
    assert np.isfinite(mosaic.frame_log["residual"]).all()
