"""One training on several processes, as ``torchrun`` starts them."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ptycho_bluesky.errors import InputError

__all__ = ["Ranks"]

TIMEOUT_S = 1800.0
"""For the slowest rank; the first read of a large corpus may keep the others waiting."""


class Ranks:
    """The processes of a training; one alone by default.

    Attributes
    ----------
    rank, world_size : int
        This process, and how many there are.
    """

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size

    @classmethod
    def from_environment(cls, device: str = "auto") -> Ranks:
        """Join the processes that ``torchrun`` started; alone where it did not.

        Parameters
        ----------
        device : str
            ``cpu`` talks by gloo, ``cuda`` by NCCL with one GPU a process of a machine; ``auto`` takes GPUs where
            there are any.

        Raises
        ------
        InputError
            More processes on this machine than it has GPUs.
        """
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        if world_size == 1:
            return cls()
        on_gpus = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if on_gpus:
            if local >= torch.cuda.device_count():
                raise InputError(
                    f"local rank {local}", f"this machine has {torch.cuda.device_count()} GPUs", "start as many ranks"
                )
            torch.cuda.set_device(local)
        distributed.init_process_group("nccl" if on_gpus else "gloo", timeout=timedelta(seconds=TIMEOUT_S))
        return cls(distributed.get_rank(), world_size)

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module, its gradients averaged over the processes."""
        if self.world_size == 1:
            return module
        # gradients as views of what is sent: one copy less, and the layout of the weights does not matter
        return DistributedDataParallel(module, gradient_as_bucket_view=True)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over the processes, in place; the same on each."""
        if self.world_size > 1:
            distributed.all_reduce(values)
        return values

    def share(self, value: Any) -> Any:
        """What the first process has, on each."""
        if self.world_size == 1:
            return value
        held = [value]
        distributed.broadcast_object_list(held, src=0)
        return held[0]

    def close(self, *, failed: bool = False) -> None:
        """Leave the group, once every process has come so far; one that failed does not wait for the others."""
        if self.world_size > 1 and distributed.is_initialized():
            if not failed:
                distributed.barrier()
            distributed.destroy_process_group()
