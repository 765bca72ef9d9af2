"""Recipes: what is optimised, how fast, and which weights are kept.

``default`` is this package's own; ``published`` is the one released with the streaming-ptychography paper (Babu et
al., Nat. Commun. 14, 7059, 2023): raw counts in, L1 on the whole patch, Adam, cyclic learning rate (triangular2, 1e-4
to 5e-4, half cycle 6 epochs), batch 64, 50 epochs over the cumulative corpus, the best validation's weights kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.models.reader import Preprocessing
from ptycho_bluesky.training.corpus import TrainingArrays
from ptycho_bluesky.training.evaluate import LIT_FRACTION
from ptycho_bluesky.training.options import TrainOptions

__all__ = ["Plan", "learning_rate", "make_plan", "start_preprocessing"]

WARM_UP_STEPS = 100
"""Steps over which the learning rate rises, while Adam's second moments settle."""
RATE_FLOOR = 0.1
"""Part of the peak under which the learning rate does not fall."""
ADAM_BETAS = (0.9, 0.95)
"""A short memory of squared gradients: in the first thousands of steps, while the network leaves the constant answer,
they change by orders of magnitude."""
PUBLISHED_BATCH = 64
PUBLISHED_RATES = (1e-4, 5e-4)
PUBLISHED_HALF_CYCLE_EPOCHS = 6


@dataclass(frozen=True)
class Plan:
    """A recipe worked out for one corpus.

    Attributes
    ----------
    num_steps : int
        Optimiser steps.
    batch_size : int
    steps_per_epoch : int
    initialisation : {"he", "torch"}
        Of a network without a parent.
    keep_best : bool
        Keep the weights of the epoch with the lowest validation loss instead of the last ones.
    loss_weight : ndarray of float32, shape (h, w)
        Weight of a pixel in the L1 loss; its mean is 1.
    recipe : {"default", "published"}
    peak_rate : float
    average_steps : float
        Horizon of the running mean of the weights that is served; 0 serves the last weights.
    past_frames : int
        Frame-updates of all ancestors.
    decay_frames : float
        Frame-updates, ancestors' included, after which the learning rate has fallen to 1/√2 of the peak.
    betas : tuple of float
        Of Adam.
    clip_norm : float
        Norm to which a larger gradient is shortened.
    """

    num_steps: int
    batch_size: int
    steps_per_epoch: int
    initialisation: Literal["he", "torch"]
    keep_best: bool
    loss_weight: NDArray[np.float32]
    recipe: str
    peak_rate: float
    average_steps: float = 0.0
    past_frames: int = 0
    decay_frames: float = math.inf
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float = math.inf


def make_plan(
    options: TrainOptions, num_frames: int, num_new_runs: int, weight: NDArray[np.float32], past_frames: int = 0
) -> Plan:
    """Work a recipe out.

    Parameters
    ----------
    options : TrainOptions
    num_frames : int
        Frames of the corpus.
    num_new_runs : int
        Runs that the parent has not seen; at least one scan's budget is spent.
    weight : ndarray of float32, shape (h, w)
        Relative illumination of a patch.
    past_frames : int
        Frame-updates of all ancestors.
    """
    if options.recipe == "published":
        steps_per_epoch = max(1, num_frames // PUBLISHED_BATCH)
        return Plan(
            num_steps=options.epochs * steps_per_epoch,
            batch_size=PUBLISHED_BATCH,
            steps_per_epoch=steps_per_epoch,
            initialisation="torch",
            keep_best=True,
            loss_weight=np.ones_like(weight),
            recipe="published",
            peak_rate=PUBLISHED_RATES[1],
        )
    lit = (weight >= LIT_FRACTION).astype(np.float32)
    return Plan(
        num_steps=max(1, round(options.frames_per_scan * max(1, num_new_runs) / options.batch_size)),
        batch_size=options.batch_size,
        steps_per_epoch=max(1, num_frames // options.batch_size),
        initialisation="he",
        keep_best=False,
        loss_weight=lit / lit.mean(),
        recipe="default",
        peak_rate=options.learning_rate,
        average_steps=options.average_frames / options.batch_size,
        past_frames=past_frames,
        decay_frames=options.decay_frames,
        betas=ADAM_BETAS,
        clip_norm=options.clip_norm or math.inf,
    )


def learning_rate(plan: Plan, step: int) -> float:
    """Learning rate of a step (from 0).

    Default: a short rise, then a fall with the square root of all frame-updates of the lineage, which needs no
    knowledge of when the learning ends, down to `RATE_FLOOR`, so that it never stops. What is served is the running
    mean of the weights. Published: triangular2 (Smith, WACV 2017), the amplitude halved after every cycle.
    """
    if plan.recipe == "published":
        half = PUBLISHED_HALF_CYCLE_EPOCHS * plan.steps_per_epoch
        cycle, place = divmod(step, 2 * half)
        low, high = PUBLISHED_RATES
        return low + (high - low) * (1 - abs(place / half - 1)) / 2**cycle
    frames = plan.past_frames + step * plan.batch_size
    fall = max(RATE_FLOOR, 1.0 / math.sqrt(1.0 + frames / plan.decay_frames))
    return plan.peak_rate * fall * min(1.0, (step + 1) / WARM_UP_STEPS)


def start_preprocessing(recipe: str, arrays: TrainingArrays) -> Preprocessing:
    """Preprocessing of a network without a parent: √counts less their mean, of root mean square 1; or raw counts."""
    if recipe == "published":
        return Preprocessing(sqrt=False, scale=1.0)
    root = np.sqrt(np.maximum(arrays.image, 0).astype(np.float32))
    offset = root.mean(axis=0)
    spread = float(np.sqrt(np.mean((root - offset) ** 2, dtype=np.float64)))
    return Preprocessing(sqrt=True, scale=1.0 / max(spread, 1e-6), offset=offset)
