"""A network together with the preprocessing that it was trained with: counts in, phase out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.models.network import Network

__all__ = ["PhaseReader", "Preprocessing"]


@dataclass(frozen=True)
class Preprocessing:
    """From canonical counts to the input of the network: ``scale · (sqrt(count_scale · counts) − offset)``.

    Attributes
    ----------
    sqrt : bool
        Take the square root, which makes photon noise the same everywhere and compresses the range.
    scale : float
        Factor at the end, so that the network sees values around 1.
    offset : ndarray of float32, shape (H, W), or None
        The mean frame (after the root). A zone plate's ring is the same in every frame and much brighter than what the
        sample changes in it; taken away, the network need not learn to look past it (three times fewer frame-updates to
        the same loss). None takes nothing away.
    """

    sqrt: bool = True
    scale: float = 1.0
    offset: NDArray[np.float32] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.offset is not None and (np.ndim(self.offset) != 2 or not np.isfinite(self.offset).all()):
            raise InputError(f"preprocessing offset of shape {np.shape(self.offset)}", "it must be (H, W) and finite")
        if not np.isfinite(self.scale) or self.scale <= 0:
            raise InputError(f"preprocessing scale = {self.scale}", "it must be positive and finite")

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], offset: NDArray[np.float32] | None = None) -> Preprocessing:
        """Inverse of `as_dict`, given the offset; unknown keys are refused: they would change what the network sees."""
        unknown = set(content) - set(cls.__dataclass_fields__)
        if unknown:
            raise InputError(f"preprocessing {sorted(unknown)}", f"known keys are {sorted(cls.__dataclass_fields__)}")
        if bool(content.get("offset", False)) != (offset is not None):
            raise InputError("preprocessing with an offset that is missing, or not stated", "the two belong together")
        return cls(bool(content.get("sqrt", True)), float(content.get("scale", 1.0)), offset)

    def at_light(self, factor: float) -> Preprocessing:
        """The preprocessing that makes of ``factor`` times the counts what this one makes of the counts.

        Raises
        ------
        InputError
            The factor is not positive.
        """
        if not (np.isfinite(factor) and factor > 0):
            raise InputError(f"light × {factor}", "counts are brought to another light by a positive factor")
        by = float(np.sqrt(factor)) if self.sqrt else float(factor)
        offset = None if self.offset is None else (self.offset * np.float32(by)).astype(np.float32)
        return Preprocessing(self.sqrt, self.scale / by, offset)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form; of the offset only whether there is one."""
        return {"sqrt": self.sqrt, "scale": self.scale, "offset": self.offset is not None}


class PhaseReader(nn.Module):
    """Counts in, phase out: what the exported graph computes, in torch.

    Parameters
    ----------
    network : Network
        Maps (n, 1, H, W) preprocessed frames to (n, 1, h, w).
    preprocessing : Preprocessing
    """

    offset: Tensor | None

    def __init__(self, network: Network, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network = network
        self.preprocessing = preprocessing
        offset = None if preprocessing.offset is None else torch.from_numpy(np.array(preprocessing.offset, np.float32))
        # not persistent: the state dict stays that of the published network
        self.register_buffer("offset", None if offset is None else offset[None, None], persistent=False)

    def prepare(self, counts: Tensor, count_scale: float | Tensor = 1.0) -> Tensor:
        """Preprocess counts (n, 1, H, W); counts below zero (dark-subtracted frames) read as zero under the root."""
        value = counts * count_scale
        if self.preprocessing.sqrt:
            value = torch.sqrt(torch.clamp_min(value, 0.0))
        if self.offset is not None:
            value = value - self.offset
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
