"""Which frame is read by which rank in which step, and which it keeps: planned from the seed, before the first read.

After SOLAR (Sun et al., PVLDB 16, 2022, arXiv 2211.00224): shuffles fixed up front, eviction that knows the future, the
frames of one global batch given to the rank that holds them, and local batches that may differ in size so that reads
from disk are balanced. Every rank computes the same plan, so nothing about it is ever communicated.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError

__all__ = ["BufferPolicy", "Schedule", "Step", "order_epochs"]

BufferPolicy = Literal["pin", "clairvoyant"]
NOBODY = -1


@dataclass(frozen=True)
class Step:
    """One global batch, as one rank sees it.

    Attributes
    ----------
    epoch, index : int
        Epoch, and number of the step in it.
    rows : ndarray of int64, shape (n,)
        Frames of this rank; ranks may have different numbers of them, even none.
    held : ndarray of bool, shape (n,)
        True where the frame is in this rank's buffer; the others are read from disk.
    keep : ndarray of int64
        Frames that enter the buffer in this step.
    evict : ndarray of int64
        Frames that leave it in this step, before the others enter.
    share : float
        Frames of this rank over those of the global batch: the weight of its mean gradient in the global one.
    """

    epoch: int
    index: int
    rows: NDArray[np.int64]
    held: NDArray[np.bool_]
    keep: NDArray[np.int64]
    evict: NDArray[np.int64]
    share: float


@dataclass(frozen=True)
class Schedule:
    """The plan of a training.

    Parameters
    ----------
    num_frames : int
        N, frames of the corpus.
    global_batch : int
        Frames of one optimiser step over all ranks.
    world_size : int
        Ranks.
    buffer_frames : int
        Frames that each rank keeps in memory.
    seed : int
        Of every shuffle.
    policy : {"pin", "clairvoyant"}
        ``pin``: the first ``world_size · buffer_frames`` frames of the corpus are read once and kept; what is then read
        lies together at the end of the corpus, which makes range reads dense. ``clairvoyant``: a full buffer gives up
        the frame that is needed last (Belady, IBM Syst. J. 5, 78, 1966).
    epoch_order : tuple of int, optional
        Shuffles to use, by number, one an epoch; 0, 1, 2, … by default.

    Raises
    ------
    InputError
        A number is out of range.

    Notes
    -----
    With C frames in the buffers no policy reads fewer than N − C an epoch once they are full, and pinning any C frames
    attains it. The last batch of an epoch is smaller where N is no multiple of the batch.
    """

    num_frames: int
    global_batch: int
    world_size: int = 1
    buffer_frames: int = 0
    seed: int = 0
    policy: BufferPolicy = "pin"
    epoch_order: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name, least in (("num_frames", 1), ("global_batch", 1), ("world_size", 1), ("buffer_frames", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} = {getattr(self, name)}", f"it is at least {least}")
        if self.policy not in ("pin", "clairvoyant"):
            raise InputError(f"policy = {self.policy!r}", "known ones are pin and clairvoyant")
        if self.epoch_order is not None and not self.epoch_order:
            raise InputError("epoch_order = ()", "it names at least one shuffle", "leave it out")

    @property
    def steps_per_epoch(self) -> int:
        """Global batches of an epoch."""
        return -(-self.num_frames // self.global_batch)

    @property
    def fewest_reads(self) -> int:
        """N − C: frames that any policy reads in an epoch, the first excepted."""
        return max(0, self.num_frames - self.world_size * self.buffer_frames)

    def permutation(self, epoch: int) -> NDArray[np.int64]:
        """Order of the frames in an epoch, shape (N,)."""
        number = epoch if self.epoch_order is None else self.epoch_order[epoch % len(self.epoch_order)]
        return np.random.default_rng([self.seed, 0, number]).permutation(self.num_frames)

    def global_batches(self, epoch: int) -> Iterator[NDArray[np.int64]]:
        """Frames of each step of an epoch, over all ranks."""
        order = self.permutation(epoch)
        for first in range(0, self.num_frames, self.global_batch):
            yield order[first : first + self.global_batch]

    def steps(self, rank: int, num_epochs: int) -> Iterator[Step]:
        """Steps of one rank over a number of epochs, from the first one.

        Raises
        ------
        InputError
            There is no such rank.
        """
        if not 0 <= rank < self.world_size:
            raise InputError(f"rank {rank}", f"there are {self.world_size}")
        buffers = _Pinned(self) if self.policy == "pin" else _Clairvoyant(self, num_epochs)
        for epoch in range(num_epochs):
            buffers.begin(epoch)
            for index, rows in enumerate(self.global_batches(epoch)):
                holder = buffers.holder(rows)
                owner = share_reads(holder, self.world_size)
                keep, evict = buffers.update(rows, holder, owner, rank)
                mine = owner == rank
                yield Step(epoch, index, rows[mine], holder[mine] == rank, keep, evict, mine.sum() / len(rows))


def order_epochs(schedule: Schedule, num_epochs: int) -> tuple[int, ...]:
    """Order of shuffles in which each next one begins with the most of what the last one ends with.

    SOLAR's second design; a greedy choice stands for its travelling-salesman search.

    Parameters
    ----------
    schedule : Schedule
    num_epochs : int
        Shuffles 0 to ``num_epochs`` − 1 are ordered; the first stays.

    Returns
    -------
    tuple of int
        For `Schedule.epoch_order`.

    Notes
    -----
    Time grows with the square of ``num_epochs`` times the frames, memory with their product.
    """
    half = schedule.num_frames // 2
    heads = np.zeros((num_epochs, schedule.num_frames), dtype=np.bool_)
    tails = np.zeros_like(heads)
    for epoch in range(num_epochs):
        order = schedule.permutation(epoch)
        heads[epoch, order[:half]] = True
        tails[epoch, order[half:]] = True
    chosen, left = [0], set(range(1, num_epochs))
    while left:
        last = tails[chosen[-1]]
        best = max(left, key=lambda epoch: (int((last & heads[epoch]).sum()), -epoch))
        chosen.append(best)
        left.remove(best)
    return tuple(chosen)


def share_reads(holder: NDArray[np.int64], world_size: int) -> NDArray[np.int64]:
    """Give frames to the rank that holds them, and the rest in turn, so that all ranks read alike.

    Parameters
    ----------
    holder : ndarray of int64, shape (n,)
        Rank whose buffer has the frame, −1 where none has.
    world_size : int

    Returns
    -------
    ndarray of int64, shape (n,)
        Rank of each frame. Reads differ by one at most between ranks; the ranks with the fewest held frames read the
        odd ones.
    """
    owner = holder.copy()
    missing = np.flatnonzero(holder == NOBODY)
    fewest_first = np.argsort(np.bincount(holder[holder != NOBODY], minlength=world_size), kind="stable")
    owner[missing] = fewest_first[np.arange(len(missing)) % world_size]
    return owner


class _Pinned:
    """The first frames of the corpus stay, dealt to the ranks in turn."""

    def __init__(self, schedule: Schedule) -> None:
        self._world_size = schedule.world_size
        self._num_pinned = min(schedule.num_frames, schedule.world_size * schedule.buffer_frames)
        self._read = np.zeros(self._num_pinned, dtype=np.bool_)

    def begin(self, epoch: int) -> None:
        """Nothing changes between epochs."""

    def holder(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        holder = np.full(len(rows), NOBODY, dtype=np.int64)
        pinned = np.flatnonzero(rows < self._num_pinned)
        known = pinned[self._read[rows[pinned]]]
        holder[known] = rows[known] % self._world_size
        return holder

    def update(
        self, rows: NDArray[np.int64], holder: NDArray[np.int64], owner: NDArray[np.int64], rank: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        new = (rows < self._num_pinned) & (holder == NOBODY)
        # Who reads a pinned frame first is who keeps it.
        owner[new] = rows[new] % self._world_size
        self._read[rows[new]] = True
        return rows[new & (owner == rank)], np.zeros(0, dtype=np.int64)


class _Clairvoyant:
    """A full buffer gives up the frame that is needed last; a frame needed later than all others is not kept."""

    def __init__(self, schedule: Schedule, num_epochs: int) -> None:
        self._schedule, self._num_epochs = schedule, num_epochs
        self._holder = np.full(schedule.num_frames, NOBODY, dtype=np.int64)
        self._next_use = np.zeros(schedule.num_frames, dtype=np.int64)
        self._coming = np.zeros(schedule.num_frames, dtype=np.int64)
        # Of each rank, (−next use, frame); an entry whose use has passed is out of date.
        self._latest: list[list[tuple[int, int]]] = [[] for _ in range(schedule.world_size)]
        self._count = np.zeros(schedule.world_size, dtype=np.int64)

    def begin(self, epoch: int) -> None:
        size = self._schedule.num_frames
        following = np.arange(size) + (epoch + 1) * size
        if epoch + 1 < self._num_epochs:
            self._coming[self._schedule.permutation(epoch + 1)] = following
        else:
            self._coming[:] = np.iinfo(np.int64).max

    def holder(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._holder[rows]

    def update(
        self, rows: NDArray[np.int64], holder: NDArray[np.int64], owner: NDArray[np.int64], rank: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        keep: list[int] = []
        evict: list[int] = []
        self._next_use[rows] = self._coming[rows]
        for row, held, reader in zip(rows.tolist(), holder.tolist(), owner.tolist(), strict=True):
            use = int(self._next_use[row])
            if held != NOBODY:
                heapq.heappush(self._latest[held], (-use, row))
                continue
            given_up = self._admit(row, use, reader)
            if reader != rank:
                continue
            if self._holder[row] == rank:
                keep.append(row)
            if given_up is not None:
                evict.append(given_up)
        # What came and went within one step never was in the buffer.
        passing = set(keep) & set(evict)
        return (
            np.array([row for row in keep if row not in passing], dtype=np.int64),
            np.array([row for row in evict if row not in passing], dtype=np.int64),
        )

    def _admit(self, row: int, use: int, rank: int) -> int | None:
        """Let a frame into a buffer if it is worth its place; the frame that goes for it, or None."""
        heap = self._latest[rank]
        given_up = None
        if self._count[rank] >= self._schedule.buffer_frames:
            while heap and (self._holder[heap[0][1]] != rank or -heap[0][0] != self._next_use[heap[0][1]]):
                heapq.heappop(heap)
            if not heap or -heap[0][0] <= use:
                return None
            given_up = heapq.heappop(heap)[1]
            self._holder[given_up] = NOBODY
            self._count[rank] -= 1
        self._holder[row] = rank
        self._count[rank] += 1
        heapq.heappush(heap, (-use, row))
        return given_up
