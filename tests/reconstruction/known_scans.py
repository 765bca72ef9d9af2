"""Simulated scans with their truth, for tests of engines and labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ptycho_bluesky.fourier import fourier_shift
from ptycho_bluesky.geometry import ObjectFrame, spiral_positions_m
from ptycho_bluesky.reconstruction.gauge import LIT_FRACTION, illumination, lit_median
from ptycho_bluesky.records import Measurement, Reconstruction
from ptycho_bluesky.simulation import Area, Experiment, SampleMap, ZonePlate, default_geometry
from ptycho_bluesky.simulation.forward import diffract

STAR = Path(__file__).parents[3] / "shared" / "data" / "siemens-star-small.npz.bz2"


def as_measurement(image: Any, position_m: Any, pixel_size_m: float | None, **fields: Any) -> Measurement:
    n = len(image)
    unknown = np.full(n, np.nan)
    columns = {"frame_index": np.arange(n), "unique_id": np.arange(n), "timestamp_s": unknown, "i0": unknown}
    values = {"geometry": None, "run_uid": "simulated", **columns, **fields}
    return Measurement(image=image, position_m=position_m, pixel_size_m=pixel_size_m, **values)


@dataclass(frozen=True)
class KnownScan:
    """A simulated scan and its truth."""

    experiment: Experiment
    measurement: Measurement

    def on(self, frame: ObjectFrame) -> np.ndarray:
        """The true object on another frame of the same pixel."""
        obj, own = self.experiment.truth()
        offset = own.to_px(np.array(frame.origin_m))
        first = np.rint(offset).astype(int)
        window = obj[first[0] : first[0] + frame.shape[0], first[1] : first[1] + frame.shape[1]]
        return fourier_shift(window - 1.0, first - offset) + 1.0

    def lit(self, reconstruction: Reconstruction) -> np.ndarray:
        frame = reconstruction.frame
        light = illumination(self.experiment.probe[None], frame.to_px(reconstruction.position_m), frame.shape)
        return light > LIT_FRACTION * lit_median(light)


def known_scan(
    num_points: int, step_m: float, *, exposure_s: float | None = None, seed: int = 0, plate: ZonePlate | None = None
) -> KnownScan:
    """Scan of random shapes at 64 × 64; noise-free when no exposure is given."""
    geometry = default_geometry(64)
    sample = SampleMap((Area("shapes", (0.0, 0.0), 5e-6, seed=seed),), geometry.object_pixel_m)
    experiment = Experiment.default(64, sample, plate=plate or ZonePlate())
    position = spiral_positions_m(num_points, step_m)
    if exposure_s is None:
        obj, frame = experiment.truth()
        image: Any = diffract(1000.0 * experiment.probe, obj, frame.to_px(position))
    else:
        image = experiment.render(position, exposure_s, seed=seed).image
    return KnownScan(experiment, as_measurement(image, position, geometry.object_pixel_m, geometry=geometry))


def with_plate(scan: KnownScan, **changes: float) -> Measurement:
    """The measurement with (changed) zone-plate parameters in its metadata."""
    plate = replace(scan.experiment.plate, **changes)
    return replace(scan.measurement, metadata={"zone_plate": plate.as_dict()})
