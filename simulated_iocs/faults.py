"""Faults that can be switched on, and the dice that decide which frames they meet."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["CORRUPTIONS", "Corrupter", "Dice", "Faults", "corrupt"]

CORRUPTIONS = ("shape", "truncated", "nan", "negative")
"""Ways in which a frame is spoilt, taken in turn."""
BLOCK = 1024


@dataclass
class Faults:
    """Faults in force; written by the control layer, read by the detector for every frame.

    Attributes
    ----------
    drop, duplicate, corrupt : float
        Fraction of the frames that pvAccess does not publish, publishes twice, or publishes spoilt.
    delay_s : float
        Time that pvAccess holds every frame back.
    hdf_drop : float
        Fraction of the frames that the file plugin drops.
    detector_error_at, die_at : int
        Number (from 1) of the frame, in one acquisition, at which the detector fails, or the process exits; 0 for off.
    """

    drop: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    delay_s: float = 0.0
    hdf_drop: float = 0.0
    detector_error_at: int = 0
    die_at: int = 0


class Dice:
    """Reproducible random decisions, cheap enough for every frame.

    Parameters
    ----------
    seed : int
    stream : int
        Distinguishes the dice of different faults of one seed.
    """

    def __init__(self, seed: int, stream: int) -> None:
        self._rng = np.random.default_rng([seed, stream])
        self._values: list[float] = []

    def roll(self, fraction: float) -> bool:
        """True for that fraction of the calls; a fraction of 0 does not move the dice."""
        if fraction <= 0.0:
            return False
        if not self._values:
            self._values = self._rng.random(BLOCK).tolist()
        return self._values.pop() < fraction


class Corrupter:
    """Spoils images in the ways of `CORRUPTIONS`, in turn."""

    def __init__(self) -> None:
        self._kinds = cycle(CORRUPTIONS)

    def __call__(self, image: NDArray[Any]) -> tuple[NDArray[Any], tuple[int, int]]:
        """Return a spoilt copy, flat, and the (rows, columns) that its header claims."""
        return corrupt(image, next(self._kinds))


def corrupt(image: NDArray[Any], kind: str) -> tuple[NDArray[Any], tuple[int, int]]:
    """Spoil an image.

    Parameters
    ----------
    image : ndarray, shape (H, W)
    kind : str
        One of `CORRUPTIONS`: a frame of half the rows, whole in itself; a header of (H, W) with data for half of it; a
        float frame with NaN; a signed frame with a negative count.

    Returns
    -------
    ndarray, flat
    tuple of int
        (rows, columns) of the header.
    """
    rows, cols = image.shape
    if kind == "shape":
        return image[: rows // 2].ravel(), (rows // 2, cols)
    if kind == "truncated":
        return image[: rows // 2].ravel(), (rows, cols)
    if kind == "nan":
        spoilt = image.astype(np.float32)
        spoilt[rows // 2, cols // 2] = np.nan
        return spoilt.ravel(), (rows, cols)
    if kind == "negative":
        spoilt = image.astype(np.int32)
        spoilt[rows // 2, cols // 2] = -1
        return spoilt.ravel(), (rows, cols)
    raise ValueError(f"corruption {kind!r} is none of {CORRUPTIONS}")
