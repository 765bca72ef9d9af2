"""What speaks for a reconstruction besides its own error: two half-scans, and other pixels that do not fit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.reconstruction.half_scans import HALF_PASSES, stored_agreement, try_half_scans
from ptycho_bluesky.reconstruction.options import EngineOptions
from ptycho_bluesky.reconstruction.pixel_check import lowest_factor, pixel_gains
from ptycho_bluesky.reconstruction.ring_correlation import RingCorrelation
from ptycho_bluesky.records import Measurement, Reconstruction

__all__ = ["Evidence", "gather_evidence", "stored_evidence"]

logger = logging.getLogger(__name__)

PIXEL_KEY = "pixel_gains"


@dataclass(frozen=True)
class Evidence:
    """What labels are judged by, beside the frames left out.

    Attributes
    ----------
    halves : RingCorrelation or None
        Agreement of two half-scans; None where none could be made.
    pixel : dict of float to tuple of float
        See `ptycho_bluesky.reconstruction.pixel_check.pixel_gains`; empty where it could not be told.
    """

    halves: RingCorrelation | None
    pixel: Mapping[float, tuple[float, float]]

    @property
    def best_pixel(self) -> tuple[float, float, float]:
        """The factor that fits best, between those tried; significance and gain of the best other one that was tried.

        ``(1, 0, 0)`` where none was.
        """
        if not self.pixel:
            return 1.0, 0.0, 0.0
        factor = lowest_factor({1.0: 0.0, **{each: -gain for each, (_, gain) in self.pixel.items()}})
        return factor, *max(self.pixel.values(), key=lambda found: found[1])


def gather_evidence(
    measurement: Measurement,
    reconstruction: Reconstruction,
    options: EngineOptions,
    passes: int = HALF_PASSES,
    progress: Callable[[int, int, float], None] | None = None,
) -> dict[str, Any]:
    """Entries of a reconstruction's provenance that `stored_evidence` reads; what cannot be told is logged, with why.

    Parameters
    ----------
    measurement : Measurement
    reconstruction : Reconstruction
        Of it.
    options : EngineOptions
        That made it.
    passes : int
        Of each half-scan.
    progress : callable, optional
        ``progress(done, total, error)`` over the half-scans.
    """
    found = try_half_scans(measurement, reconstruction, options, passes, progress)
    try:
        pixel = pixel_gains(measurement, reconstruction, options)
    except InputError as error:
        logger.warning("%s: its pixel was not checked: %s", measurement.run_uid or "measurement", error)
        return found
    return {**found, PIXEL_KEY: [[factor, *gain] for factor, gain in pixel.items()]}


def stored_evidence(reconstruction: Reconstruction) -> Evidence:
    """Evidence in a reconstruction's provenance."""
    pixel = reconstruction.provenance.get(PIXEL_KEY) or []
    gains = {float(factor): (float(significance), float(gain)) for factor, significance, gain in pixel}
    return Evidence(stored_agreement(reconstruction), gains)
