"""`bench train`: our trainer beside the released recipe's plain loop, frames a second and time to equal loss."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from ptycho_bluesky.bench.corpus import CorpusOptions, SimulatedCorpus
from ptycho_bluesky.bench.released_training import ReleasedTraining
from ptycho_bluesky.bench.rows import Row
from ptycho_bluesky.bench.timing import Rates
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.records import LabelSet
from ptycho_bluesky.training.corpus import TrainingArrays, join_label_sets
from ptycho_bluesky.training.evaluate import LIT_FRACTION, label_weight, predict
from ptycho_bluesky.training.options import TrainOptions
from ptycho_bluesky.training.trainer import prepare

__all__ = ["Contender", "TrainBench", "run", "time_to_reach"]

Progress = Callable[[int, int, str], None]
RELEASED = "released recipe, plain loop"
WARM_UP_S = 3.0


@dataclass(frozen=True)
class TrainBench:
    """What is measured.

    Attributes
    ----------
    size_px, num_scans, num_points : int
        Frame, scans and frames of a scan that are trained on; one more scan validates.
    seconds : float
        Training time of each contender.
    slice_s : float
        They take turns of this length, so that the load of the machine is the same for both.
    num_threads : int
        Of both.
    validation_frames, seed : int
    """

    size_px: int = 128
    num_scans: int = 2
    num_points: int = 963
    seconds: float = 200.0
    slice_s: float = 5.0
    num_threads: int = 1
    validation_frames: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.slice_s <= self.seconds:
            raise InputError(f"slices of {self.slice_s} s in {self.seconds} s", "each takes at least one turn")


@dataclass
class Contender:
    """A training that is advanced in turns.

    Attributes
    ----------
    steps : iterator of int
        Takes a step an item; the item counts its frames.
    validate : callable
        Validation loss in rad of what it would serve now.
    rates : list of float
        Frames a second of each turn.
    curve : list of tuple
        Seconds of training so far, validation loss.
    frames : int
    """

    steps: Iterator[int]
    validate: Callable[[], float]
    rates: list[float] = field(default_factory=list)
    curve: list[tuple[float, float]] = field(default_factory=list)
    frames: int = 0

    def advance(self, seconds: float) -> None:
        """Train for a while, then validate; the validation is not counted."""
        began, frames = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            frames += next(self.steps)
        spent = time.perf_counter() - began
        self.rates.append(frames / spent)
        self.frames += frames
        self.curve.append(((self.curve[-1][0] if self.curve else 0.0) + spent, self.validate()))


def run(bench: TrainBench, progress: Progress | None = None) -> tuple[list[Row], dict[str, object]]:
    """Measure.

    Returns
    -------
    rows : list of Row
    curves : dict
        ``ours`` and ``released``: lists of [seconds, validation loss in rad].
    """
    report = progress or (lambda done, total, name: None)
    corpus = SimulatedCorpus(
        CorpusOptions(size_px=bench.size_px, num_scans=bench.num_scans, num_points=bench.num_points)
    )
    report(0, 1, "rendering")
    arrays, held_out = join_label_sets(corpus.training()), corpus.held_out(bench.validation_frames)
    contenders = {"ours": _ours(bench, arrays, held_out), "released": _released(bench, arrays, held_out)}
    for contender in contenders.values():  # threads, kernels and memory are there before the clock runs
        began = time.perf_counter()
        while time.perf_counter() - began < WARM_UP_S:
            contender.frames += next(contender.steps)
    turns = max(1, round(bench.seconds / bench.slice_s))
    for turn in range(turns):
        for name, contender in contenders.items():
            report(turn, turns, name)
            contender.advance(bench.slice_s)
    report(turns, turns, "done")
    rates = Rates({name: np.array(each.rates) for name, each in contenders.items()})
    ours, theirs = contenders["ours"], contenders["released"]
    target, constant = min(loss for _, loss in theirs.curve), _constant_loss(held_out)
    rows = [
        Row("train_frames_per_s", "times as many", "higher", rates.ratio("ours", "released"), 1.0, RELEASED, 2.0),
        Row("frames_per_s", "1/s", "higher", rates.median("ours"), rates.median("released"), RELEASED),
        *_time_rows(ours, theirs, target, constant),
        Row("loss_of_a_constant", "rad", "lower", constant),
        Row("final_loss", "rad", "lower", ours.curve[-1][1], target, RELEASED),
    ]
    curves: dict[str, object] = {name: [list(point) for point in each.curve] for name, each in contenders.items()}
    return rows, {"curves": curves, "frames": {name: each.frames for name, each in contenders.items()}}


def _time_rows(ours: Contender, theirs: Contender, target: float, constant: float) -> list[Row]:
    """Seconds to the released loop's best validation loss; none where we do not reach it.

    While the released loop does no better than a constant there is nothing to be reached, and nothing is passed.
    """
    baseline = time_to_reach(theirs.curve, target)
    found = time_to_reach(ours.curve, target)
    if baseline is None:
        raise AssertionError("the target is a point of the baseline's curve")
    ratio = 0.0 if found is None else baseline / found
    rows = [Row("time_to_loss", "times as fast", "higher", ratio, 1.0, RELEASED, 1.0 if target < constant else None)]
    if found is not None:
        rows.append(Row("seconds_to_loss", "s", "lower", found, baseline, RELEASED))
    return rows


def time_to_reach(curve: list[tuple[float, float]], target: float) -> float | None:
    """Seconds at the first point of a curve that is as low as a target; None where none is."""
    return next((seconds for seconds, loss in curve if loss <= target), None)


def _ours(bench: TrainBench, arrays: TrainingArrays, held_out: LabelSet) -> Contender:
    options = TrainOptions(seed=bench.seed, num_threads=bench.num_threads, frames_per_scan=10_000_000)
    loop = prepare(arrays, options).loop

    def steps() -> Iterator[int]:
        loop.network.train()
        for _ in loop.steps():
            yield loop.plan.batch_size

    def validate() -> float:
        with loop.served() as reader:
            return _lit_loss(predict(reader, held_out.image), held_out)

    return Contender(steps(), validate)


def _released(bench: TrainBench, arrays: TrainingArrays, held_out: LabelSet) -> Contender:
    training = ReleasedTraining(arrays, bench.seed)
    counts = torch.from_numpy(held_out.image.astype(np.float32))[:, None]
    return Contender(training.steps(), lambda: _lit_loss(training.read(counts)[:, 0].numpy(), held_out))


def _lit_loss(phase_rad: NDArray[np.float32], held_out: LabelSet) -> float:
    """Mean absolute error in rad where the beam lights the patch: elsewhere a frame tells nothing."""
    lit = label_weight(held_out) >= LIT_FRACTION
    return float(np.abs(phase_rad - held_out.phase_rad)[:, lit].mean(dtype=np.float64))


def _constant_loss(held_out: LabelSet) -> float:
    lit = label_weight(held_out) >= LIT_FRACTION
    return _lit_loss(np.full_like(held_out.phase_rad, np.median(held_out.phase_rad[:, lit])), held_out)
