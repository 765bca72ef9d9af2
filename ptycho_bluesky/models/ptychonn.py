"""The published networks: one diffraction frame in, phase (and amplitude) of the object around the probe out.

PtychoNN: Cherukara et al., Appl. Phys. Lett. 117, 044103 (2020). PtychoNN 2.0, its weights and the size of both: Babu
et al., Nat. Commun. 14, 7059 (2023), and the state dict released with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.models.network import AMPLITUDE, IMAGE, PHASE, Network, ScaledTanh, Stage, initialise_he

__all__ = ["PtychoNN", "PtychoNN2", "load_state"]


def _block(channels_in: int, channels_out: int, last: nn.Module) -> list[nn.Module]:
    return [
        nn.Conv2d(channels_in, channels_out, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels_out, channels_out, 3, padding=1),
        nn.ReLU(),
        last,
    ]


def _encoder(base: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels_in, channels_out in ((1, base), (base, 2 * base), (2 * base, 4 * base), (4 * base, 8 * base)):
        layers += _block(channels_in, channels_out, nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def _decoder(base: int, last: nn.Module) -> nn.Sequential:
    layers: list[nn.Module] = []
    pairs = ((8 * base, 8 * base), (8 * base, 4 * base), (4 * base, 2 * base), (2 * base, base))
    for channels_in, channels_out in pairs:
        layers += _block(channels_in, channels_out, nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
    return nn.Sequential(*layers, nn.Conv2d(base, 1, 3, padding=1), last)


class PtychoNN2(Network):
    """PtychoNN 2.0: 733 921 parameters, state-dict keys of the published weights.

    Encoder of four blocks (two 3×3 convolutions with ReLU, 2×2 max pool; 1→16→32→64→128 channels), decoder of four
    blocks (two convolutions, bilinear ×2 upsampling with half-pixel centres; 128→128→64→32→16), a convolution to one
    channel and π·tanh. No skips, no batch normalisation.

    Parameters
    ----------
    initialisation : {"he", "torch"}
        ``he``: see `ptycho_bluesky.models.network.initialise_he`; ``torch``: PyTorch's default, as the released recipe
        has it.
    """

    stages: ClassVar[tuple[Stage, ...]] = (Stage("encoder", IMAGE, "code"), Stage("decoder2", "code", PHASE))

    def __init__(self, initialisation: Literal["he", "torch"] = "he") -> None:
        super().__init__()
        self.encoder = _encoder(16)
        self.decoder2 = _decoder(16, ScaledTanh())
        if initialisation == "he":
            initialise_he(self)

    @property
    def architecture(self) -> str:
        """Name by which `ptycho_bluesky.models.build` makes the network."""
        return "ptychonn2"


class PtychoNN(Network):
    """PtychoNN with 4 694 690 parameters: the levels of PtychoNN 2.0 with 32 base channels, and two decoders.

    ``decoder1`` gives the amplitude (sigmoid), ``decoder2`` the phase (π·tanh); `forward` answers the phase, `values`
    both.

    Parameters
    ----------
    initialisation : {"he", "torch"}
        As of `PtychoNN2`.
    """

    stages: ClassVar[tuple[Stage, ...]] = (
        Stage("encoder", IMAGE, "code"),
        Stage("decoder1", "code", AMPLITUDE),
        Stage("decoder2", "code", PHASE),
    )

    def __init__(self, initialisation: Literal["he", "torch"] = "he") -> None:
        super().__init__()
        self.encoder = _encoder(32)
        self.decoder1 = _decoder(32, nn.Sigmoid())
        self.decoder2 = _decoder(32, ScaledTanh())
        if initialisation == "he":
            initialise_he(self)

    @property
    def architecture(self) -> str:
        """Name by which `ptycho_bluesky.models.build` makes the network."""
        return "ptychonn"


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
