"""Options of the simulated beamline, validated."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["BeamlineOptions", "Role"]

Role = Literal["beamline", "stage", "detector"]
"""What one process serves: everything, the sample stage alone, or all but the stage."""


class BeamlineOptions(BaseModel):
    """What the simulated beamline is.

    Lengths are in metres unless the name says otherwise. With a recording, what the recording states wins over the
    optics and the sample given here.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Role = "beamline"
    prefix: str = Field(default="PTY:", pattern=r"^[A-Za-z0-9_:.-]+:$", description="Of every process variable.")

    size_px: int = Field(default=64, ge=16, le=2048, multiple_of=16, description="Rows and columns of a frame.")
    energy_eV: float = Field(default=10e3, ge=1e3, le=1e5)
    distance_m: float = Field(default=0.9, gt=0, description="Sample to detector.")
    detector_pixel_m: float = Field(default=75e-6, gt=0)
    orientation: str = Field(default="identity", description="D4 operation that takes a frame to the canonical one.")

    zone_plate_diameter_m: float = Field(default=160e-6, gt=0)
    outer_zone_m: float = Field(default=30e-9, gt=0)
    stop_diameter_m: float = Field(default=60e-6, ge=0)
    defocus_m: float = Field(default=0.19e-3)

    flux_photons_per_s: float = Field(default=1.3e8, gt=0, description="On the sample, without attenuation.")
    position_jitter_m: float = Field(default=0.0, ge=0)
    beam_drift: float = Field(default=0.0, le=1, description="Fraction of the flux lost during a scan.")
    saturation_counts: int = Field(default=65535, ge=1)
    dtype: Literal["uint8", "uint16", "uint32"] = "uint16"
    hot_pixels: int = Field(default=0, ge=0)
    dead_pixels: int = Field(default=0, ge=0)
    dark_counts: float = Field(default=0.0, ge=0)

    sample: str = Field(
        default="demo",
        description="demo, star, letters, pattern (a cheap ring), or a JSON file of a sample map or experiment.",
    )
    areas: int = Field(default=12, ge=0, le=100, description="Areas of random shapes of the sample 'demo'.")
    recorded: Path | None = Field(default=None, description="Recorded scan to play instead of simulating.")
    object_pixel_m: float | None = Field(
        default=None, gt=0, description="Pixel at the sample of a recording that does not state its geometry."
    )
    recorded_energy_eV: float | None = Field(default=None, gt=0)
    recorded_distance_m: float | None = Field(default=None, gt=0)
    recorded_detector_pixel_m: float | None = Field(default=None, gt=0)
    seed: int = Field(default=0, ge=0, description="Of sample, noise and faults.")

    stage_limit_um: float = Field(default=5000.0, gt=0, description="Soft limits of both axes are ± this.")
    stage_velocity_um_s: float = Field(default=10_000.0, gt=0)
    max_frame_bytes: int = Field(default=4 * 1024**3, ge=1, description="Memory that rendered frames may take.")
    hdf_queue_frames: int = Field(default=8192, ge=1, description="Frames that wait for the file at most.")

    @model_validator(mode="after")
    def _sources_exist(self) -> BeamlineOptions:
        if self.recorded is not None and not self.recorded.is_file():
            raise ValueError(f"recorded: there is no file {self.recorded}")
        if self.sample not in ("demo", "star", "letters", "pattern") and not Path(self.sample).is_file():
            raise ValueError(f"sample: {self.sample!r} is neither demo, star, letters, pattern nor a file")
        return self
