"""Iterative reconstruction: finished scans to object and probe, in torch, batched, at true sub-pixel positions."""

from ptycho_bluesky.reconstruction.engine import frame_misfit, reconstruct
from ptycho_bluesky.reconstruction.options import EngineOptions, EpieOptions
from ptycho_bluesky.reconstruction.starting_probe import ProbeStart, probe_from_mean_frame, starting_probe

__all__ = [
    "EngineOptions",
    "EpieOptions",
    "ProbeStart",
    "frame_misfit",
    "probe_from_mean_frame",
    "reconstruct",
    "starting_probe",
]
