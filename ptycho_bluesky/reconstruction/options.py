"""Validated options of the reconstruction engines: one documented field a line."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ptycho_bluesky.config import ReconstructSettings
from ptycho_bluesky.errors import InputError

__all__ = [
    "ENGINES",
    "CgOptions",
    "EngineOptions",
    "EpieOptions",
    "PieOptions",
    "PtychiOptions",
    "RpieOptions",
    "engine_options",
]


class EngineOptions(BaseModel):
    """What every engine understands."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    engine: ClassVar[str] = ""

    iterations: int = Field(default=60, ge=1, description="Passes over all frames.")
    batch_size: int = Field(default=16, ge=1, description="Frames of one simultaneous update; 1: strictly one by one.")
    probe_modes: int = Field(default=1, ge=1, le=20, description="Mutually incoherent modes of the illumination.")
    update_probe: bool = Field(default=True, description="False keeps the starting probe.")
    check_probe: bool = Field(
        default=True,
        description="Try a stated starting probe beside ones made from the mean frame; the one that clearly explains "
        "the frames better is used. Nothing is tried where the probe is not updated.",
    )
    probe_start: int = Field(default=1, ge=0, description="Passes before the probe is first updated.")
    correct_positions: bool = Field(default=False, description="Refine the positions of the frames.")
    position_start: int = Field(default=10, ge=0, description="Passes before the positions are first refined.")
    max_correction_px: float = Field(
        default=6.0, gt=0.0, le=7.0, description="Largest distance of a refined position from the measured one."
    )
    stop_error: float = Field(
        default=0.0, ge=0.0, description="End when the diffraction error of a pass is at or below this; 0: never."
    )
    patience: int = Field(
        default=0,
        ge=0,
        description="End when the error of the held-out frames has not fallen for so many passes, and return the "
        "best; 0: never.",
    )
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


class PieOptions(EngineOptions):
    """What the engines of the ePIE family share."""

    alpha_object: float = Field(default=1.0, gt=0.0, le=2.0, description="Step of the object.")
    alpha_probe: float = Field(default=1.0, gt=0.0, le=2.0, description="Step of the probe.")
    settle_fraction: float = Field(
        default=0.3,
        ge=0.0,
        le=1.0,
        description="Last part of the passes, over which both steps shrink: averages noise.",
    )
    settle_to: float = Field(default=0.1, gt=0.0, le=1.0, description="Factor of the steps in the last pass.")


class EpieOptions(PieOptions):
    """Options of ePIE (Maiden & Rodenburg, Ultramicroscopy 109, 1256, 2009) in mini-batches."""

    engine: ClassVar[str] = "epie"


class RpieOptions(PieOptions):
    """Options of rPIE with momentum (Maiden, Johnson & Li, Optica 4, 736, 2017) in mini-batches."""

    engine: ClassVar[str] = "rpie"

    regularise_object: float = Field(
        default=0.1, gt=0.0, le=1.0, description="Weight of the light's peak in the object's divisor; 1: as ePIE."
    )
    regularise_probe: float = Field(
        default=1.0, gt=0.0, le=1.0, description="Weight of the object's peak in the probe's divisor; 1: as ePIE."
    )
    momentum: float = Field(
        default=0.0, ge=0.0, lt=1.0, description="Part of the velocity that is kept from one push to the next; 0: none."
    )
    momentum_frames: int = Field(default=100, ge=1, description="Frames between two pushes by the velocity.")


class CgOptions(EngineOptions):
    """Options of the maximum-likelihood conjugate-gradient engine; every iteration sees all frames at once."""

    engine: ClassVar[str] = "cg"

    noise: Literal["gaussian", "poisson"] = Field(
        default="gaussian", description="Of the amplitudes (constant variance), or of the counts."
    )
    poisson_floor: float = Field(
        default=1e-2, gt=0.0, description="Counts added to the model's in the Poisson likelihood: keeps it finite."
    )
    gaussian_floor: float = Field(
        default=1e-4,
        gt=0.0,
        le=1.0,
        description="Added to the model's and the measured counts in the Gaussian likelihood, in units of the mean "
        "count of a pixel: keeps its gradient smooth where the model is dark.",
    )
    armijo: float = Field(default=1e-4, gt=0.0, lt=0.5, description="Part of the predicted decrease that is asked for.")


class PtychiOptions(EngineOptions):
    """Options of pty-chi's engines; what is not named here has pty-chi's default."""

    engine: ClassVar[str] = "ptychi"

    algorithm: Literal["lsqml", "epie", "rpie", "pie", "dm", "raar", "bh"] = Field(
        default="lsqml", description="pty-chi's engine."
    )
    alpha: float | None = Field(
        default=None, gt=0.0, le=1.0, description="pty-chi's alpha of object and probe in its PIE engines."
    )


ENGINES: dict[str, type[EngineOptions]] = {
    kind.engine: kind for kind in (EpieOptions, RpieOptions, CgOptions, PtychiOptions)
}
"""Options of each engine by its name."""


def engine_options(engine: str) -> type[EngineOptions]:
    """Options class of an engine by its name.

    Raises
    ------
    InputError
        There is no such engine.
    """
    if engine not in ENGINES:
        raise InputError(f"engine {engine!r}", f"it is one of {', '.join(ENGINES)}")
    return ENGINES[engine]
