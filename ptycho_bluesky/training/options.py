"""Options of the trainer, validated."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ptycho_bluesky.config import TrainSettings
from ptycho_bluesky.errors import InputError

__all__ = ["TrainOptions"]


class TrainOptions(BaseModel):
    """How a network is trained.

    The budget is counted in frame-updates (one frame in one optimiser step): it means the same on every machine.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: str = "ptychonn2"
    recipe: Literal["default", "published"] = "default"
    frames_per_scan: int = Field(default=10_000, ge=1, description="Frame-updates spent for each new scan.")
    batch_size: int = Field(
        default=8, ge=1, description="Frames in an optimiser step; small batches learn most a frame."
    )
    learning_rate: float = Field(default=7e-4, gt=0, description="Of the default recipe, where its fall begins.")
    decay_frames: float = Field(
        default=40_000, gt=0, description="Frame-updates of the lineage after which the rate has fallen to 1/√2."
    )
    clip_norm: float = Field(
        default=0.0, ge=0, description="Norm to which a larger gradient is shortened; 0 leaves it."
    )
    average_frames: int = Field(
        default=2400, ge=0, description="Frame-updates over which the served weights are averaged; 0 serves the last."
    )
    seed: int = 0
    num_threads: int = Field(default=1, ge=1)
    new_fraction: float = Field(
        default=0.0, ge=0, le=1, description="Part of each batch that is drawn from the new scans alone."
    )
    augment: Literal["auto", "on", "off"] = Field(
        default="auto", description="Turn and mirror frame and label together; auto: as far as the probe is symmetric."
    )
    symmetry_tolerance: float = Field(
        default=0.02, ge=0, le=1, description="Asymmetry of the probe up to which a turned frame is a true frame."
    )
    precision: Literal["auto", "float32", "bfloat16", "float64"] = Field(
        default="auto", description="auto: bfloat16 where the processor multiplies it natively."
    )
    initialisation: Literal["he", "torch"] = Field(
        default="he", description="Of a published network without a parent: He's, or PyTorch's default."
    )
    inputs: Literal["centred_root", "root", "counts"] = Field(
        default="centred_root", description="What the network sees: √counts less their mean, √counts, or the counts."
    )
    loss_area: Literal["lit", "whole"] = Field(
        default="lit", description="Pixels of a patch that the loss counts: those that the beam lights, or all."
    )
    schedule: Literal["root", "constant", "cosine", "triangular2"] = Field(
        default="root", description="How the learning rate falls after its rise (docs: training)."
    )
    thin_to: float = Field(
        default=1.0, gt=0, le=1, description="Frames keep a share of their photons between this and 1; 1 keeps all."
    )
    compile: bool = Field(default=False, description="Compile the network (torch.compile; takes a minute first).")
    rehearsal_frames: int = Field(
        default=0, ge=0, description="Frames of old runs that are trained on beside the new ones; 0: all of them."
    )
    buffer_frames: int = Field(
        default=0,
        ge=0,
        description="Frames that a rank holds in memory of a corpus that is read from disk; 0: all are in memory.",
    )
    buffer_policy: Literal["pin", "clairvoyant"] = Field(
        default="pin",
        description="Frames of a corpus on disk that stay in memory: the first, or those needed soonest.",
    )
    order_epochs: bool = Field(
        default=False, description="Order the shuffles of a corpus on disk so that one ends as the next begins."
    )
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1 …")
    epochs: int = Field(default=50, ge=1, description="Passes over the corpus, of the published recipe.")
    checkpoint_period_s: float = Field(default=15.0, gt=0)

    @classmethod
    def create(cls, **values: Any) -> TrainOptions:
        """Build from values, with errors that name the key.

        Raises
        ------
        InputError
            A key is unknown or a value out of range.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            where = "; ".join(f"{'.'.join(map(str, e['loc']))} = {e['input']!r}: {e['msg']}" for e in error.errors())
            raise InputError(f"training options: {where}", "", "correct the value") from error

    @classmethod
    def from_settings(cls, settings: TrainSettings, **changes: Any) -> TrainOptions:
        """Options from the settings' section ``train``, with changes."""
        return cls.create(**{**settings.model_dump(), **changes})
