"""Networks that read phase from diffraction, and the file format in which they travel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ptycho_bluesky.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ptycho_bluesky.models.network import Network

__all__ = ["ARCHITECTURES", "build", "network_options"]

ARCHITECTURES: tuple[str, ...] = ("ptychonn2", "ptychonn", "lean32", "lean24", "lean16", "lean12", "lean8")
"""Names that `build` knows."""


def build(architecture: str, **options: Any) -> Network:
    """Build an untrained network by its name.

    Parameters
    ----------
    architecture : str
        One of `ARCHITECTURES`.
    **options
        From `network_options`, or a model file's manifest.

    Returns
    -------
    Network
        Maps (n, 1, H, W) preprocessed frames to the phase (n, 1, h, w) in rad of the window or its centre.

    Raises
    ------
    InputError
        The name is unknown, or an option.
    """
    if architecture not in ARCHITECTURES:
        raise InputError(f"architecture {architecture!r}", f"known ones are {', '.join(ARCHITECTURES)}")
    if architecture.startswith("lean"):
        from ptycho_bluesky.models.lean import LeanNet

        if options.keys() - {"crop"}:
            raise InputError(f"options {sorted(options)} of {architecture}", "known is crop")
        return LeanNet(int(architecture.removeprefix("lean")), **options)
    if options:
        raise InputError(f"options {sorted(options)} of {architecture}", "it has none")
    from ptycho_bluesky.models.ptychonn import PtychoNN, PtychoNN2

    return PtychoNN() if architecture == "ptychonn" else PtychoNN2()


def network_options(architecture: str, mean_frame: NDArray[Any]) -> dict[str, Any]:
    """Options with which an architecture suits a corpus.

    Parameters
    ----------
    architecture : str
        One of `ARCHITECTURES`.
    mean_frame : ndarray, shape (H, W)
        Mean counts of the corpus.

    Returns
    -------
    dict
        For `build`.
    """
    if not architecture.startswith("lean"):
        return {}
    from ptycho_bluesky.models.lean import bright_crop

    return {"crop": bright_crop(mean_frame)}
