"""Validated options of the reconstruction engines: one documented field a line."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ptycho_bluesky.config import ReconstructSettings
from ptycho_bluesky.errors import InputError

__all__ = ["EngineOptions", "EpieOptions"]


class EngineOptions(BaseModel):
    """What every engine understands."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    engine: ClassVar[str] = ""

    iterations: int = Field(default=60, ge=1, description="Passes over all frames.")
    batch_size: int = Field(default=16, ge=1, description="Frames of one simultaneous update.")
    probe_modes: int = Field(default=1, ge=1, le=20, description="Mutually incoherent modes of the illumination.")
    update_probe: bool = Field(default=True, description="False keeps the starting probe.")
    probe_start: int = Field(default=1, ge=0, description="Passes before the probe is first updated.")
    holdout_fraction: float = Field(
        default=0.05,
        ge=0.0,
        le=0.5,
        description="Part of the frames, inside the scan, that is left out for validation.",
    )
    normalise_i0: bool = Field(default=True, description="Divide the counts by the monitor where every frame has one.")
    dtype: Literal["complex64", "complex128"] = Field(default="complex64", description="Precision of the waves.")
    device: str = Field(default="cpu", description="Device of torch: cpu, cuda, cuda:1, or auto.")
    threads: int = Field(
        default=1,
        ge=0,
        description="CPU threads while it runs; 0 leaves torch's choice. More than one only on idle cores.",
    )
    seed: int = Field(default=0, ge=0, description="Of the frames' order and of what is left out.")

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Build the options, with an `InputError` that names each bad key.

        Raises
        ------
        InputError
            A key is unknown or its value out of range.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            where = "; ".join(f"{'.'.join(map(str, e['loc']))} = {e['input']!r}: {e['msg']}" for e in error.errors())
            raise InputError(f"options of the reconstruction: {where}", "", "correct the named option") from error

    @classmethod
    def from_settings(cls, settings: ReconstructSettings, **values: Any) -> Self:
        """Build the options from the settings, ``values`` winning; see `of` for the errors."""
        common = {name: getattr(settings, name) for name in ("iterations", "batch_size", "probe_modes", "seed")}
        return cls.of(**{**common, **values})


class EpieOptions(EngineOptions):
    """Options of ePIE (Maiden & Rodenburg, Ultramicroscopy 109, 1256, 2009) in mini-batches."""

    engine: ClassVar[str] = "epie"

    alpha_object: float = Field(default=1.0, gt=0.0, le=2.0, description="Step of the object.")
    alpha_probe: float = Field(default=1.0, gt=0.0, le=2.0, description="Step of the probe.")
    settle_fraction: float = Field(
        default=0.3,
        ge=0.0,
        le=1.0,
        description="Last part of the passes, over which both steps shrink: averages noise.",
    )
    settle_to: float = Field(default=0.1, gt=0.0, le=1.0, description="Factor of the steps in the last pass.")
