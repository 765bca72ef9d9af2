"""The loaders that `bench loader` compares, each run by the ranks of a training that computes nothing."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401 - its import makes the compressions known to HDF5
import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.training.loading import DiskLoader, FrameStore, Schedule
from ptycho_bluesky.training.loading.ahead import ahead

__all__ = ["POLICIES", "LoadTask", "RankReport", "run_rank"]

POLICIES = ("planned", "lru", "nopfs")
COLD_PERIOD_S = 0.05


@dataclass(frozen=True)
class LoadTask:
    """One training to load for.

    Attributes
    ----------
    policy : str
        ``planned``: ours. ``lru``: PyTorch's DataLoader and DistributedSampler over a dataset with a cache that
        gives up the least recently used frame. ``nopfs``: the policy of NoPFS (Dryden et al., SC 2021) as published:
        each rank keeps what it will use most often itself, and takes from another rank's memory what that one keeps.
    files : tuple of str
    global_batch, world_size, buffer_frames, num_epochs, seed : int
        As in `Schedule`.
    shared_name : str
        Prefix of the shared memory by which the ranks of ``nopfs`` reach each other's frames.
    """

    policy: str
    files: tuple[str, ...]
    global_batch: int
    world_size: int
    buffer_frames: int
    num_epochs: int
    seed: int
    shared_name: str = ""


@dataclass(frozen=True)
class RankReport:
    """What one rank measured after the first epoch: seconds, and frames read from disk, an epoch."""

    seconds: float
    reads: float


def run_rank(task: LoadTask, rank: int, barrier: Any, reports: Any) -> None:
    """Load every batch, in step with the other ranks as an all-reduce would have it.

    The first epoch, in which buffers fill, is not measured.
    """
    store = FrameStore(task.files)
    try:
        batches = _LOADERS[task.policy](task, rank, store)
        barrier.wait()
        if rank == 0:
            forget = threading.Thread(target=_keep_cold, args=(task.files,), daemon=True)
            forget.start()
        barrier.wait()
        before, began = store.frames_read, time.perf_counter()
        for arrays in batches:
            if not np.isfinite(sum(float(array.ravel()[:1].sum()) for array in arrays.values())):
                raise ValueError("a frame is not finite")
            barrier.wait()
        epochs = task.num_epochs - 1
        seconds, reads = (time.perf_counter() - began) / epochs, (store.frames_read - before) / epochs
        batches.close()
    except BaseException:
        barrier.abort()
        raise
    finally:
        store.close()
    reports.put((rank, RankReport(seconds, reads)))


def _keep_cold(files: Sequence[str]) -> None:
    """Drop the page cache again and again: what one epoch read must not serve the next from memory."""
    while True:
        drop_page_cache(files)
        time.sleep(COLD_PERIOD_S)


def drop_page_cache(files: Sequence[str]) -> None:
    """Ask the kernel to forget the files' pages, so that the next read comes from the disk."""
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _planned(task: LoadTask, rank: int, store: FrameStore) -> Generator[dict[str, NDArray[Any]]]:
    schedule = Schedule(len(store), task.global_batch, task.world_size, task.buffer_frames, task.seed)
    # The buffer as the first epoch leaves it.
    loader = DiskLoader(store, schedule, rank, task.num_epochs, first_step=schedule.steps_per_epoch)
    batches = iter(loader)
    return (batch.arrays for batch in batches)


