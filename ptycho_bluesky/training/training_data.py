"""What a training learns from: arrays in memory, or a corpus that is read from disk while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.records import LabelSet
from ptycho_bluesky.training.area_split import near_area, split_off_area
from ptycho_bluesky.training.augmentation import Augmentation
from ptycho_bluesky.training.catalog import CatalogEntry
from ptycho_bluesky.training.corpus import Corpus, TrainingArrays, join_label_sets, light_factor
from ptycho_bluesky.training.distributed import Ranks
from ptycho_bluesky.training.loader import BatchLoader, BatchSource, DiskBatches
from ptycho_bluesky.training.loading import FrameStore, Schedule, order_epochs
from ptycho_bluesky.training.options import TrainOptions
from ptycho_bluesky.training.recipes import Plan
from ptycho_bluesky.training.splits import rehearsal_rows

__all__ = ["TrainingData", "gather"]

SAMPLED_FRAMES = 1000
"""Frames of old runs that stand for a corpus on disk where it is measured before the training."""


@dataclass(frozen=True)
class _OnDisk:
    """Rows of the files of a corpus, and the factor that brings each file to the newest run's light."""

    files: tuple[str, ...]
    rows: NDArray[np.int64]
    factors: NDArray[np.float64]


@dataclass(frozen=True)
class TrainingData:
    """What is trained on.

    Attributes
    ----------
    arrays : TrainingArrays
        All of it, or, of a corpus on disk, the newest run and a part of the others.
    num_frames : int
        Of all of it.
    held_out : TrainingArrays or None
        Judges which weights of the published recipe are kept.
    """

    arrays: TrainingArrays
    num_frames: int
    held_out: TrainingArrays | None
    _on_disk: _OnDisk | None = None

    def source(
        self,
        plan: Plan,
        options: TrainOptions,
        new_runs: Sequence[str],
        operations: tuple[str, ...],
        *,
        with_amplitude: bool,
        ranks: Ranks,
    ) -> BatchSource:
        """Batches of a rank."""
        thin_to = 1.0 if plan.published else options.thin_to
        if self._on_disk is None:
            return BatchLoader(
                self.arrays,
                plan.batch_size,
                options.seed,
                new_runs=new_runs,
                new_fraction=options.new_fraction,
                operations=operations,
                with_amplitude=with_amplitude,
                thin_to=thin_to,
                rank=ranks.rank,
                world_size=ranks.world_size,
            )
        columns = ("image", "phase_rad", "amplitude") if with_amplitude else ("image", "phase_rad")
        store = FrameStore(self._on_disk.files, columns, rows=self._on_disk.rows)
        schedule = Schedule(
            len(store), plan.batch_size, ranks.world_size, options.buffer_frames, options.seed, options.buffer_policy
        )
        if options.order_epochs:
            num_epochs = -(-plan.num_steps // schedule.steps_per_epoch)
            schedule = replace(schedule, epoch_order=order_epochs(schedule, num_epochs))
        augmentation = Augmentation(options.seed, operations, thin_to)
        return DiskBatches(store, schedule, self._on_disk.factors, augmentation, ranks.rank)


def gather(
    corpus: Corpus | TrainingArrays | Sequence[LabelSet],
    options: TrainOptions,
    trained_runs: Sequence[str],
    runs: Sequence[str] | None = None,
    validation: LabelSet | None = None,
) -> TrainingData:
    """Data of a training.

    Parameters
    ----------
    corpus : Corpus, TrainingArrays or sequence of LabelSet
    options : TrainOptions
    trained_runs : sequence of str
        Runs that are not new.
    runs : sequence of str, optional
        Of a `Corpus` only these.
    validation : LabelSet, optional
        Judges the weights of the published recipe, instead of a part of the newest run.

    Raises
    ------
    InputError
        There are no labels, they differ in geometry, or options exclude each other.
    """
    if isinstance(corpus, Corpus):
        entries = corpus.select(runs)
        if not entries:
            raise InputError(
                f"corpus {corpus.directory}", "training needs at least one label set", "add labels of a run"
            )
        new = [entry.run_uid for entry in entries if entry.run_uid not in set(trained_runs)]
        rows = rehearsal_rows(entries, new, options.rehearsal_frames, options.seed)
        entries = [entry for entry in entries if len(rows[entry.run_uid])]
        if options.buffer_frames:
            return _from_disk(corpus, entries, rows, options)
        arrays = corpus.load([entry.run_uid for entry in entries], rows)
    else:
        if options.buffer_frames or runs is not None:
            raise InputError(
                "labels in memory with buffer_frames or runs", "a corpus on disk is chosen from",
                "give a folder of label sets",
            )  # fmt: skip
        arrays = corpus if isinstance(corpus, TrainingArrays) else join_label_sets(corpus)
        if options.rehearsal_frames:
            arrays = _rehearsed(arrays, options, trained_runs)
    held_out = None
    if options.recipe == "published":
        arrays, held_out = _hold_out(arrays) if validation is None else (arrays, join_label_sets([validation]))
    return TrainingData(arrays, len(arrays), held_out)


def _rehearsed(arrays: TrainingArrays, options: TrainOptions, trained_runs: Sequence[str]) -> TrainingArrays:
    """Arrays with as many frames of old runs as the budget allows."""
    sizes = np.bincount(arrays.run, minlength=len(arrays.run_uids)).tolist()
    shapes = arrays.image.shape[1:], arrays.phase_rad.shape[1:]
    entries = [
        CatalogEntry(uid, "", size, *shapes, arrays.pixel_size_m)
        for uid, size in zip(arrays.run_uids, sizes, strict=True)
    ]
    new = [uid for uid in arrays.run_uids if uid not in set(trained_runs)]
    rows = rehearsal_rows(entries, new, options.rehearsal_frames, options.seed)
    kept = [np.flatnonzero(arrays.run == number)[rows[uid]] for number, uid in enumerate(arrays.run_uids)]
    return arrays.select(np.concatenate(kept))


def _from_disk(
    corpus: Corpus, entries: Sequence[CatalogEntry], rows: dict[str, NDArray[np.int64]], options: TrainOptions
) -> TrainingData:
    if options.recipe == "published" or options.new_fraction:
        raise InputError(
            "buffer_frames with the published recipe or new_fraction", "these read the corpus from memory",
            "leave one of them out",
        )  # fmt: skip
    newest = entries[-1]
    share = max(1, SAMPLED_FRAMES // max(1, len(entries) - 1))
    part = {entry.run_uid: rows[entry.run_uid][:share] for entry in entries[:-1]}
    arrays = corpus.load([entry.run_uid for entry in entries], {**part, newest.run_uid: rows[newest.run_uid]})
    first = np.cumsum([0, *(entry.num_frames for entry in entries)])
    chosen = np.concatenate([rows[entry.run_uid] + start for entry, start in zip(entries, first, strict=False)])
    factors = np.array([light_factor(entry.dose.get("light"), newest.dose.get("light")) for entry in entries])
    files = tuple(str(corpus.directory / entry.file) for entry in entries)
    return TrainingData(arrays, len(chosen), None, _OnDisk(files, chosen, factors))


def _hold_out(arrays: TrainingArrays) -> tuple[TrainingArrays, TrainingArrays]:
    """Hold a tenth of the newest run out, by area: neighbours overlap, and frame by frame a split would flatter.

    Frames of older runs at the same place are left out as well.
    """
    newest = np.flatnonzero(arrays.run == len(arrays.run_uids) - 1)
    pixel = 1.0 if np.isnan(arrays.pixel_size_m) else arrays.pixel_size_m
    gap_px = arrays.phase_rad.shape[-1] / 2
    split = split_off_area(arrays.position_m[newest] / pixel, gap_px)
    held_out = newest[split.held_out]
    kept = ~near_area(arrays.position_m, arrays.position_m[held_out], gap_px * pixel)
    kept[newest] = split.train
    return arrays.select(np.flatnonzero(kept)), arrays.select(held_out)
