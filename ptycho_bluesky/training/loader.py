"""Batches for the trainer, fixed by seed and step alone, so that a resumed training sees the same ones.

From memory, or, for a corpus that does not fit there, from disk by the planned loader
(`ptycho_bluesky.training.loading`). Both give a rank its part of each global batch.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.training.augmentation import Augmentation
from ptycho_bluesky.training.corpus import TrainingArrays
from ptycho_bluesky.training.loading import DiskLoader, FrameStore, Schedule
from ptycho_bluesky.training.loading.disk_loader import LoadedBatch

__all__ = ["Batch", "BatchLoader", "BatchSource", "DiskBatches"]

READ_AHEAD_FRAMES = 512
"""Frames of a rank whose missing ones are read from disk together: the more, the closer they lie to each other."""
EXTRA_EPOCH = 1 << 40
"""Added to the step, it stands for the epoch of frames that are drawn beside the epochs."""


@dataclass(frozen=True)
class Batch:
    """One rank's part of a global batch.

    Attributes
    ----------
    counts : ndarray of float32, shape (n, 1, H, W)
    labels : ndarray of float32, shape (n, channels, h, w)
    share : float
        Frames here over frames of the global batch.
    """

    counts: NDArray[np.float32]
    labels: NDArray[np.float32]
    share: float


class BatchSource(Protocol):
    """Where the trainer gets its batches."""

    def batches(self, first_step: int, num_steps: int) -> Iterator[Batch]:
        """Batches of this rank, from a step to the end of the training."""
        ...

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every frame is seen about once."""
        ...

    def close(self) -> None:
        """Let go of files and threads."""
        ...


class BatchLoader:
    """Draws batches from arrays in memory.

    Every epoch is a permutation of the corpus, so that no frame is seen twice before each has been seen once; a part of
    each batch may be drawn from the new runs instead.

    Parameters
    ----------
    arrays : TrainingArrays
    batch_size : int
        Frames of a step, over all ranks.
    seed : int
    new_runs : sequence of str
        Runs that are new.
    new_fraction : float
        Part of each batch drawn from the new runs alone; 0 draws all alike.
    operations : sequence of str
        D4 operations of which one, drawn anew for every frame, is applied to frame and label together.
    with_amplitude : bool
        Give the amplitude as a second channel of the labels.
    thin_to : float
        See `Augmentation`.
    rank, world_size : int
        This rank, and how many there are; they take the frames of each global batch in turn.
    """

    def __init__(
        self,
        arrays: TrainingArrays,
        batch_size: int,
        seed: int,
        *,
        new_runs: Sequence[str] = (),
        new_fraction: float = 0.0,
        operations: Sequence[str] = ("identity",),
        with_amplitude: bool = False,
        thin_to: float = 1.0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not len(arrays):
            raise InputError("a corpus without frames", "training needs at least one frame")
        self.arrays = arrays
        self.batch_size = batch_size
        self.seed = seed
        self.augmentation = Augmentation(seed, tuple(operations), thin_to)
        self.rank, self.world_size = rank, world_size
        self._labels = [arrays.phase_rad, arrays.amplitude] if with_amplitude else [arrays.phase_rad]
        is_new = np.array([uid in set(new_runs) for uid in arrays.run_uids])
        self._new = np.flatnonzero(is_new[arrays.run])
        self._num_new = round(batch_size * new_fraction) if 0 < len(self._new) < len(arrays) else 0
        self._order: tuple[int, NDArray[np.int64]] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of the corpus."""
        return max(1, len(self.arrays) // self.batch_size)

    def indices(self, step: int) -> NDArray[np.int64]:
        """Frames of the global batch of a step, shape (batch_size,)."""
        return self._drawn(step)[0]

    def batch(self, step: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Counts (n, 1, H, W) and labels (n, 1, h, w) of a step, both float32; two channels with amplitude."""
        index, epoch = (value[self.rank :: self.world_size] for value in self._drawn(step))
        labels = np.stack([each[index] for each in self._labels], axis=1)
        counts, labels = self.augmentation.apply(self.arrays.image[index], labels, epoch, index)
        return counts[:, None], labels

    def batches(self, first_step: int, num_steps: int) -> Iterator[Batch]:
        """Batches of this rank, from a step to the end of the training."""
        for step in range(first_step, num_steps):
            counts, labels = self.batch(step)
            yield Batch(counts, labels, len(counts) / self.batch_size)

    def close(self) -> None:
        """There is nothing to let go of."""

    def _drawn(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Frames of a global batch, and the epoch of each."""
        num_old = self.batch_size - self._num_new
        place = np.arange(step * num_old, (step + 1) * num_old)
        epoch, offset = np.divmod(place, len(self.arrays))
        index = np.empty(num_old, dtype=np.int64)
        for number in np.unique(epoch):
            chosen = epoch == number
            index[chosen] = self._permutation(int(number))[offset[chosen]]
        if not self._num_new:
            return index, epoch
        rng = np.random.default_rng([self.seed, 1, step])
        index = np.concatenate([index, rng.choice(self._new, self._num_new)])
        return index, np.concatenate([epoch, np.full(self._num_new, EXTRA_EPOCH + step)])

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.arrays)))
        return self._order[1]


class DiskBatches:
    """Batches from a corpus on disk.

    Parameters
    ----------
    store : FrameStore
        With the columns ``image``, ``phase_rad`` and, for networks that read it, ``amplitude``.
    schedule : Schedule
    factors : ndarray of float64, shape (files,)
        By which the counts of each file are brought to one light.
    augmentation : Augmentation
    rank : int
    """

    def __init__(
        self,
        store: FrameStore,
        schedule: Schedule,
        factors: NDArray[np.float64],
        augmentation: Augmentation,
        rank: int = 0,
    ) -> None:
        self.store, self.schedule, self.factors = store, schedule, factors
        self.augmentation, self.rank = augmentation, rank
        self._loaded: Generator[LoadedBatch] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch; the last one may be smaller."""
        return self.schedule.steps_per_epoch

    def batches(self, first_step: int, num_steps: int) -> Iterator[Batch]:
        """Batches of this rank, from a step to the end of the training."""
        num_epochs = -(-num_steps // self.schedule.steps_per_epoch)
        read_ahead = max(1, READ_AHEAD_FRAMES * self.schedule.world_size // self.schedule.global_batch)
        loader = DiskLoader(
            self.store, self.schedule, self.rank, num_epochs, read_ahead=read_ahead, first_step=first_step
        )
        self._loaded = iter(loader)
        for step, loaded in zip(range(first_step, num_steps), self._loaded, strict=False):
            rows = loaded.step.rows
            names = [name for name in self.store.columns if name != "image"]
            labels = np.stack([loaded.arrays[name] for name in names], axis=1)
            epoch = np.full(len(rows), step // self.schedule.steps_per_epoch)
            image = self._at_one_light(loaded.arrays["image"], rows)
            counts, labels = self.augmentation.apply(image, labels, epoch, rows)
            yield Batch(counts[:, None], labels, loaded.step.share)

    def close(self) -> None:
        """End reading ahead, then close the store."""
        if self._loaded is not None:
            self._loaded.close()
        self.store.close()

    def _at_one_light(self, image: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
        factor = self.factors[self.store.file_of(rows)]
        if (factor == 1.0).all():
            return image
        return image.astype(np.float32) * factor[:, None, None].astype(np.float32)
