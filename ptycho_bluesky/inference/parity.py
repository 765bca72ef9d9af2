"""Whether a faster engine still reads the same phase as single precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.geometry import Geometry, spiral_positions_m
from ptycho_bluesky.inference.engine import Engine
from ptycho_bluesky.simulation import Experiment, SampleMap, ZonePlate, default_geometry, demo_map
from ptycho_bluesky.stitching import weight_from_manifest

__all__ = ["PARITY_RMS_RAD", "Parity", "compare", "typical_frames"]

PARITY_RMS_RAD = 0.02
"""Root mean square of the difference, over the pixels that are stitched, up to which an engine reads the same.

Measured with PtychoNN 2.0 and a lean network on simulated frames: integers that differ by 0.017 rad cost 0.001 to 0.002
of the stitched image's similarity, bfloat16 (0.002 rad) less than 0.0001. The limit so lies well within the 0.01 that a
faster form may cost, and catches an engine that computes something else.
"""


@dataclass(frozen=True)
class Parity:
    """Difference of two engines over the stitched pixels, in rad."""

    rms_rad: float
    max_rad: float

    @property
    def passed(self) -> bool:
        """Whether the root mean square is within `PARITY_RMS_RAD`."""
        return bool(self.rms_rad <= PARITY_RMS_RAD)  # a NaN does not pass


def compare(engine: Engine, reference: NDArray[np.float32], frames: NDArray[Any]) -> Parity:
    """Difference of what an engine reads from a reference.

    Parameters
    ----------
    engine : Engine
    reference : ndarray of float32, shape (n, h, w)
        Phase by single precision.
    frames : ndarray, shape (n, H, W)
        Counts.

    Returns
    -------
    Parity
        NaN when the answer has another shape or is not finite.
    """
    phase = engine.infer(frames)
    if phase.shape != reference.shape or not np.isfinite(phase).all():
        return Parity(np.nan, np.nan)
    stitched = weight_from_manifest(engine.manifest, engine.patch_shape) > 0
    # on the circle: π and −π are one phase
    difference = np.abs(np.angle(np.exp(1j * (phase - reference)[:, stitched])))
    return Parity(float(np.sqrt(np.mean(difference**2))), float(difference.max()))


def typical_frames(manifest: Mapping[str, Any], num_frames: int = 8, seed: int = 0) -> NDArray[np.uint16]:
    """Simulated frames of a model's geometry and exposure.

    Parameters
    ----------
    manifest : mapping
        ``image_shape``; ``geometry`` and ``mean_counts`` where they are known.
    num_frames : int
    seed : int
        Of the sample and of the photons.

    Returns
    -------
    ndarray of uint16, shape (num_frames, H, W)
        A spiral over random shapes, with the default zone plate.
    """
    rows, cols = manifest["image_shape"]
    size = max(rows, cols)
    # frames that a network reads are canonical, however the detector stood
    geometry = replace(Geometry.from_dict(manifest.get("geometry")) or default_geometry(size), orientation="identity")
    sample: SampleMap = demo_map(1, num_letters=0, size_m=3e-6, pixel_size_m=geometry.object_pixel_m, seed=seed)
    experiment = Experiment(geometry, ZonePlate(), sample)
    mean = float(manifest.get("mean_counts") or 20.0)
    exposure_s = mean * size**2 / experiment.flux_photons_per_s / max(float(manifest.get("count_scale", 1.0)), 1e-6)
    scan = experiment.render(spiral_positions_m(num_frames, 2e-7), exposure_s, seed=seed)
    return np.ascontiguousarray(scan.image[:, :rows, :cols])
