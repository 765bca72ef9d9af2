"""What every network here is: chains of layers between named values, so that one table runs, exports and reloads it."""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["AMPLITUDE", "IMAGE", "PHASE", "Network", "ScaledTanh", "Stage", "initialise_he"]

IMAGE, PHASE, AMPLITUDE = "image", "phase_rad", "amplitude"
"""Names of the values that a network starts from and ends with."""


class Stage(NamedTuple):
    """A chain of layers: the network's child of this name, read from one value, written to another."""

    child: str
    source: str
    target: str


class ScaledTanh(nn.Module):
    """π·tanh: a phase in rad."""

    def forward(self, value: Tensor) -> Tensor:
        """Map any real tensor into (−π, π)."""
        return math.pi * torch.tanh(value)


class Network(nn.Module):
    """A network on preprocessed frames, described by its stages.

    Attributes
    ----------
    stages : tuple of Stage
        In the order in which they run; each child is a `torch.nn.Sequential`.
    """

    stages: ClassVar[tuple[Stage, ...]]

    @property
    def architecture(self) -> str:
        """Name by which `ptycho_bluesky.models.build` makes the network."""
        raise NotImplementedError

    @property
    def options(self) -> dict[str, Any]:
        """What `ptycho_bluesky.models.build` needs beside the name, JSON-able."""
        return {}

    @property
    def shape_multiple(self) -> int:
        """Rows and columns of a frame are multiples of it: four halvings."""
        return 16

    def patch_shape(self, image_shape: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the answer to frames of (H, W); its centre is theirs."""
        return image_shape

    @property
    def reads_amplitude(self) -> bool:
        """Whether the network answers an amplitude beside the phase."""
        return any(stage.target == AMPLITUDE for stage in self.stages)

    def values(self, image: Tensor) -> dict[str, Tensor]:
        """Run every stage.

        Parameters
        ----------
        image : Tensor, shape (n, 1, H, W)
            Preprocessed frames.

        Returns
        -------
        dict of str to Tensor
            The value of each stage by the name of its target.
        """
        found = {IMAGE: image}
        for stage in self.stages:
            found[stage.target] = self.get_submodule(stage.child)(found[stage.source])
        return found

    def forward(self, image: Tensor) -> Tensor:
        """Read frames.

        Parameters
        ----------
        image : Tensor, shape (n, 1, H, W)
            Preprocessed frames; H and W multiples of `shape_multiple`.

        Returns
        -------
        Tensor, shape (n, 1, h, w)
            Phase in rad.
        """
        return self.values(image)[PHASE]


def initialise_he(network: nn.Module) -> None:
    """Draw normal weights of variance 2/fan-in and set biases to zero (He et al., arXiv 1502.01852).

    It keeps the signal's size through many ReLU layers.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
