"""Scan plans for ptychography: spirals, flown or stepped."""

from ptycho_bluesky.plans.fly import fly_ptycho, fly_spiral_ptycho
from ptycho_bluesky.plans.points import ScanPoints, listed_points, spiral_points
from ptycho_bluesky.plans.step import spiral_ptycho, step_ptycho

__all__ = [
    "ScanPoints",
    "fly_ptycho",
    "fly_spiral_ptycho",
    "listed_points",
    "spiral_points",
    "spiral_ptycho",
    "step_ptycho",
]
