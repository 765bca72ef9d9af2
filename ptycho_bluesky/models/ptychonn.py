"""PtychoNN 2.0, exactly as published: one diffraction frame in, the phase of the object around the probe out.

Architecture and weights: Babu et al., Nat. Commun. 14, 7059 (2023), and the state dict released with it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ptycho_bluesky.errors import InputError

__all__ = ["PtychoNN2", "ScaledTanh", "load_state"]

SHAPE_MULTIPLE = 16
"""Four poolings: rows and columns of a frame are multiples of 2**4."""


class ScaledTanh(nn.Module):
    """π·tanh: a phase in rad."""

    def forward(self, value: Tensor) -> Tensor:
        """Map any real tensor into (−π, π)."""
        return math.pi * torch.tanh(value)


def _block(channels_in: int, channels_out: int, last: nn.Module) -> list[nn.Module]:
    return [
        nn.Conv2d(channels_in, channels_out, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels_out, channels_out, 3, padding=1),
        nn.ReLU(),
        last,
    ]


class PtychoNN2(nn.Module):
    """PtychoNN 2.0: 733 921 parameters, state-dict keys of the published weights.

    Encoder of four blocks (two 3×3 convolutions with ReLU, 2×2 max pool; 1→16→32→64→128 channels), decoder of four
    blocks (two convolutions, bilinear ×2 upsampling with half-pixel centres; 128→128→64→32→16), a convolution to one
    channel and π·tanh. No skips, no batch normalisation.

    Parameters
    ----------
    initialisation : {"he", "torch"}
        ``he``: normal weights of variance 2/fan-in and zero biases (He et al., arXiv 1502.01852), which keeps the
        signal's size through 17 ReLU layers; ``torch``: PyTorch's default, as the released recipe has it.
    """

    def __init__(self, initialisation: Literal["he", "torch"] = "he") -> None:
        super().__init__()
        encoder: list[nn.Module] = []
        for channels_in, channels_out in ((1, 16), (16, 32), (32, 64), (64, 128)):
            encoder += _block(channels_in, channels_out, nn.MaxPool2d(2))
        self.encoder = nn.Sequential(*encoder)
        decoder: list[nn.Module] = []
        for channels_in, channels_out in ((128, 128), (128, 64), (64, 32), (32, 16)):
            decoder += _block(
                channels_in, channels_out, nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
            )
        self.decoder2 = nn.Sequential(*decoder, nn.Conv2d(16, 1, 3, padding=1), ScaledTanh())
        if initialisation == "he":
            for layer in self.modules():
                if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                    nn.init.zeros_(layer.bias)

    def forward(self, image: Tensor) -> Tensor:
        """Read frames.

        Parameters
        ----------
        image : Tensor, shape (n, 1, H, W)
            Preprocessed frames; H and W multiples of 16.

        Returns
        -------
        Tensor, shape (n, 1, H, W)
            Phase in rad.
        """
        return self.decoder2(self.encoder(image))


def load_state(path: Path | str, *, weights_only: bool = True) -> dict[str, Tensor]:
    """Read a state dict of weights from a ``.pth``/``.pt`` or ``.safetensors`` file, onto the CPU.

    Parameters
    ----------
    path : path
        File of a state dict; keys may carry the ``module.`` of a data-parallel wrapper.
    weights_only : bool
        Refuse anything but tensors, so that a file of unknown origin cannot run code. False is refused.

    Returns
    -------
    dict of str to Tensor
        float32 tensors.

    Raises
    ------
    InputError
        The file cannot be read, holds something else than tensors, or `weights_only` is False.
    """
    path = Path(path)
    if not weights_only:
        raise InputError("weights_only=False", "pickled models can run code when loaded", "save a state dict")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"weights {path}: {error}", "a state dict of tensors is needed", "save model.state_dict()"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(
            f"weights {path}", "the file holds something else than a state dict", "save model.state_dict()"
        )
    return {key.removeprefix("module."): value.float() for key, value in content.items()}
