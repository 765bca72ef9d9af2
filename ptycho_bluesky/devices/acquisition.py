"""What a detector is prepared for."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Acquisition"]


@dataclass(frozen=True)
class Acquisition:
    """What a detector is prepared for.

    Attributes
    ----------
    num_frames : int
        Frames of the whole scan.
    exposure_s, period_s : float
    external : bool
        Triggered by the trajectory controller (fly) or frame by frame by the plan (step).
    """

    num_frames: int
    exposure_s: float
    period_s: float
    external: bool
