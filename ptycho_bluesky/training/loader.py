"""Batches for the trainer, fixed by seed and step alone, so that a resumed training sees the same ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import apply_d4
from ptycho_bluesky.training.corpus import TrainingArrays

__all__ = ["BatchLoader"]


class BatchLoader:
    """Draws batches from arrays in memory.

    Every epoch is a permutation of the corpus, so that no frame is seen twice before each has been seen once; a part of
    each batch may be drawn from the new runs instead.

    Parameters
    ----------
    arrays : TrainingArrays
    batch_size : int
    seed : int
    new_runs : sequence of str
        Runs that are new.
    new_fraction : float
        Part of each batch drawn from the new runs alone; 0 draws all alike.
    operations : sequence of str
        D4 operations of which one, drawn anew for every frame, is applied to frame and label together.
    with_amplitude : bool
        Give the amplitude as a second channel of the labels.
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
    ) -> None:
        if not len(arrays):
            raise InputError("a corpus without frames", "training needs at least one frame")
        self.arrays = arrays
        self.batch_size = batch_size
        self.seed = seed
        self.operations = tuple(operations)
        self._labels = [arrays.phase_rad, arrays.amplitude] if with_amplitude else [arrays.phase_rad]
        is_new = np.array([uid in set(new_runs) for uid in arrays.run_uids])
        self._new = np.flatnonzero(is_new[arrays.run])
        self._num_new = round(batch_size * new_fraction) if 0 < len(self._new) < len(arrays) else 0
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def indices(self, step: int) -> NDArray[np.int64]:
        """Frames of the batch of a step, shape (batch_size,)."""
        num_old = self.batch_size - self._num_new
        place = np.arange(step * num_old, (step + 1) * num_old)
        epoch, offset = np.divmod(place, len(self.arrays))
        index = np.empty(num_old, dtype=np.int64)
        for number in np.unique(epoch):
            chosen = epoch == number
            index[chosen] = self._permutation(int(number))[offset[chosen]]
        if not self._num_new:
            return index
        rng = np.random.default_rng([self.seed, 1, step])
        return np.concatenate([index, rng.choice(self._new, self._num_new)])

    def batch(self, step: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Counts (batch, 1, H, W) and labels (batch, 1, h, w) of a step, both float32; two channels with amplitude."""
        index = self.indices(step)
        image = self.arrays.image[index].astype(np.float32)
        labels = np.stack([each[index] for each in self._labels], axis=1)
        drawn = np.random.default_rng([self.seed, 2, step]).integers(len(self.operations), size=len(index))
        for number in np.unique(drawn):
            rows, operation = drawn == number, self.operations[number]
            image[rows], labels[rows] = apply_d4(image[rows], operation), apply_d4(labels[rows], operation)
        return image[:, None], labels

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.arrays)))
        return self._order[1]
