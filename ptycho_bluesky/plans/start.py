"""The start document of a ptychography run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from bluesky.protocols import Readable

from ptycho_bluesky._version import __version__
from ptycho_bluesky.devices import PtychoDetector, SampleStage, Shutter
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.plans.points import ScanPoints

__all__ = ["PURPOSES", "ScanOptions", "start_metadata"]

logger = logging.getLogger(__name__)

PURPOSES = ("train", "reserved", "test")
"""What a run is for: only those for training enter the corpus."""
DOCUMENT_VERSION = 1


@dataclass(frozen=True)
class ScanOptions:
    """What every plan is asked for beside its points.

    Attributes
    ----------
    exposure_s : float
    period_s : float or None
        From frame to frame; None in a step scan.
    shutter : Shutter or None
    baseline : sequence of Readable
    purpose : str
        One of `PURPOSES`.
    object_pixel_m : float or None
        Pixel at the sample to state when the geometry is unknown (a nominal one, and marked so); by default the one of
        the settings.
    md : mapping or None
        Added to the start document; wins.

    Raises
    ------
    InputError
        Unknown purpose.
    """

    exposure_s: float
    period_s: float | None
    shutter: Shutter | None
    baseline: Sequence[Readable]
    purpose: str
    object_pixel_m: float | None
    md: Mapping[str, Any] | None

    def __post_init__(self) -> None:
        if self.purpose not in PURPOSES:
            raise InputError(f"purpose = {self.purpose!r}", f"known ones are {', '.join(PURPOSES)}")


def start_metadata(
    plan_name: str,
    plan_args: Mapping[str, Any],
    detector: PtychoDetector,
    stage: SampleStage,
    points: ScanPoints,
    options: ScanOptions,
    dimensions: list[Any],
) -> dict[str, Any]:
    """Metadata of the start document.

    Parameters
    ----------
    plan_name, plan_args
        As Bluesky has them; arguments are stored by their `repr`.
    detector, stage, points, options
        What is scanned with what, where and how.
    dimensions : list
        For ``hints``.

    Raises
    ------
    InputError
        A nominal pixel beside a known geometry.
    """
    geometry = detector.read_geometry()
    object_pixel_m = None if geometry is not None else _nominal_pixel_m(detector, options.object_pixel_m)
    if geometry is not None and options.object_pixel_m is not None:
        raise InputError(
            f"object_pixel_m = {options.object_pixel_m}",
            f"the geometry is known and gives {geometry.object_pixel_m:.4g} m",
            "leave it out",
        )
    low, high = points.position_m.min(axis=0), points.position_m.max(axis=0)
    content: dict[str, Any] = {
        "plan_name": plan_name,
        "plan_args": {key: repr(value) for key, value in plan_args.items()},
        "plan_pattern": points.metadata["pattern"],
        "detectors": [detector.name],
        "motors": [stage.y.name, stage.x.name],
        "num_points": len(points),
        "num_intervals": len(points) - 1,
        "shape": [len(points)],
        "extents": np.stack([low, high], axis=1).tolist(),
        "hints": {"dimensions": dimensions},
        "tiled_specs": ["ptycho"],
        "ptycho": {
            "version": DOCUMENT_VERSION,
            "software": {"ptycho_bluesky": __version__},
            "geometry": None if geometry is None else geometry.as_dict(),
            "pixel_size_m": object_pixel_m if geometry is None else geometry.object_pixel_m,
            "pixel_size_nominal": object_pixel_m is not None,
            "frame_shape": list(detector.frame_shape),
            "canonical": detector.canonical(),
            "light": detector.settings.model_dump(include={"i0_integrates", "i0_behind_attenuator"}),
            "scan": {**points.metadata, "exposure_s": float(options.exposure_s), "period_s": options.period_s},
            "detector": {
                "channel": detector.channel,
                "image_key": detector.image_key,
                "zero_frequency": "centre",
                "dtype": detector.dtype_numpy,
            },
            "purpose": options.purpose,
            "simulated": detector.simulated,
        },
    }
    content.update(options.md or {})
    return content


def _nominal_pixel_m(detector: PtychoDetector, stated_m: float | None) -> float | None:
    """The pixel that is stated where no geometry is known."""
    pixel_m = detector.stated_pixel_m if stated_m is None else stated_m
    if pixel_m is None:
        logger.warning(
            "the geometry is unknown and no object_pixel_m is stated: positions cannot be turned into pixels"
        )
    return pixel_m
