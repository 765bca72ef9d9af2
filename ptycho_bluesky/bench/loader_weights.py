"""Whether two ranks with unequal batches learn the same weights as a plain sampler with the same global batches."""

from __future__ import annotations

import multiprocessing
import socket
from datetime import timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.training.loading import DiskLoader, FrameStore, Schedule

__all__ = ["weights_difference"]

RANKS = 2
NUM_EPOCHS = 3
MAX_FRAMES = 1024
TIMEOUT_S = 300.0


def weights_difference(files: tuple[str, ...], dtype: str, seed: int, global_batch: int = 128) -> float:
    """Largest difference of a weight after three epochs.

    Parameters
    ----------
    files : tuple of str
        Corpus, of which one file is used.
    dtype : {"float32", "float64"}
    seed : int
    global_batch : int

    Returns
    -------
    float
        Of a small convolutional network trained by stochastic gradient descent: two ranks of
        DistributedDataParallel over gloo, fed by `DiskLoader`, against one process fed by a plain sampler.
    """
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    port = _free_port()
    processes = [
        context.Process(target=_train_rank, args=(files[:1], dtype, seed, global_batch, rank, port, results))
        for rank in range(RANKS)
    ]
    for process in processes:
        process.start()
    try:
        ours = results.get(timeout=TIMEOUT_S)
    finally:
        for process in processes:
            process.join(30.0)
            if process.is_alive():
                process.kill()
    return float(np.abs(ours - _train_plain(files[:1], dtype, seed, global_batch)).max())


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _train_rank(
    files: tuple[str, ...], dtype: str, seed: int, global_batch: int, rank: int, port: int, results: Any
) -> None:
    import torch
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=RANKS,
        timeout=timedelta(seconds=TIMEOUT_S),
    )
    store = FrameStore(files)
    schedule = Schedule(len(store), global_batch, RANKS, len(store) // (2 * RANKS), seed)
    network = DistributedDataParallel(_network(dtype, seed))
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-2)
    for batch in DiskLoader(store, schedule, rank, NUM_EPOCHS):
        optimiser.zero_grad()
        image, label = _tensors(batch.arrays, dtype)
        # A rank without frames still has its part in the average: the empty sum, zero.
        error = (network(image) - label).abs().mean(dim=(1, 2, 3)).sum() / max(1, len(image))
        (error * batch.gradient_weight(RANKS)).backward()
        optimiser.step()
    if rank == 0:
        results.put(_flat(network.module))
    store.close()
    distributed.barrier()
    distributed.destroy_process_group()


def _train_plain(files: tuple[str, ...], dtype: str, seed: int, global_batch: int) -> NDArray[np.float64]:
    import torch

    store = FrameStore(files)
    everything = store.read(np.arange(len(store)))
    store.close()
    schedule = Schedule(len(everything["image"]), global_batch, seed=seed)
    network = _network(dtype, seed)
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-2)
    for epoch in range(NUM_EPOCHS):
        for rows in schedule.global_batches(epoch):
            optimiser.zero_grad()
            image, label = _tensors({name: array[rows] for name, array in everything.items()}, dtype)
            (network(image) - label).abs().mean().backward()
            optimiser.step()
    return _flat(network)


def _network(dtype: str, seed: int) -> Any:
    import torch
    from torch import nn

    torch.manual_seed(seed)
    return nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 1, 3, padding=1)).to(
        getattr(torch, dtype)
    )


def _tensors(arrays: dict[str, NDArray[Any]], dtype: str) -> tuple[Any, Any]:
    """Roots of the counts, and phases averaged over the network's pixels."""
    import torch

    image = torch.from_numpy(np.sqrt(arrays["image"].astype(np.float64)))[:, None].to(getattr(torch, dtype))
    label = torch.from_numpy(arrays["phase_rad"])[:, None].to(getattr(torch, dtype))
    return image, torch.nn.functional.avg_pool2d(label, 4)


def _flat(network: Any) -> NDArray[np.float64]:
    return np.concatenate([value.detach().numpy().astype(np.float64).ravel() for value in network.parameters()])
