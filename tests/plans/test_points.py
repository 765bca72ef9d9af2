"""Points of a scan from what a user prefers to give."""

from __future__ import annotations

import numpy as np
import pytest

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.plans.points import listed_points, spiral_points


def test_number_of_points_and_step():
    points = spiral_points(num_points=963, step_m=50e-9, centre_m=(1e-6, -2e-6), beam_m=800e-9)
    assert points.position_m.shape == (963, 2)
    np.testing.assert_allclose(points.position_m[0], (1e-6, -2e-6), atol=1e-12)
    assert points.metadata["step_m"] == 50e-9
    assert points.metadata["overlap"] == pytest.approx(1 - np.sqrt(3) * 50 / 800)
    assert points.metadata["centre_m"] == [1e-6, -2e-6]


def test_overlap_gives_the_step():
    points = spiral_points(num_points=10, overlap=0.9, beam_m=800e-9)
    assert points.metadata["step_m"] == pytest.approx(0.1 * 800e-9 / np.sqrt(3))
    assert points.metadata["overlap"] == pytest.approx(0.9)


def test_disc_is_filled_and_not_left():
    points = spiral_points(extent_m=4e-6, step_m=100e-9)
    radius = np.hypot(*points.position_m.T)
    assert radius.max() <= 2e-6
    assert radius.max() > 1.9e-6
    assert len(points) == pytest.approx(np.pi * 2e-6**2 / 100e-9**2, rel=0.05)
    assert points.metadata["num_points"] == len(points)


def test_rectangle_is_filled_and_not_left():
    points = spiral_points(extent_m=(2e-6, 4e-6), step_m=100e-9, centre_m=(5e-6, 0.0))
    offset = points.position_m - (5e-6, 0.0)
    assert (np.abs(offset) <= (1e-6, 2e-6)).all()
    assert len(points) == pytest.approx(2 * 4 / 0.01, rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_points": 5}, "neither step_m nor overlap"),
        ({"num_points": 5, "step_m": 1e-7, "overlap": 0.5}, "both step_m and overlap"),
        ({"step_m": 1e-7}, "neither num_points nor extent_m"),
        ({"step_m": 1e-7, "num_points": 5, "extent_m": 1e-6}, "both num_points and extent_m"),
        ({"num_points": 5, "overlap": 0.5}, "beam"),
        ({"num_points": 5, "overlap": 1.0, "beam_m": 1e-6}, "overlap"),
        ({"num_points": 0, "step_m": 1e-7}, "num_points = 0"),
        ({"num_points": 2.5, "step_m": 1e-7}, "num_points = 2.5"),
        ({"num_points": 5, "step_m": -1e-7}, "step_m"),
        ({"num_points": 5, "step_m": float("nan")}, "step_m"),
        ({"extent_m": 0.0, "step_m": 1e-7}, "extent_m"),
        ({"extent_m": 1.0, "step_m": 1e-9}, "points"),
        ({"num_points": 5, "step_m": 1e-7, "beam_m": 0.0}, "beam_m"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        spiral_points(**arguments)


def test_listed_points_keep_their_order():
    positions = np.array([[0, 0], [0, 2e-7], [0, 1e-7]])
    points = listed_points(positions, pattern="recorded")
    np.testing.assert_array_equal(points.position_m, positions)
    assert points.metadata["pattern"] == "recorded"
    assert points.metadata["step_m"] == pytest.approx(1.5e-7)


@pytest.mark.parametrize("positions", [np.zeros(3), np.zeros((3, 3)), np.zeros((0, 2)), [[0.0, float("nan")]]])
def test_listed_points_of_the_wrong_kind_are_refused(positions):
    with pytest.raises(InputError):
        listed_points(positions)
