"""Stitching of predicted patches into one image, incrementally and safely for wrapped phase."""

from __future__ import annotations

from ptycho_bluesky.stitching.mosaic import MosaicBuilder
from ptycho_bluesky.stitching.weights import disc_weight, weight_from_manifest

__all__ = ["MosaicBuilder", "disc_weight", "weight_from_manifest"]
