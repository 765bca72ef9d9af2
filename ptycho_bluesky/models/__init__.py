"""Networks that read phase from diffraction, and the file format in which they travel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptycho_bluesky.errors import InputError

if TYPE_CHECKING:
    from ptycho_bluesky.models.network import Network

__all__ = ["ARCHITECTURES", "build"]

ARCHITECTURES: tuple[str, ...] = ("ptychonn2", "ptychonn", "lean24", "lean16", "lean12", "lean8")
"""Names that `build` knows."""


def build(architecture: str) -> Network:
    """Build an untrained network by its name.

    Parameters
    ----------
    architecture : str
        One of `ARCHITECTURES`.

    Returns
    -------
    Network
        Maps (n, 1, H, W) preprocessed frames to the phase (n, 1, h, w) in rad of the window or its centre.

    Raises
    ------
    InputError
        The name is unknown.
    """
    if architecture not in ARCHITECTURES:
        raise InputError(f"architecture {architecture!r}", f"known ones are {', '.join(ARCHITECTURES)}")
    if architecture.startswith("lean"):
        from ptycho_bluesky.models.lean import LeanNet

        return LeanNet(int(architecture.removeprefix("lean")))
    from ptycho_bluesky.models.ptychonn import PtychoNN, PtychoNN2

    return PtychoNN() if architecture == "ptychonn" else PtychoNN2()
