"""How far what a network reads agrees with the physics: light, residual, and whether a frame is of a known kind."""

from ptycho_bluesky.trust.flags import Flag, Limits, flag_frames
from ptycho_bluesky.trust.light import Light, LightScale
from ptycho_bluesky.trust.physics import Physics, read_physics
from ptycho_bluesky.trust.residual import FrameFit, ResidualMeter

__all__ = [
    "Flag",
    "FrameFit",
    "Light",
    "LightScale",
    "Limits",
    "Physics",
    "ResidualMeter",
    "flag_frames",
    "read_physics",
]
