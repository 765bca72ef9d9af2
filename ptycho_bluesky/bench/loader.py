"""`bench loader`: the planned loader against PyTorch's with a cache, NoPFS's policy, and reading frame by frame."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ptycho_bluesky.bench.loader_index import index_rows
from ptycho_bluesky.bench.loader_policies import LoadTask, RankReport, corpus_files, drop_page_cache, run_rank
from ptycho_bluesky.bench.loader_weights import weights_difference
from ptycho_bluesky.bench.rows import Row
from ptycho_bluesky.bench.timing import Rates
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.training.label_files import write_frames
from ptycho_bluesky.training.loading import FrameStore, Schedule, order_epochs

__all__ = ["LoaderBench", "make_corpus", "run"]

Progress = Callable[[int, int, str], None]
RANKS = 2
DENSITIES = (0.5, 0.75, 1.0)
TIMEOUT_S = 300.0
WINDOW, MAX_GAP = 512, 1
"""Frames asked for at once, as many as the trainer reads ahead (`ptycho_bluesky.training.loader`)."""


@dataclass(frozen=True)
class LoaderBench:
    """What is measured.

    Attributes
    ----------
    num_frames, size_px : int
        Frames of the synthetic corpus, and their side.
    global_batch : int
        Frames of a step over both ranks.
    num_epochs : int
        Epochs of each run; the first, in which buffers fill, is not compared.
    rounds : int
        Turns of every loader.
    seed : int
    index_runs : int
        Runs of 963 frames of the corpus that is only opened: a million frames.
    """

    num_frames: int = 4096
    size_px: int = 128
    global_batch: int = 64
    num_epochs: int = 4
    rounds: int = 2
    seed: int = 0
    index_runs: int = 1039

    def __post_init__(self) -> None:
        if self.num_epochs < 2:
            raise InputError(f"num_epochs = {self.num_epochs}", "the first is not compared: at least 2")
        if self.num_frames < 2 * self.global_batch:
            raise InputError(f"num_frames = {self.num_frames}", f"at least two batches of {self.global_batch}")


def make_corpus(folder: Path, bench: LoaderBench, num_files: int = 4) -> tuple[str, ...]:
    """Write a synthetic corpus as `ptycho_bluesky.training.corpus` does: by frame, rounded, compressed."""
    rng = np.random.default_rng(bench.seed)
    size = bench.size_px
    for number, rows in enumerate(np.array_split(np.arange(bench.num_frames), num_files)):
        image = np.empty((len(rows), size, size), np.uint16)
        phase_rad = np.empty(image.shape, np.float32)
        for place in range(len(rows)):
            image[place] = rng.poisson(3.0, (size, size))
            phase_rad[place] = np.cumsum(rng.normal(0, 0.01, (size, size)), axis=1)
        with h5py.File(folder / f"{number:03d}.h5", "w", rdcc_nbytes=0) as file:
            write_frames(file, {"image": image, "phase_rad": phase_rad})
    return corpus_files(folder)


def run(bench: LoaderBench, progress: Progress | None = None) -> list[Row]:
    """Measure.

    Parameters
    ----------
    bench : LoaderBench
    progress : callable, optional
        Called with (turns done, turns in all, what comes next).

    Returns
    -------
    list of Row
    """
    report = progress or (lambda done, total, name: None)
    with tempfile.TemporaryDirectory(prefix="bench-loader-") as name:
        files = make_corpus(Path(name), bench)
        rows: list[Row] = []
        turns = 5
        for number, share in enumerate((0.8, 0.5)):
            report(number, turns, f"buffers of {share:.0%}")
            rows += _policies(bench, files, share)
        report(2, turns, "ranges")
        rows += _range_rows(bench, files)
        report(3, turns, "weights")
        rows += _difference_rows(bench, files)
        rows.append(ordering_row(bench))
        report(4, turns, "a million frames")
        rows += index_rows(Path(name) / "index", bench.index_runs)
        report(turns, turns, "done")
    return rows


def _policies(bench: LoaderBench, files: tuple[str, ...], share: float) -> list[Row]:
    """Every loader in turns, with the same memory."""
    buffer_frames = int(bench.num_frames * share / RANKS)
    names = ("planned", "lru", "nopfs") if share == 0.8 else ("planned", "lru")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    reads: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(bench.rounds):
        for name in names:
            task = LoadTask(
                name, files, bench.global_batch, RANKS, buffer_frames, bench.num_epochs, bench.seed,
                f"ptycho{os.getpid()}x{turn}",
            )  # fmt: skip
            reports = run_ranks(task)
            seconds[name].append(max(report.seconds for report in reports))
            reads[name].append(sum(report.reads for report in reports))
    rates = Rates({name: 1.0 / np.array(values) for name, values in seconds.items()})
    mean_reads = {name: float(np.mean(values)) for name, values in reads.items()}
    label = f"buffer_{share:g}"
    rows = [
        _time_row(f"epoch_time_{label}", seconds, "lru", 3.0 if share == 0.8 else 1.5, rates),
        Row(f"reads_{label}", "frames", "lower", mean_reads["planned"], mean_reads["lru"], "DataLoader with LRU"),
    ]
    if share == 0.8:
        schedule = Schedule(bench.num_frames, bench.global_batch, RANKS, buffer_frames)
        over = mean_reads["planned"] / schedule.fewest_reads
        rows.append(Row("reads_over_bound", "1", "lower", over, target=1.02))
        rows.append(_time_row("nopfs_policy", seconds, "nopfs", 1.0, rates))
    return rows


def _time_row(metric: str, seconds: dict[str, list[float]], baseline: str, target: float, rates: Rates) -> Row:
    """Epoch times as a speed-up, since that is what is asked for."""
    names = {"lru": "DataLoader with LRU", "nopfs": "NoPFS's policy, re-created"}
    ratio = rates.ratio("planned", baseline)
    return Row(metric, "times as fast", "higher", ratio, 1.0, names[baseline], target)


def run_ranks(task: LoadTask) -> list[RankReport]:
    """Run every rank in a process of its own.

    Raises
    ------
    RuntimeError
        A rank died.
    """
    context = multiprocessing.get_context("spawn")
    barrier, reports = context.Barrier(task.world_size), context.Queue()
    processes = [
        context.Process(target=run_rank, args=(task, rank, barrier, reports), daemon=True)
        for rank in range(task.world_size)
    ]
    for process in processes:
        process.start()
    try:
        found = dict(_collect(reports, processes) for _ in processes)
    finally:
        for process in processes:
            process.join(5.0)
            if process.is_alive():
                process.kill()
    return [found[rank] for rank in range(task.world_size)]


def _collect(reports: multiprocessing.Queue, processes: list) -> tuple[int, RankReport]:  # type: ignore[type-arg]
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        if not reports.empty():
            return reports.get()
        if any(process.exitcode not in (None, 0) for process in processes):
            raise RuntimeError("a rank of the loader bench died; its traceback is above")
        time.sleep(0.02)
    raise RuntimeError(f"the ranks of the loader bench did not end within {TIMEOUT_S:g} s")


def _range_rows(bench: LoaderBench, files: tuple[str, ...]) -> list[Row]:
    """Sorted, merged ranges against one read a frame, for parts of the corpus of several densities.

    A loader that reads frame by frame does so in the order of its shuffle, which is the baseline; beside it stands the
    same in the order of the file, which is what HDF5 alone can make of sorting.
    """
    rng = np.random.default_rng(bench.seed)
    rows = []
    for density in DENSITIES:
        wanted = np.sort(rng.choice(bench.num_frames, int(bench.num_frames * density), replace=False))
        speeds: dict[str, list[float]] = {"ranges": [], "frames": [], "sorted": []}
        for _ in range(bench.rounds + 1):
            for name in speeds:
                speeds[name].append(len(wanted) / _reading_s(files, wanted, name))
        rates = Rates({name: np.array(values) for name, values in speeds.items()})
        metric = "range_reads" if density == DENSITIES[0] else f"range_reads_density_{density:g}"
        ratio = rates.ratio("ranges", "frames")
        rows.append(Row(metric, "times as fast", "higher", ratio, 1.0, "h5py, frame by frame as shuffled", 3.0))
        sorted_ratio = rates.ratio("ranges", "sorted")
        rows.append(Row(f"{metric}_over_sorted", "times as fast", "higher", sorted_ratio, 1.0, "the same, sorted"))
    return rows


def _reading_s(files: tuple[str, ...], rows: np.ndarray, how: str) -> float:
    """Seconds to read some rows from a cold disk: in ``ranges``, or by h5py one by one, ``frames`` or ``sorted``."""
    store = FrameStore(files, max_gap=MAX_GAP)
    memory = store.empty(-(-len(rows) // max(1, len(rows) // WINDOW)))
    opened = [h5py.File(path, "r") for path in files]
    plain: list[list[Any]] = [[file[name] for name in store.columns] for file in opened]
    first = np.cumsum([0, *(len(datasets[0]) for datasets in plain)])
    order = np.random.default_rng(0).permutation(rows) if how == "frames" else rows
    drop_page_cache(files)
    began = time.perf_counter()
    if how == "ranges":
        for window in np.array_split(rows, max(1, len(rows) // WINDOW)):
            store.read(window, memory)
    else:
        for row in order:
            number = int(np.searchsorted(first, row, side="right")) - 1
            for dataset in plain[number]:
                dataset[row - first[number]]
    spent_s = time.perf_counter() - began
    for file in (store, *opened):
        file.close()
    return spent_s


def _difference_rows(bench: LoaderBench, files: tuple[str, ...]) -> list[Row]:
    return [
        Row(f"weights_difference{suffix}", "1", "lower", weights_difference(files, dtype, bench.seed), target=limit)
        for suffix, dtype, limit in (("", "float32", 1e-5), ("_float64", "float64", 1e-12))
    ]


def ordering_row(bench: LoaderBench) -> Row:
    """What ordering the epochs for reuse adds to each policy: reads an epoch, ordered over as drawn.

    SOLAR's second design orders the epochs so that one ends with frames with which the next begins (`order_epochs`).
    """
    buffer_frames = bench.num_frames // (2 * RANKS)
    plain = Schedule(bench.num_frames, bench.global_batch, RANKS, buffer_frames, bench.seed, "clairvoyant")
    ordered = Schedule(
        bench.num_frames, bench.global_batch, RANKS, buffer_frames, bench.seed, "clairvoyant", order_epochs(plain, 6)
    )
    ours, theirs = (_mean_reads(schedule, 6) for schedule in (ordered, plain))
    return Row("ordering_ablation", "frames an epoch", "lower", ours, theirs, "epochs as drawn")


def _mean_reads(schedule: Schedule, num_epochs: int) -> float:
    reads = np.zeros(num_epochs)
    for rank in range(schedule.world_size):
        for step in schedule.steps(rank, num_epochs):
            reads[step.epoch] += (~step.held).sum()
    return float(reads[1:].mean())
