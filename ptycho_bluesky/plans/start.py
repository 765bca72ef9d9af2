"""The start document of a ptychography run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from ptycho_bluesky._version import __version__
from ptycho_bluesky.devices import PtychoDetector, SampleStage
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.plans.points import ScanPoints

__all__ = ["PURPOSES", "start_metadata"]

logger = logging.getLogger(__name__)

PURPOSES = ("train", "reserved", "test")
"""What a run is for: only those for training enter the corpus."""
DOCUMENT_VERSION = 1


def start_metadata(
    plan_name: str,
    plan_args: Mapping[str, Any],
    detector: PtychoDetector,
    stage: SampleStage,
    points: ScanPoints,
    *,
    exposure_s: float,
    period_s: float | None,
    purpose: str,
    object_pixel_m: float | None,
    dimensions: list[Any],
    md: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Metadata of the start document.

    Parameters
    ----------
    plan_name, plan_args
        As Bluesky has them; arguments are stored by their `repr`.
    detector, stage, points
        What is scanned with what, where.
    exposure_s, period_s : float
        Timing; ``period_s`` is None for a step scan.
    purpose : str
        One of `PURPOSES`.
    object_pixel_m : float or None
        Pixel at the sample to state when the geometry is unknown (a nominal one, and marked so); by default the one of
        the settings.
    dimensions : list
        For ``hints``.
    md : mapping or None
        The user's; wins.

    Raises
    ------
    InputError
        Unknown purpose, or a nominal pixel beside a known geometry.
    """
    if purpose not in PURPOSES:
        raise InputError(f"purpose = {purpose!r}", f"known ones are {', '.join(PURPOSES)}")
    geometry = detector.read_geometry()
    if object_pixel_m is not None and geometry is not None:
        raise InputError(
            f"object_pixel_m = {object_pixel_m}",
            f"the geometry is known and gives {geometry.object_pixel_m:.4g} m",
            "leave it out",
        )
    if geometry is None and object_pixel_m is None:
        object_pixel_m = detector.stated_pixel_m
    if geometry is None and object_pixel_m is None:
        logger.warning(
            "the geometry is unknown and no object_pixel_m is stated: positions cannot be turned into pixels"
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
            "pixel_size_nominal": geometry is None and object_pixel_m is not None,
            "frame_shape": list(detector.frame_shape),
            "scan": {**points.metadata, "exposure_s": float(exposure_s), "period_s": period_s},
            "detector": {
                "channel": detector.channel,
                "image_key": detector.image_key,
                "zero_frequency": "centre",
                "dtype": detector.dtype_numpy,
            },
            "purpose": purpose,
            "simulated": detector.simulated,
        },
    }
    content.update(md or {})
    return content
