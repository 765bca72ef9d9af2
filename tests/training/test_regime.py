from __future__ import annotations

import numpy as np
import pytest

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.training.regime import KnownProbe, assign_regime, probe_similarity, same_geometry

GEOMETRY = {"image_shape": [32, 32], "pixel_size_m": 1e-8}


def beam(width: float = 5.0, curvature: float = 0.0) -> np.ndarray:
    y, x = np.indices((32, 32)) - 16
    return np.exp(-(y**2 + x**2) / (2 * width**2) + 1j * curvature * (y**2 + x**2))


def test_gauges_do_not_matter():
    probe = beam(curvature=0.02)
    other = 3.0 * np.exp(0.7j) * np.roll(probe, (2, -3), axis=(0, 1))
    assert probe_similarity(probe, other) == pytest.approx(1.0, abs=1e-6)
    assert probe_similarity(probe[None], other[None]) == pytest.approx(1.0, abs=1e-6)


def test_overlap_of_gaussians_is_the_known_one():
    """Of two widths a and b in two dimensions: 2ab / (a² + b²)."""
    assert probe_similarity(beam(3.0), beam(4.0)) == pytest.approx(2 * 12 / 25, abs=1e-3)


def test_order_of_modes_does_not_matter():
    one, two = beam(5.0), 0.3 * beam(5.0) * (np.indices((32, 32))[1] - 16) / 5
    assert probe_similarity(np.array([one, two]), np.array([two, one])) == pytest.approx(1.0, abs=1e-6)
    assert probe_similarity(np.array([one, two]), one[None]) < 0.999


def test_defocus_founds_a_regime_and_a_small_drift_does_not():
    known = [KnownProbe("first", GEOMETRY, beam()[None])]
    drifted = assign_regime("a", GEOMETRY, beam(5.2)[None], known, 0.9)
    assert (drifted.key, drifted.founded) == ("first", False)
    assert drifted.similarity == drifted.others["first"] > 0.99
    other = assign_regime("b", GEOMETRY, beam(curvature=0.2)[None], known, 0.9)
    assert (other.key, other.founded) == ("b", True)
    assert other.others["first"] < 0.5
    known.append(KnownProbe("b", GEOMETRY, beam(curvature=0.2)[None]))
    again = assign_regime("b", GEOMETRY, beam(curvature=0.2)[None], known, 0.9)
    assert (again.key, again.founded) == ("b", True)
    assert assign_regime("c", GEOMETRY, beam(curvature=0.2)[None], known, 0.9).key == "b"


def test_another_geometry_is_another_regime():
    known = [KnownProbe("first", GEOMETRY, beam()[None])]
    other = GEOMETRY | {"pixel_size_m": 1.01e-8}
    match = assign_regime("a", other, beam()[None], known, 0.9)
    assert (match.key, match.others) == ("a", {})
    assert same_geometry(GEOMETRY, GEOMETRY | {"pixel_size_m": 1.0005e-8})
    assert not same_geometry(GEOMETRY, GEOMETRY | {"pixel_size_m": None})
    assert same_geometry({"image_shape": (8, 8), "pixel_size_m": None}, {"image_shape": [8, 8], "pixel_size_m": None})


def test_bad_probes_and_thresholds_are_refused():
    with pytest.raises(InputError, match="dark"):
        probe_similarity(np.zeros((8, 8)), np.ones((8, 8)))
    with pytest.raises(InputError, match="window"):
        probe_similarity(np.ones((8, 8)), np.ones((4, 4)))
    with pytest.raises(InputError, match="threshold"):
        assign_regime("a", GEOMETRY, beam(), [], 0.0)
