"""Networks that read phase from diffraction, and the file format in which they travel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptycho_bluesky.errors import InputError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ARCHITECTURES", "build"]

ARCHITECTURES: tuple[str, ...] = ("ptychonn2",)
"""Names that `build` knows."""


def build(architecture: str) -> nn.Module:
    """Build an untrained network by its name.

    Parameters
    ----------
    architecture : str
        One of `ARCHITECTURES`.

    Returns
    -------
    torch.nn.Module
        Maps (n, 1, H, W) preprocessed frames to (n, 1, H, W) phase in rad.

    Raises
    ------
    InputError
        The name is unknown.
    """
    if architecture == "ptychonn2":
        from ptycho_bluesky.models.ptychonn import PtychoNN2

        return PtychoNN2()
    raise InputError(f"architecture {architecture!r}", f"known ones are {', '.join(ARCHITECTURES)}")