class _CachedFrames:
    """A map-style dataset with a least-recently-used cache, as a user would write it around h5py.

    ``store`` only counts what is read.
    """

    def __init__(self, files: Sequence[str], store: FrameStore, capacity: int) -> None:
        self._store, self._capacity = store, capacity
        self._files = [h5py.File(path, "r") for path in files]
        self._datasets: list[dict[str, Any]] = [{name: file[name] for name in store.columns} for file in self._files]
        self._first = np.cumsum([0, *(len(columns["image"]) for columns in self._datasets)])
        self._cache: OrderedDict[int, dict[str, NDArray[Any]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, row: int) -> dict[str, NDArray[Any]]:
        if row in self._cache:
            self._cache.move_to_end(row)
            return self._cache[row]
        number = int(np.searchsorted(self._first, row, side="right")) - 1
        place = row - self._first[number]
        frame = {name: dataset[place] for name, dataset in self._datasets[number].items()}
        self._store.frames_read += 1
        if self._capacity:
            if len(self._cache) >= self._capacity:
                self._cache.popitem(last=False)
            self._cache[row] = frame
        return frame


def _lru(task: LoadTask, rank: int, store: FrameStore) -> Generator[dict[str, NDArray[Any]]]:
    from torch.utils.data import DataLoader
    from torch.utils.data.distributed import DistributedSampler

    frames: Any = _CachedFrames(task.files, store, task.buffer_frames)
    sampler: Any = DistributedSampler(frames, task.world_size, rank, seed=task.seed)
    loader = DataLoader(frames, task.global_batch // task.world_size, sampler=sampler, num_workers=0)
    sampler.set_epoch(0)
    for _ in loader:
        continue

    def later() -> Generator[dict[str, NDArray[Any]]]:
        for epoch in range(1, task.num_epochs):
            sampler.set_epoch(epoch)
            for batch in loader:
                yield {name: tensor.numpy() for name, tensor in batch.items()}

    return later()


def _nopfs(task: LoadTask, rank: int, store: FrameStore) -> Generator[dict[str, NDArray[Any]]]:
    schedule = Schedule(len(store), task.global_batch, task.world_size, seed=task.seed)
    keeper, slot = _most_used(schedule, task)
    caches = [_SharedFrames(store, task, other, create=other == rank) for other in range(task.world_size)]
    kept = np.flatnonzero(keeper == rank)
    caches[rank].fill(store, kept, slot[kept])

    def batches() -> Generator[NDArray[np.int64]]:
        for epoch in range(1, task.num_epochs):
            for rows in schedule.global_batches(epoch):
                yield np.array_split(rows, task.world_size)[rank]

    def later() -> Generator[dict[str, NDArray[Any]]]:
        try:
            # its staging buffer is filled in the order of use while the batch before is trained on
            yield from ahead(batches(), lambda rows: _from_keepers(rows, keeper, slot, caches, store))
        finally:
            for cache in caches:
                cache.close()

    return later()


def _from_keepers(
    rows: NDArray[np.int64],
    keeper: NDArray[np.int64],
    slot: NDArray[np.int64],
    caches: Sequence[_SharedFrames],
    store: FrameStore,
) -> dict[str, NDArray[Any]]:
    """Frames from whichever memory has them, else from the disk."""
    arrays = store.empty(len(rows))
    for place, row in enumerate(rows.tolist()):
        if keeper[row] >= 0:
            frame = caches[int(keeper[row])].get(int(slot[row]))
        else:
            frame = {name: array[0] for name, array in store.read(np.array([row])).items()}
        for name, array in arrays.items():
            array[place] = frame[name]
    return arrays


def _most_used(schedule: Schedule, task: LoadTask) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which rank keeps a frame (−1: none), and where: each rank fills its memory with what it uses most often."""
    used = np.zeros((task.world_size, schedule.num_frames), dtype=np.int64)
    for epoch in range(task.num_epochs):
        for rows in schedule.global_batches(epoch):
            for rank, mine in enumerate(np.array_split(rows, task.world_size)):
                used[rank, mine] += 1
    keeper = np.full(schedule.num_frames, -1, dtype=np.int64)
    slot = np.zeros(schedule.num_frames, dtype=np.int64)
    orders = [np.argsort(-counts, kind="stable") for counts in used]
    filled = np.zeros(task.world_size, dtype=np.int64)
    for candidates in zip(*orders, strict=True):
        for rank, row in enumerate(candidates):
            if keeper[row] < 0 and filled[rank] < task.buffer_frames:
                keeper[row], slot[row] = rank, filled[rank]
                filled[rank] += 1
    return keeper, slot


class _SharedFrames:
    """The frames that one rank keeps, where the others can read them."""

    def __init__(self, store: FrameStore, task: LoadTask, rank: int, *, create: bool) -> None:
        self._blocks: list[shared_memory.SharedMemory] = []
        self._create = create
        self.arrays: dict[str, NDArray[Any]] = {}
        for name in store.columns:
            shape = (max(1, task.buffer_frames), *store.shapes[name])
            size = int(np.prod(shape)) * store.dtypes[name].itemsize
            block = _shared_block(f"{task.shared_name}{rank}{name}", size, create=create)
            self._blocks.append(block)
            self.arrays[name] = np.ndarray(shape, store.dtypes[name], buffer=block.buf)

    def fill(self, store: FrameStore, rows: NDArray[np.int64], slots: NDArray[np.int64]) -> None:
        """Fill it as the first epoch does."""
        for name, array in store.read(rows).items():
            self.arrays[name][slots] = array

    def get(self, slot: int) -> dict[str, NDArray[Any]]:
        return {name: array[slot] for name, array in self.arrays.items()}

    def close(self) -> None:
        self.arrays.clear()
        for block in self._blocks:
            block.close()
            if self._create:
                block.unlink()


def _shared_block(name: str, size: int, *, create: bool) -> shared_memory.SharedMemory:
    if create:
        return shared_memory.SharedMemory(name, create=True, size=size)
    for _ in range(500):
        try:
            return shared_memory.SharedMemory(name)
        except (FileNotFoundError, ValueError):
            time.sleep(0.01)  # the rank that owns it has not come so far
    raise TimeoutError(f"the shared memory {name} did not appear")


_LOADERS = {"planned": _planned, "lru": _lru, "nopfs": _nopfs}


def corpus_files(folder: Path) -> tuple[str, ...]:
    """Files of a corpus, in order."""
    return tuple(str(path) for path in sorted(folder.glob("*.h5")))
