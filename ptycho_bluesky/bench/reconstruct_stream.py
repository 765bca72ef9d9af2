"""A reconstruction that takes its frames while the scan runs, beside one of the finished scan."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.bench.rows import Row
from ptycho_bluesky.reconstruction import RpieOptions, frame_misfit, reconstruct
from ptycho_bluesky.reconstruction.following import FollowOptions, follow
from ptycho_bluesky.records import Measurement, Reconstruction
from ptycho_bluesky.simulation.scans import spiral_scan

__all__ = ["Pieces", "diffraction_error", "stream_rows"]

PASSES, PIECES, SIZE_PX = 20, 20, 64
WORSE_BY, FIRST_IMAGE = 1.05, 0.1
"""What is asked for: error in units of that of the finished scan, and part of the frames before the first image."""


class Pieces:
    """A source that gives a scan in equal pieces, an empty look after each.

    Parameters
    ----------
    measurement : Measurement
    count : int
    """

    def __init__(self, measurement: Measurement, count: int) -> None:
        rows = np.array_split(np.arange(len(measurement)), count)
        self._looks = [look for part in rows for look in (_piece(measurement, part), None)]
        self.ended = False

    def new(self) -> Measurement | None:
        """The next piece, or nothing."""
        if not self._looks:
            self.ended = True
            return None
        return self._looks.pop(0)


def _piece(measurement: Measurement, rows: NDArray[np.int64]) -> Measurement:
    names = ("image", "position_m", "frame_index", "unique_id", "timestamp_s", "i0")
    return replace(measurement, **{name: getattr(measurement, name)[rows] for name in names})


def diffraction_error(measurement: Measurement, result: Reconstruction) -> float:
    """Σ(|F| − √I)²/ΣI of a finished object over all frames."""
    options = RpieOptions(dtype=result.options.get("dtype", "complex64"))
    misfit, scan = frame_misfit(result, measurement, np.arange(len(measurement)), options)
    return float(misfit.sum() / scan.amplitude.double().square().sum().item())


def stream_rows(points: int) -> list[Row]:
    """Error after the last frame, and how many frames there were at the first image.

    Both take photon noise from the same frames, rPIE in batches of 16, and use each frame equally often.

    Parameters
    ----------
    points : int
        Frames of a simulated scan.
    """
    measurement, _ = spiral_scan(points, SIZE_PX)
    noisy = np.random.default_rng(0).poisson(np.asarray(measurement.image) * 0.1)
    measurement = replace(measurement, image=noisy.astype(np.float32))
    options = RpieOptions(iterations=PASSES, holdout_fraction=0.0)
    how = FollowOptions(image_period_s=0.0, look_period_s=0.05)
    streamed = follow(Pieces(measurement, PIECES), options, how)
    whole = reconstruct(measurement, options)
    errors = [diffraction_error(measurement, each) for each in (streamed, whole)]
    name = f"the finished scan, {PASSES} passes as well"
    first = streamed.provenance["first_image_frames"] / points
    return [
        Row("streaming_error", "1", "lower", errors[0], errors[1], name, WORSE_BY * errors[1]),
        Row("streaming_first_image", "part of the frames", "lower", first, 1.0, "after the scan", FIRST_IMAGE),
    ]
