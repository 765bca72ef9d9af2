"""Iterative reconstruction: finished scans to object and probe, in torch, batched, at true sub-pixel positions."""

from ptycho_bluesky.reconstruction.engine import frame_misfit, reconstruct
from ptycho_bluesky.reconstruction.growing import GrowingReconstruction
from ptycho_bluesky.reconstruction.options import (
    CgOptions,
    EngineOptions,
    EpieOptions,
    PieOptions,
    PtychiOptions,
    RpieOptions,
    engine_options,
)
from ptycho_bluesky.reconstruction.passes import EngineState
from ptycho_bluesky.reconstruction.side_by_side import reconstruct_side_by_side
from ptycho_bluesky.reconstruction.starting_probe import ProbeStart, probe_from_mean_frame, starting_probe

__all__ = [
    "CgOptions",
    "EngineOptions",
    "EngineState",
    "EpieOptions",
    "GrowingReconstruction",
    "PieOptions",
    "ProbeStart",
    "PtychiOptions",
    "RpieOptions",
    "engine_options",
    "frame_misfit",
    "probe_from_mean_frame",
    "reconstruct",
    "reconstruct_side_by_side",
    "starting_probe",
]
