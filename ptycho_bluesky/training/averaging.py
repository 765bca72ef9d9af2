"""A running mean of the weights: the model that is served while the optimiser keeps moving."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["WeightAverage"]


class WeightAverage:
    """Exponential mean of a network's parameters over the last steps.

    With a learning rate that never falls, the weights circle about a minimum; their mean lies nearer to it than any of
    them (Polyak and Juditsky, SIAM J. Control Optim. 30, 838, 1992). A continual training has no last step towards
    which to anneal, so each served model is such a mean.

    Parameters
    ----------
    network : torch.nn.Module
    horizon_steps : float
        Steps over which the mean reaches; the first steps of a training are averaged over fewer.
    """

    def __init__(self, network: nn.Module, horizon_steps: float) -> None:
        self.decay = max(0.0, 1.0 - 1.0 / max(1.0, horizon_steps))
        self.parameters = list(network.parameters())
        self.mean = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters after a step (counted from 1)."""
        decay = min(self.decay, (1.0 + step) / (10.0 + step))
        for mean, parameter in zip(self.mean, self.parameters, strict=True):
            mean.lerp_(parameter, 1.0 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange mean and parameters; a second call undoes it."""
        for parameter, mean in zip(self.parameters, self.mean, strict=True):
            held = parameter.detach().clone()
            parameter.copy_(mean)
            mean.copy_(held)

    @torch.no_grad()
    def load(self, mean: list[Tensor]) -> None:
        """Take over a mean from a checkpoint."""
        for own, given in zip(self.mean, mean, strict=True):
            own.copy_(given)
