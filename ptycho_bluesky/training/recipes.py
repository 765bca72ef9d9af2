"""Recipes: what is optimised, how fast, and which weights are kept.

``default`` is this package's own; ``published`` is the one released with the streaming-ptychography paper (Babu et
al., Nat. Commun. 14, 7059, 2023): raw counts in, L1 on the whole patch, Adam, cyclic learning rate (triangular2, 1e-4
to 5e-4, half cycle 6 epochs), batch 64, 50 epochs over the cumulative corpus, the best validation's weights kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.models.reader import Preprocessing
from ptycho_bluesky.training.evaluate import LIT_FRACTION
from ptycho_bluesky.training.options import TrainOptions

__all__ = ["Plan", "learning_rate", "make_plan", "start_preprocessing"]

Inputs = Literal["centred_root", "root", "counts"]

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
    inputs : {"centred_root", "root", "counts"}
        What a network without a parent sees.
    loss_weight : ndarray of float32, shape (h, w)
        Weight of a pixel in the L1 loss; its mean is 1.
    schedule : {"root", "constant", "cosine", "triangular2"}
        See `learning_rate`.
    published : bool
        Whether frames stay as they are (neither turned nor thinned) and are trained on in single precision.
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
    inputs: Inputs
    loss_weight: NDArray[np.float32]
    schedule: Literal["root", "constant", "cosine", "triangular2"]
    published: bool
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
            inputs="counts",
            loss_weight=np.ones_like(weight),
            schedule="triangular2",
            published=True,
            peak_rate=PUBLISHED_RATES[1],
        )
    lit = (weight >= LIT_FRACTION).astype(np.float32) if options.loss_area == "lit" else np.ones_like(weight)
    return Plan(
        num_steps=max(1, round(options.frames_per_scan * max(1, num_new_runs) / options.batch_size)),
        batch_size=options.batch_size,
        steps_per_epoch=max(1, num_frames // options.batch_size),
        initialisation=options.initialisation,
        keep_best=False,
        inputs=options.inputs,
        loss_weight=lit / lit.mean(),
        schedule=options.schedule,
        published=False,
        peak_rate=options.learning_rate,
        average_steps=options.average_frames / options.batch_size,
        past_frames=past_frames,
        decay_frames=options.decay_frames,
        betas=ADAM_BETAS,
        clip_norm=options.clip_norm or math.inf,
    )


def learning_rate(plan: Plan, step: int) -> float:
    """Learning rate of a step (from 0).

    All but ``triangular2`` begin with a short rise. ``root`` falls with the square root of all frame-updates of the
    lineage, which needs no knowledge of when the learning ends, down to `RATE_FLOOR`, so that it never stops; what is
    served is the running mean of the weights. ``constant`` stays. ``cosine`` falls to the floor at the end of this
    training (Loshchilov and Hutter, arXiv 1608.03983). ``triangular2`` is that of the published recipe: the amplitude
    is halved after every cycle (Smith, WACV 2017).
    """
    if plan.schedule == "triangular2":
        half = PUBLISHED_HALF_CYCLE_EPOCHS * plan.steps_per_epoch
        cycle, place = divmod(step, 2 * half)
        low, high = PUBLISHED_RATES
        return low + (high - low) * (1 - abs(place / half - 1)) / 2**cycle
    return plan.peak_rate * _fall(plan, step) * min(1.0, (step + 1) / WARM_UP_STEPS)


def _fall(plan: Plan, step: int) -> float:
    """Part of the peak after the rise."""
    if plan.schedule == "constant":
        return 1.0
    if plan.schedule == "cosine":
        return RATE_FLOOR + (1.0 - RATE_FLOOR) * 0.5 * (1.0 + math.cos(math.pi * step / plan.num_steps))
    frames = plan.past_frames + step * plan.batch_size
    return max(RATE_FLOOR, 1.0 / math.sqrt(1.0 + frames / plan.decay_frames))


def start_preprocessing(inputs: Inputs, image: NDArray[Any]) -> Preprocessing:
    """Preprocessing of a network without a parent, from frames (n, H, W) in counts.

    ``centred_root``: √counts less their mean, of root mean square 1; ``root``: √counts, likewise scaled; ``counts``:
    as they are.
    """
    if inputs == "counts":
        return Preprocessing(sqrt=False, scale=1.0)
    root = np.sqrt(np.maximum(image, 0).astype(np.float32))
    offset = root.mean(axis=0) if inputs == "centred_root" else np.zeros(root.shape[1:], dtype=np.float32)
    spread = float(np.sqrt(np.mean((root - offset) ** 2, dtype=np.float64)))
    scale = 1.0 / max(spread, 1e-6)
    return Preprocessing(sqrt=True, scale=scale, offset=offset if inputs == "centred_root" else None)
