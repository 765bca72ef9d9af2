"""What ``bench engines`` measures: models in several precisions, and what each reads of held-out frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.geometry import ObjectFrame
from ptycho_bluesky.inference import Engine, load_engine
from ptycho_bluesky.inference.cache import EngineCache
from ptycho_bluesky.inference.quantise import MAX_SSIM_LOSS, QuantisedModel, Score, label_score, quantise_model
from ptycho_bluesky.metrics import mosaic_ssim
from ptycho_bluesky.records import LabelSet
from ptycho_bluesky.stitching import MosaicBuilder, weight_from_manifest

__all__ = ["HeldOut", "from_frames", "from_labels", "search_int8"]

NUM_CALIBRATION = 120
"""Frames from which the ranges of integer activations are taken; they are not among the scored ones."""
CHUNK_FRAMES = 32


@dataclass(frozen=True)
class HeldOut:
    """Frames that no model here was trained on.

    Attributes
    ----------
    scored : ndarray, shape (n, H, W)
        Counts.
    calibration : ndarray, shape (m, H, W)
        Others, for the ranges of integer activations.
    make_score : callable
        From the model in single precision to a score: the structural similarity of the stitched image.
    reference : str
        What the stitched image is compared with.
    """

    scored: NDArray
    calibration: NDArray
    make_score: Callable[[Engine], Score]
    reference: str


def from_labels(labels: LabelSet, num_frames: int) -> HeldOut:
    """Score against the labels of a scan; its last frames calibrate."""
    step = max(1, (len(labels) - num_frames) // NUM_CALIBRATION)
    score = label_score(labels, num_frames)
    return HeldOut(labels.image[:num_frames], labels.image[num_frames::step], lambda _: score, "the true object")


def from_frames(image: NDArray, position_m: NDArray[np.float64], pixel_size_m: float, num_frames: int) -> HeldOut:
    """Score against what the model itself stitches in single precision: a scan whose object is not known.

    Parameters
    ----------
    image : ndarray, shape (n, H, W)
        Counts.
    position_m : ndarray of float64, shape (n, 2)
        (y, x).
    pixel_size_m : float
        In the unit of the positions.
    num_frames : int
        The first ones are scored, the others calibrate.
    """
    scored = image[:num_frames]
    rest = image[num_frames:] if len(image) > num_frames else image

    def stitch(engine: Engine) -> MosaicBuilder:
        weight = weight_from_manifest(engine.manifest, engine.patch_shape)
        builder = MosaicBuilder(
            ObjectFrame.around(position_m[:num_frames], engine.patch_shape, pixel_size_m),
            engine.patch_shape,
            weight,
        )
        for first in range(0, len(scored), CHUNK_FRAMES):
            rows = slice(first, first + CHUNK_FRAMES)
            builder.add(engine.infer(scored[rows]), position_m[:num_frames][rows])
        return builder

    def make_score(reference: Engine) -> Score:
        wanted = stitch(reference).snapshot()

        def score(engine: Engine) -> float:
            found = stitch(engine).snapshot()
            return mosaic_ssim(found.phase_rad, wanted.phase_rad, found.coverage, found.weight, max_shift_px=0).ssim

        return score

    step = max(1, len(rest) // NUM_CALIBRATION)
    return HeldOut(scored, rest[::step], make_score, "the same model in single precision")


def search_int8(
    content: bytes,
    held_out: HeldOut,
    *,
    floor: float | None = None,
    num_threads: int,
    cache: EngineCache,
    progress: Callable[[str], None],
) -> tuple[QuantisedModel, float]:
    """Search the integer form of a model.

    Parameters
    ----------
    content : bytes
        Model file of ours.
    held_out : HeldOut
    floor : float, optional
        Similarity under which the form should not fall, where the model itself lies above: the limit on its loss is
        then the smaller one.
    num_threads : int
    cache : EngineCache
        Where the outcome is remembered.
    progress : callable
        Told what is done.

    Returns
    -------
    QuantisedModel
    float
        Similarity of the model in single precision.
    """
    reference = load_engine(content, "onnxruntime", num_threads=num_threads)
    score = held_out.make_score(reference)
    best = score(reference)
    limit = MAX_SSIM_LOSS if floor is None or best <= floor else min(MAX_SSIM_LOSS, best - floor)
    found = quantise_model(
        content,
        held_out.calibration,
        score,
        max_ssim_loss=limit,
        num_threads=num_threads,
        cache=cache,
        progress=progress,
    )
    return found, best
