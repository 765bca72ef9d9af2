"""Several processes on one reconstruction: who has which frames and which part of the object, and what they exchange.

Frames are divided, along the scan's longer axis, into equal counts; a worker holds the part of the object that its
frames reach, its tile. Where tiles overlap each worker knows only its own frames' part of a gradient: those strips are
exchanged, nothing else of the object. Scalars and the probe's gradient are summed over all. Started by ``torchrun``, on
CPUs by gloo, on GPUs by nccl.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from ptycho_bluesky.errors import InputError

__all__ = ["Alone", "Tile", "TorchWorkers", "Workers", "joined_workers", "make_tiles"]


@dataclass(frozen=True)
class Tile:
    """Part of a scan.

    Attributes
    ----------
    rows : ndarray of int64
        Frames, ascending.
    first, last : tuple of int
        Object index (row, col) of the tile's pixel ``[0, 0]``, and one past its last.
    """

    rows: NDArray[np.int64]
    first: tuple[int, int]
    last: tuple[int, int]

    @property
    def slices(self) -> tuple[slice, slice]:
        """Where the tile lies in the object."""
        return slice(self.first[0], self.last[0]), slice(self.first[1], self.last[1])

    def shared(self, other: Tile) -> tuple[slice, slice] | None:
        """What another tile has of this one, in indices of this one; None when they are apart."""
        low = [max(a, b) for a, b in zip(self.first, other.first, strict=True)]
        high = [min(a, b) for a, b in zip(self.last, other.last, strict=True)]
        if any(a >= b for a, b in zip(low, high, strict=True)):
            return None
        row, col = (slice(a - f, b - f) for a, b, f in zip(low, high, self.first, strict=True))
        return row, col


def make_tiles(corner: NDArray[np.int64], size_px: int, shape: tuple[int, int], count: int) -> list[Tile]:
    """Divide frames into equal counts along the longer axis of their corners (n, 2).

    Raises
    ------
    InputError
        There are fewer frames than workers.
    """
    if len(corner) < count:
        raise InputError(f"{len(corner)} frames for {count} workers", "each needs one", "use fewer workers")
    if count == 1:
        return [Tile(np.arange(len(corner)), (0, 0), shape)]
    axis = int(np.argmax(np.ptp(corner, axis=0)))
    order = np.argsort(corner[:, axis], kind="stable")
    tiles = []
    for part in np.array_split(order, count):
        rows = np.sort(part)
        low, high = corner[rows].min(axis=0), corner[rows].max(axis=0) + size_px
        tiles.append(Tile(rows, (int(low[0]), int(low[1])), (int(high[0]), int(high[1]))))
    return tiles


class Workers(Protocol):
    """What the processes of one reconstruction say to each other."""

    rank: int
    count: int

    def sum(self, value: Tensor) -> Tensor:
        """Sum over all workers, in place."""
        ...

    def largest(self, value: Tensor) -> Tensor:
        """Largest of all workers, in place."""
        ...

    def sum_shared(self, canvas: Tensor, tiles: Sequence[Tile]) -> None:
        """Add what the others have where their tiles overlap this worker's canvas."""
        ...


class Alone:
    """One process."""

    rank, count = 0, 1

    def sum(self, value: Tensor) -> Tensor:
        """Nothing to add."""
        return value

    def largest(self, value: Tensor) -> Tensor:
        """Nothing to compare."""
        return value

    def sum_shared(self, canvas: Tensor, tiles: Sequence[Tile]) -> None:
        """Nothing to add."""


class TorchWorkers:
    """The processes of torch's default group.

    Attributes
    ----------
    bytes_sent : int
        Of this worker's strips.
    """

    def __init__(self) -> None:
        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        self.bytes_sent = 0

    def sum(self, value: Tensor) -> Tensor:
        """Sum over all workers, in place."""
        dist.all_reduce(_real(value))
        return value

    def largest(self, value: Tensor) -> Tensor:
        """Largest of all workers, in place."""
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return value

    def sum_shared(self, canvas: Tensor, tiles: Sequence[Tile]) -> None:
        """Exchange strips with every overlapping tile and add them in the order of the ranks.

        In that order every worker forms the same sum, bit for bit.
        """
        mine = tiles[self.rank]
        regions = {rank: mine.shared(tile) for rank, tile in enumerate(tiles) if rank != self.rank}
        regions = {rank: region for rank, region in regions.items() if region is not None}
        sent = {rank: canvas[region].contiguous() for rank, region in regions.items()}
        got = {rank: torch.empty_like(strip) for rank, strip in sent.items()}
        requests = [
            dist.P2POp(call, _real(strips[rank]), rank)
            for rank in regions
            for call, strips in ((dist.isend, sent), (dist.irecv, got))
        ]
        for work in dist.batch_isend_irecv(requests) if requests else []:
            work.wait()
        self.bytes_sent += sum(strip.numel() * strip.element_size() for strip in sent.values())
        own = canvas.clone()
        for region in regions.values():
            canvas[region] = 0
        reached = torch.zeros(canvas.shape, dtype=torch.bool, device=canvas.device)
        for region in regions.values():
            reached[region] = True
        for rank in sorted({*regions, self.rank}):
            if rank == self.rank:
                canvas[reached] += own[reached]
            else:
                canvas[regions[rank]] += got[rank]


def _real(value: Tensor) -> Tensor:
    """Real numbers sharing the memory: gloo sends no complex ones."""
    return torch.view_as_real(value) if value.is_complex() else value


@contextmanager
def joined_workers() -> Iterator[Workers]:
    """The workers that ``torchrun`` has started, or this process alone.

    Yields
    ------
    Workers
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Alone()
        return
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield TorchWorkers()
    finally:
        dist.destroy_process_group()
