"""Stitching of predicted patches into one image, incrementally and safely for wrapped phase."""

from __future__ import annotations

from ptycho_bluesky.stitching.merge import merge_mosaics
from ptycho_bluesky.stitching.mosaic import MosaicBuilder
from ptycho_bluesky.stitching.weights import (
    cosine_weight,
    crop_weight,
    disc_weight,
    probe_weight,
    weight_from_manifest,
)

__all__ = [
    "MosaicBuilder",
    "cosine_weight",
    "crop_weight",
    "disc_weight",
    "merge_mosaics",
    "probe_weight",
    "weight_from_manifest",
]
