"""Batches of one rank from a corpus on disk: planned, buffered, and read ahead while the network trains."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.training.loading.ahead import ahead
from ptycho_bluesky.training.loading.ranges import FrameStore
from ptycho_bluesky.training.loading.schedule import Schedule, Step

__all__ = ["DiskLoader", "LoadedBatch", "LoaderCounts"]

WINDOWS = 3
"""Windows in memory: one in use, one waiting for it, one being read. The oldest's memory is then used again."""


@dataclass(frozen=True)
class LoadedBatch:
    """One rank's part of a global batch.

    Attributes
    ----------
    step : Step
    arrays : dict of str to ndarray, shape (n, ...)
        The columns of the store, in the order of ``step.rows``; n may be 0.
    """

    step: Step
    arrays: dict[str, NDArray[Any]]

    def gradient_weight(self, world_size: int) -> float:
        """Factor of this rank's *mean* loss under which an average over ranks is the mean over the global batch."""
        return self.step.share * world_size


@dataclass
class LoaderCounts:
    """What a loader did.

    Attributes
    ----------
    frames, held, read : int
        Frames given out; of them from the buffer; of them from disk.
    """

    frames: int = 0
    held: int = 0
    read: int = 0


class DiskLoader:
    """Iterates over the steps of one rank.

    Parameters
    ----------
    store : FrameStore
        Opened by this process; read by the loader's thread alone while it iterates.
    schedule : Schedule
    rank : int
    num_epochs : int
    read_ahead : int
        Steps whose missing frames are read together, sorted and merged. Two such windows are in memory beside the
        buffer: what is being used, and what is being read.
    first_step : int
        Global number of the step to begin with (a resumed training); the buffer is filled as it stood then.

    Notes
    -----
    Memory: ``schedule.buffer_frames`` frames, and at most three windows of ``read_ahead`` steps' missing frames.
    """

    def __init__(
        self,
        store: FrameStore,
        schedule: Schedule,
        rank: int = 0,
        num_epochs: int = 1,
        *,
        read_ahead: int = 16,
        first_step: int = 0,
    ) -> None:
        if schedule.num_frames != len(store):
            raise InputError(f"a schedule of {schedule.num_frames} frames", f"the corpus has {len(store)}")
        if read_ahead < 1:
            raise InputError(f"read_ahead = {read_ahead}", "it is at least 1")
        self.store, self.schedule, self.rank, self.num_epochs = store, schedule, rank, num_epochs
        self.read_ahead, self.first_step = read_ahead, first_step
        self.counts = LoaderCounts()
        self._memory: deque[dict[str, NDArray[Any]]] = deque()

    def __len__(self) -> int:
        return self.num_epochs * self.schedule.steps_per_epoch - self.first_step

    def __iter__(self) -> Generator[LoadedBatch]:
        steps = self.schedule.steps(self.rank, self.num_epochs)
        buffer = _Buffer(self.store, self.schedule.buffer_frames)
        buffer.fill(_contents(islice(steps, self.first_step)))
        return self._batches(steps, buffer)

    def _batches(self, steps: Iterator[Step], buffer: _Buffer) -> Generator[LoadedBatch]:
        for window, fresh, read_rows in ahead(self._windows(steps), self._read):
            for step in window:
                arrays = self._gather(step, buffer, fresh, read_rows)
                self.counts.frames += len(step.rows)
                self.counts.held += int(step.held.sum())
                self.counts.read += int((~step.held).sum())
                yield LoadedBatch(step, arrays)

    def _windows(self, steps: Iterable[Step]) -> Iterator[list[Step]]:
        """Steps in groups; none reaches into the next epoch, so that no frame is in a window twice."""
        for _, epoch in groupby(steps, key=lambda step: step.epoch):
            while window := list(islice(epoch, self.read_ahead)):
                yield window

    def _read(self, window: list[Step]) -> tuple[list[Step], dict[str, NDArray[Any]], NDArray[np.int64]]:
        rows = np.sort(np.concatenate([step.rows[~step.held] for step in window]))
        memory = self._memory.popleft() if len(self._memory) >= WINDOWS else None
        if memory is None or len(memory[self.store.columns[0]]) < len(rows):
            memory = self.store.empty(len(rows))
        self._memory.append(memory)
        return window, self.store.read(rows, memory), rows

    def _gather(
        self, step: Step, buffer: _Buffer, fresh: dict[str, NDArray[Any]], read_rows: NDArray[np.int64]
    ) -> dict[str, NDArray[Any]]:
        """Put a batch together from buffer and disk, then let the buffer follow the plan."""
        arrays = self.store.empty(len(step.rows))
        held, missing = np.flatnonzero(step.held), np.flatnonzero(~step.held)
        slots = buffer.slots(step.rows[held])
        at = np.searchsorted(read_rows, step.rows[missing])
        for name, array in arrays.items():
            _copy_rows(array, held, buffer.arrays[name], slots)
            _copy_rows(array, missing, fresh[name], at)
        buffer.evict(step.evict)
        buffer.keep(step.keep, fresh, np.searchsorted(read_rows, step.keep))
        return arrays


class _Buffer:
    """Frames in memory by their row."""

    def __init__(self, store: FrameStore, capacity: int) -> None:
        self._store = store
        self.arrays = store.empty(min(capacity, len(store)))
        self._slot: dict[int, int] = {}
        self._free = list(range(min(capacity, len(store))))

    def slots(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.array([self._slot[row] for row in rows.tolist()], dtype=np.int64)

    def evict(self, rows: NDArray[np.int64]) -> None:
        self._free.extend(self._slot.pop(row) for row in rows.tolist())

    def keep(self, rows: NDArray[np.int64], source: dict[str, NDArray[Any]], at: NDArray[np.int64]) -> None:
        slots = [self._free.pop() for _ in range(len(rows))]
        self._slot.update(zip(rows.tolist(), slots, strict=True))
        for name, array in self.arrays.items():
            _copy_rows(array, np.array(slots, dtype=np.int64), source[name], at)

    def fill(self, rows: NDArray[np.int64]) -> None:
        """Read the frames that an interrupted training held."""
        if len(rows):
            self.keep(rows, self._store.read(rows), np.arange(len(rows)))


def _copy_rows(target: NDArray[Any], places: NDArray[np.int64], source: NDArray[Any], rows: NDArray[np.int64]) -> None:
    """Set ``target[places] = source[rows]`` without the copy between that indexing both sides makes."""
    for place, row in zip(places.tolist(), rows.tolist(), strict=True):
        target[place] = source[row]


def _contents(steps: Iterable[Step]) -> NDArray[np.int64]:
    """Rows in the buffer after these steps, sorted."""
    held: set[int] = set()
    for step in steps:
        held.difference_update(step.evict.tolist())
        held.update(step.keep.tolist())
    return np.array(sorted(held), dtype=np.int64)
