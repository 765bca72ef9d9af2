"""What the tutorials have one type works on the sample that they start."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ptycho_bluesky.geometry import spiral_positions_m
from ptycho_bluesky.simulation import Experiment, default_geometry, demo_map
from simulated_iocs.options import BeamlineOptions

BY_HAND = Path(__file__).parents[2] / "docs" / "tutorials" / "by-hand.md"


def test_scans_by_hand_lie_within_areas_of_shapes():
    options, text = BeamlineOptions(), BY_HAND.read_text()
    assert options.sample == "demo"
    geometry = default_geometry(options.size_px)
    sample = demo_map(options.areas, pixel_size_m=geometry.object_pixel_m, seed=options.seed)
    beam_m = Experiment.default(options.size_px, sample).beam_m
    centres = [tuple(map(float, pair)) for pair in re.findall(r"centre_m=\(([^,]+), ([^)]+)\)", text)]
    assert len(centres) == 3
    areas = []
    for centre in centres:
        position = spiral_positions_m(300, 100e-9, centre)
        inside = [
            area.name
            for area in sample.areas
            if area.kind == "shapes" and np.abs(position - area.centre_m).max() + beam_m / 2 <= area.size_m / 2
        ]
        assert len(inside) == 1
        areas += inside
    # the first is put aside to validate the model of the second on, the third is read by it
    assert len(set(areas)) == 3
    assert text.index('purpose="reserved"') < text.index("centre_m=(3.5e-6, 3.5e-6)")
