"""What a training starts from: a new network or a parent, and whether that and the validation fit the corpus."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.models import build, network_options
from ptycho_bluesky.models.export import from_onnx
from ptycho_bluesky.models.ptychonn import PtychoNN, PtychoNN2
from ptycho_bluesky.models.reader import PhaseReader
from ptycho_bluesky.records import LabelSet
from ptycho_bluesky.training.corpus import TrainingArrays, light_factor
from ptycho_bluesky.training.options import TrainOptions
from ptycho_bluesky.training.recipes import start_preprocessing
from ptycho_bluesky.training.registry import content_id
from ptycho_bluesky.trust.physics import read_physics

__all__ = ["Start", "refuse_other_geometry", "start_from"]


@dataclass(frozen=True)
class Start:
    """Where a training starts from.

    Attributes
    ----------
    reader : PhaseReader
    parent_id : str
        "" without a parent.
    frame_updates : int
        Of the lineage so far.
    """

    reader: PhaseReader
    parent_id: str
    frame_updates: int


def start_from(options: TrainOptions, arrays: TrainingArrays, parent: bytes | None) -> Start:
    """A new network, or the parent's as it is fed frames of this corpus.

    Parameters
    ----------
    options : TrainOptions
    arrays : TrainingArrays
        That will be trained on.
    parent : bytes, optional
        Model file.

    Raises
    ------
    InputError
        The parent is of another geometry, architecture or recipe, or options exclude each other.
    """
    inputs = "counts" if options.recipe == "published" else options.inputs
    preprocessing = start_preprocessing(inputs, arrays.image)
    if parent is None:
        torch.manual_seed(options.seed)
        mean_frame = arrays.image.mean(axis=0, dtype=np.float64)
        network = build(options.architecture, **network_options(options.architecture, mean_frame))
        published = {"ptychonn2": PtychoNN2, "ptychonn": PtychoNN}.get(options.architecture)
        if published and (options.recipe == "published" or options.initialisation == "torch"):
            network = published("torch")
        elif options.initialisation == "torch":
            raise InputError(
                f"initialisation 'torch' of {options.architecture}", "a lean network begins with he", "leave it out"
            )
        return Start(PhaseReader(network, preprocessing), "", 0)
    reader, manifest = from_onnx(parent)
    if reader.network.architecture != options.architecture:
        raise InputError(
            f"parent model of architecture {reader.network.architecture}",
            f"{options.architecture} is asked for",
            "start from a model of this architecture, or from none",
        )
    if tuple(manifest["image_shape"]) != arrays.image.shape[1:]:
        raise InputError(
            f"parent model of frames {tuple(manifest['image_shape'])}",
            f"the corpus has frames {arrays.image.shape[1:]}",
            "start from a model of this geometry, or from none",
        )
    stated = manifest.get("pixel_size_m")
    if stated and not np.isnan(arrays.pixel_size_m) and not _same_pixel(stated, arrays.pixel_size_m):
        raise InputError(
            f"parent model of {stated:.4g} m a pixel",
            f"the corpus is at {arrays.pixel_size_m:.4g} m",
            "start from a model of this geometry, or from none",
        )
    if reader.preprocessing.sqrt != preprocessing.sqrt:
        raise InputError(
            f"parent model with preprocessing {reader.preprocessing.as_dict()}",
            f"the options feed {'the root of the counts' if preprocessing.sqrt else 'raw counts'}",
            "continue with the recipe that the parent was trained with",
        )
    return Start(_at_light_of(arrays, reader, manifest), content_id(parent), int(manifest.get("frame_updates", 0)))


def _at_light_of(arrays: TrainingArrays, reader: PhaseReader, manifest: Mapping[str, Any]) -> PhaseReader:
    """The parent for frames at another light than its own, so that its network is fed what it was trained with.

    The corpus is brought to the light of its newest run; the parent's mean frame and scale are those of its own.
    """
    physics, _ = read_physics(manifest)
    factor = 1.0 if physics is None else light_factor(physics.light.as_dict(), arrays.light)
    return reader if factor == 1.0 else PhaseReader(reader.network, reader.preprocessing.at_light(factor))


def refuse_other_geometry(validation: LabelSet, arrays: TrainingArrays) -> None:
    """Refuse labels for validation that a network of this corpus does not read, before it is trained.

    Raises
    ------
    InputError
        Frames, patches or pixel differ.
    """
    shapes = validation.image.shape[1:], validation.phase_rad.shape[1:]
    ours = arrays.image.shape[1:], arrays.phase_rad.shape[1:]
    if shapes != ours:
        raise InputError(
            f"labels of {validation.run_uid} for validation with frames {shapes[0]} and patches {shapes[1]}",
            f"those that are trained on have {ours[0]} and {ours[1]}",
            "validate on a run of this geometry",
        )
    if not _same_pixel(validation.pixel_size_m, arrays.pixel_size_m):
        raise InputError(
            f"labels of {validation.run_uid} for validation at {validation.pixel_size_m:.4g} m a pixel",
            f"those that are trained on are at {arrays.pixel_size_m:.4g} m",
            "validate on a run of this geometry",
        )


def _same_pixel(one_m: float, other_m: float) -> bool:
    # without an absolute tolerance: NumPy's 1e-8 is as large as a pixel in metres
    return bool(np.isclose(one_m, other_m, rtol=1e-3, atol=0.0, equal_nan=True))
