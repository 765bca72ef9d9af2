"""Options of the demo, validated."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator

__all__ = ["DemoOptions"]


class DemoOptions(BaseModel):
    """What the demo does.

    The defaults spend about half of twelve minutes on two cores on training.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    out: Path
    scans: int = Field(default=7, ge=1, le=60, description="Scans of random shapes before the scan of letters.")
    size: int = Field(default=64, description="Rows and columns of a frame.")
    seed: int = Field(default=0, ge=0, description="Seed of sample, noise, weights and batches.")
    keep: bool = Field(default=False, description="Leave the Tiled server running until Ctrl-C.")
    headless: bool = Field(default=False, description="Open no window.")
    recorded: Path | None = Field(default=None, description="Recorded scan to play instead of simulating.")
    disturb: bool = Field(default=False, description="Kill and restart edge, worker, writer and Tiled once each.")
    num_points: int = Field(default=963, ge=16, description="Points of a scan.")
    step_m: float = Field(default=100e-9, gt=0, description="Step of the spiral.")
    period_s: float = Field(default=0.005, gt=0, description="Time between frames.")
    frames_per_scan: int | None = Field(default=None, ge=1, description="Frame-updates spent on each new scan.")

    @field_validator("size")
    @classmethod
    def _size_suits_the_network(cls, value: int) -> int:
        if value % 16 or not 64 <= value <= 512:
            raise ValueError("the demo takes frames of 64 to 512 pixels in multiples of 16")
        return value
