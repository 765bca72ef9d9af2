"""`bench train`: our trainer beside the released recipe's plain loop, frames a second and time to equal loss."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

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

__all__ = ["Contender", "TrainBench", "run", "time_rows", "time_to_reach"]

Progress = Callable[[int, int, str], None]
Curve = list[tuple[float, float]]
RELEASED = "released recipe, plain loop"
WARM_UP_S = 3.0
RATE_FRAMES = 128
"""Frames over which speeds are compared: two of the released loop's batches."""
RATE_SLICE_S = 5.0
CLEAR = 0.95
"""Part of a constant's loss at which a network has left the constant answer."""


@dataclass(frozen=True)
class TrainBench:
    """What is measured: speed at the published frame size, then learning at one where hundreds of batches fit.

    Attributes
    ----------
    size_px, num_scans, num_points : int
        Frame, scans and frames of a scan that are learned from; one more scan validates.
    seconds : float
        Time for which the released loop learns.
    our_share : float
        Part of this time for which ours does: it needs less, and the released loop has the more to leave the constant
        answer in.
    slice_s : float
        The released loop's turn; turns alternate, so that the load of the machine is the same for both.
    rate_size_px : int
        Frame of the comparison of speed.
    rate_seconds : float
        Time of each contender for it.
    num_threads : int
        Of both.
    validation_frames, seed : int
    """

    size_px: int = 64
    num_scans: int = 3
    num_points: int = 963
    seconds: float = 420.0
    our_share: float = 0.2
    slice_s: float = 9.0
    rate_size_px: int = 128
    rate_seconds: float = 30.0
    num_threads: int = 1
    validation_frames: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.slice_s <= self.seconds:
            raise InputError(f"slices of {self.slice_s} s in {self.seconds} s", "each takes at least one turn")
        if not 0 < self.our_share <= 1:
            raise InputError(f"our share of the time {self.our_share}", "it is above 0 and at most 1")
        if not self.rate_seconds > 0:
            raise InputError(f"{self.rate_seconds} s to compare speeds", "each takes at least one turn")


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
    clock : callable
        Gives seconds.
    """

    steps: Iterator[int]
    validate: Callable[[], float]
    rates: list[float] = field(default_factory=list)
    curve: list[tuple[float, float]] = field(default_factory=list)
    frames: int = 0
    clock: Callable[[], float] = time.perf_counter

    def train(self, seconds: float) -> float:
        """Train for a while; returns the seconds that it took, to the end of a step."""
        began, frames = self.clock(), 0
        while self.clock() - began < seconds:
            frames += next(self.steps)
        spent = self.clock() - began
        self.rates.append(frames / spent)
        self.frames += frames
        return spent

    def advance(self, seconds: float) -> None:
        """Train for a while, then validate; the validation is not counted."""
        spent = self.train(seconds)
        self.curve.append(((self.curve[-1][0] if self.curve else 0.0) + spent, self.validate()))


def run(bench: TrainBench, progress: Progress | None = None) -> tuple[list[Row], dict[str, Any]]:
    """Measure.

    Returns
    -------
    rows : list of Row
    found : dict
        ``curves`` and ``frames`` of ``ours`` and ``released`` (lists of [seconds, validation loss in rad], and the
        frame-updates of their learning, warm-up included), and the options, ``bench``.
    """
    report = progress or (lambda done, total, name: None)
    rates = _compare_rates(bench, report)
    report(0, 1, "rendering")
    corpus = SimulatedCorpus(
        CorpusOptions(size_px=bench.size_px, num_scans=bench.num_scans, num_points=bench.num_points)
    )
    arrays, held_out = join_label_sets(corpus.training()), corpus.held_out(bench.validation_frames)
    contenders = _contenders(bench, arrays, held_out)
    turns = max(1, round(bench.seconds / bench.slice_s))
    slices = {"ours": bench.our_share * bench.slice_s, "released": bench.slice_s}
    for turn in range(turns):
        for name, contender in contenders.items():
            report(turn, turns, f"{name} learns")
            contender.advance(slices[name])
    report(turns, turns, "done")
    learning = _rates_of(contenders)
    ours, theirs = contenders["ours"], contenders["released"]
    small = f"frames_per_s_{bench.size_px}px"
    rows = [
        Row("train_frames_per_s", "times as many", "higher", rates.ratio("ours", "released"), 1.0, RELEASED, 2.0),
        Row("frames_per_s", "1/s", "higher", rates.median("ours"), rates.median("released"), RELEASED),
        Row(small, "1/s", "higher", learning.median("ours"), learning.median("released"), RELEASED),
        *time_rows(ours.curve, theirs.curve, _constant_loss(held_out)),
        Row("final_loss", "rad", "lower", ours.curve[-1][1], min(loss for _, loss in theirs.curve), RELEASED),
    ]
    curves = {name: [list(point) for point in each.curve] for name, each in contenders.items()}
    frames = {name: each.frames for name, each in contenders.items()}
    return rows, {"curves": curves, "frames": frames, "bench": asdict(bench)}


def _compare_rates(bench: TrainBench, report: Progress) -> Rates:
    """Frames a second of both on frames of the published size; nothing is validated."""
    report(0, 1, "rendering")
    corpus = SimulatedCorpus(CorpusOptions(size_px=bench.rate_size_px, num_scans=1, num_points=RATE_FRAMES))
    contenders = _contenders(bench, join_label_sets(corpus.training()), corpus.held_out(1))
    slice_s = min(RATE_SLICE_S, bench.rate_seconds)
    turns = round(bench.rate_seconds / slice_s)
    for turn in range(turns):
        for name, contender in contenders.items():
            report(turn, turns, f"speed of {name}")
            contender.train(slice_s)
    return _rates_of(contenders)


def _contenders(bench: TrainBench, arrays: TrainingArrays, held_out: LabelSet) -> dict[str, Contender]:
    """Both, warmed up: threads, kernels and memory are there before the clock runs."""
    contenders = {"ours": _ours(bench, arrays, held_out), "released": _released(bench, arrays, held_out)}
    for contender in contenders.values():
        began = time.perf_counter()
        while time.perf_counter() - began < WARM_UP_S:
            contender.frames += next(contender.steps)
    return contenders


def _rates_of(contenders: Mapping[str, Contender]) -> Rates:
    return Rates({name: np.array(each.rates) for name, each in contenders.items()})


def time_rows(ours: Curve, theirs: Curve, constant: float) -> list[Row]:
    """How soon ours is as good as the released loop at its best, and how soon each leaves the constant answer.

    Parameters
    ----------
    ours, theirs : list of tuple
        Seconds, validation loss in rad.
    constant : float
        Loss in rad of a constant image.

    Returns
    -------
    list of Row
        ``time_to_loss`` has a target only where the released loop has left the constant answer: before, there is
        nothing to be reached. A row of seconds is missing where ours never got there, and its baseline is the whole
        time where the released loop did not; its name says so then.
    """
    target, clear = min(loss for _, loss in theirs), CLEAR * constant
    baseline, found = time_to_reach(theirs, target), time_to_reach(ours, target)
    if baseline is None:
        raise AssertionError("the target is a point of the baseline's curve")
    ratio = 0.0 if found is None else baseline / found
    rows = [
        Row("loss_of_a_constant", "rad", "lower", constant),
        Row("time_to_loss", "times as fast", "higher", ratio, 1.0, RELEASED, 1.0 if target <= clear else None),
    ]
    if found is not None:
        rows.append(Row("seconds_to_loss", "s", "lower", found, baseline, RELEASED))
    left, they_left = time_to_reach(ours, clear), time_to_reach(theirs, clear)
    name = RELEASED if they_left is not None else f"{RELEASED}: not reached in this time"
    if left is not None:
        rows.append(Row("seconds_to_leave_constant", "s", "lower", left, they_left or theirs[-1][0], name))
    return rows


def time_to_reach(curve: Curve, target: float) -> float | None:
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
