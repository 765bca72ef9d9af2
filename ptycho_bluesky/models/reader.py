"""A network together with the preprocessing that it was trained with: counts in, phase out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ptycho_bluesky.errors import InputError

__all__ = ["PhaseReader", "Preprocessing"]


@dataclass(frozen=True)
class Preprocessing:
    """From canonical counts to the input of the network: ``scale · sqrt(count_scale · counts)``, or without the root.

    Attributes
    ----------
    sqrt : bool
        Take the square root, which makes photon noise the same everywhere and compresses the range.
    scale : float
        Factor after the root, so that the network sees values around 1.
    """

    sqrt: bool = True
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not np.isfinite(self.scale) or self.scale <= 0:
            raise InputError(f"preprocessing scale = {self.scale}", "it must be positive and finite")

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Preprocessing:
        """Inverse of `as_dict`; unknown keys are refused, because they would change what the network sees."""
        unknown = set(content) - set(cls.__dataclass_fields__)
        if unknown:
            raise InputError(f"preprocessing {sorted(unknown)}", f"known keys are {sorted(cls.__dataclass_fields__)}")
        return cls(bool(content.get("sqrt", True)), float(content.get("scale", 1.0)))

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)


class PhaseReader(nn.Module):
    """Counts in, phase out: what the exported graph computes, in torch.

    Parameters
    ----------
    network : torch.nn.Module
        Maps (n, 1, H, W) preprocessed frames to (n, 1, h, w).
    preprocessing : Preprocessing
    """

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network = network
        self.preprocessing = preprocessing

    def prepare(self, counts: Tensor, count_scale: float | Tensor = 1.0) -> Tensor:
        """Preprocess counts (n, 1, H, W); counts below zero (dark-subtracted frames) read as zero under the root."""
        value = counts * count_scale
        if self.preprocessing.sqrt:
            value = torch.sqrt(torch.clamp_min(value, 0.0))
        return value * self.preprocessing.scale

    def forward(self, counts: Tensor, count_scale: float | Tensor = 1.0) -> Tensor:
        """Read frames.

        Parameters
        ----------
        counts : Tensor of float32, shape (n, 1, H, W)
            Canonical frames in counts, zero frequency at ``[H//2, W//2]``.
        count_scale : float or Tensor of shape ()
            Brings the counts to the exposure that the network was trained at.

        Returns
        -------
        Tensor, shape (n, 1, h, w)
            Phase in rad.
        """
        return self.network(self.prepare(counts, count_scale))
