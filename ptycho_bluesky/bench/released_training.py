"""The released training loop, written anew for comparison, as plainly as its description has it.

Raw counts in, L1 on the phase of the whole patch, Adam with a cyclic learning rate (triangular2, 1e-4 to 5e-4, half
cycle 6 epochs), batches of 64 from a shuffling DataLoader, single precision, PyTorch's default layout (Babu et al.,
Nat. Commun. 14, 7059, 2023).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ptycho_bluesky.models.ptychonn import PtychoNN2
from ptycho_bluesky.training.corpus import TrainingArrays

__all__ = ["BATCH_SIZE", "ReleasedTraining"]

BATCH_SIZE = 64
RATES = (1e-4, 5e-4)
HALF_CYCLE_EPOCHS = 6


class ReleasedTraining:
    """A plain PyTorch loop over arrays in memory.

    Parameters
    ----------
    arrays : TrainingArrays
    seed : int
    """

    def __init__(self, arrays: TrainingArrays, seed: int = 0) -> None:
        torch.manual_seed(seed)
        counts = torch.from_numpy(arrays.image.astype("float32"))[:, None]
        data = TensorDataset(counts, torch.from_numpy(arrays.phase_rad)[:, None])
        shuffle = torch.Generator().manual_seed(seed)
        self.loader = DataLoader(data, BATCH_SIZE, shuffle=True, generator=shuffle)
        self.network = PtychoNN2("torch")
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=RATES[0])
        self.schedule = torch.optim.lr_scheduler.CyclicLR(
            self.optimiser,
            *RATES,
            step_size_up=HALF_CYCLE_EPOCHS * len(self.loader),
            mode="triangular2",
            cycle_momentum=False,
        )
        self.loss = nn.L1Loss()
        self.epoch = 0

    def steps(self) -> Iterator[int]:
        """Take steps without end; yields the frames of each."""
        while True:
            for counts, phase in self.loader:
                self.optimiser.zero_grad()
                loss = self.loss(self.network(counts), phase)
                loss.backward()
                self.optimiser.step()
                self.schedule.step()
                yield len(counts)
            self.epoch += 1

    @torch.inference_mode()
    def read(self, counts: Tensor) -> Tensor:
        """Phase (n, 1, h, w) of frames (n, 1, H, W) in counts."""
        self.network.eval()
        found = torch.cat([self.network(part) for part in counts.split(BATCH_SIZE)])
        self.network.train()
        return found
