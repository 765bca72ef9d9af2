"""The planned loader as a `torch.utils.data` dataset, for any training loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.training.loading.disk_loader import DiskLoader

__all__ = ["PlannedBatches", "as_data_loader"]


class PlannedBatches(IterableDataset[Any]):
    """Batches of a `DiskLoader` as dictionaries of tensors.

    Parameters
    ----------
    loader : DiskLoader

    Notes
    -----
    Each item is a whole local batch: the store's columns as tensors (n, ...), ``rows`` (n,) int64, and
    ``gradient_weight``, by which the rank's mean loss is multiplied before gradients are averaged over ranks (as
    DistributedDataParallel does). n differs between ranks and may be 0: such a rank still takes part in the averaging,
    with a loss of 0. More than one worker is refused (InputError): each would give every frame.
    """

    def __init__(self, loader: DiskLoader) -> None:
        super().__init__()
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise InputError(
                f"num_workers = {worker.num_workers}", "each worker would give every frame of the plan",
                "use as_data_loader, whose loader reads ahead by itself",
            )  # fmt: skip
        for batch in self.loader:
            yield {
                **{name: torch.from_numpy(array) for name, array in batch.arrays.items()},
                "rows": torch.from_numpy(batch.step.rows),
                "gradient_weight": batch.gradient_weight(self.loader.schedule.world_size),
            }


def as_data_loader(loader: DiskLoader) -> DataLoader[Any]:
    """A DataLoader that hands the planned batches on as they are; reading ahead is the loader's own."""
    return DataLoader(PlannedBatches(loader), batch_size=None, num_workers=0)
