"""What is changed in a frame each time it is trained on: its orientation, and how many photons it holds.

Everything drawn follows from seed, epoch and number of the frame alone: it does not depend on which rank trains on the
frame, nor on whether the training was resumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import apply_d4

__all__ = ["Augmentation", "thin_counts"]


@dataclass(frozen=True)
class Augmentation:
    """Changes that keep frame and label consistent.

    Attributes
    ----------
    seed : int
    operations : tuple of str
        D4 operations of which one is applied to frame and label together.
    thin_to : float
        Each frame keeps a share of its photons between this and 1, log-uniform; 1 keeps all.
    """

    seed: int
    operations: tuple[str, ...] = ("identity",)
    thin_to: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.thin_to <= 1:
            raise InputError(f"thin_to = {self.thin_to}", "a share of the photons lies above 0 and up to 1")

    def apply(
        self, image: NDArray[Any], labels: NDArray[np.float32], epoch: NDArray[np.int64], row: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Change frames.

        Parameters
        ----------
        image : ndarray, shape (n, H, W)
            Counts.
        labels : ndarray of float32, shape (n, channels, h, w)
        epoch, row : ndarray of int64, shape (n,)
            What the draws follow from.

        Returns
        -------
        image : ndarray of float32, shape (n, H, W)
            Thinned counts are divided by their share: they stay at the light that the network is trained at, as the
            edge's ``count_scale`` has it.
        labels : ndarray of float32
        """
        counts = image.astype(np.float32) if self.thin_to == 1 else self._thinned(image, epoch, row)
        if self.operations != ("identity",):
            drawn = _mixed(self.seed, 2, epoch, row) % np.uint64(len(self.operations))
            labels = labels.copy()
            for number in np.unique(drawn).tolist():
                rows, operation = drawn == number, self.operations[number]
                counts[rows], labels[rows] = apply_d4(counts[rows], operation), apply_d4(labels[rows], operation)
        return counts, labels

    def _thinned(self, image: NDArray[Any], epoch: NDArray[np.int64], row: NDArray[np.int64]) -> NDArray[np.float32]:
        out = np.empty(image.shape, dtype=np.float32)
        for place, number in enumerate(_mixed(self.seed, 3, epoch, row).tolist()):
            rng = np.random.default_rng(number)
            share = self.thin_to ** rng.random()
            out[place] = thin_counts(image[place], share, rng) / share
        return out


def thin_counts(image: NDArray[Any], share: float, rng: np.random.Generator) -> NDArray[Any]:
    """Counts that a shorter exposure would have given.

    Whole counts, of whatever type, are thinned binomially, each photon kept with the probability ``share``: of a
    Poisson variable of mean λ exactly a Poisson variable of mean share·λ is left. Counts that are not whole (scaled by
    a monitor, calculated) are taken for means and drawn from a Poisson distribution; where they hold noise already, it
    is added to.
    """
    if np.issubdtype(image.dtype, np.integer) or (np.rint(image) == image).all():
        return rng.binomial(np.maximum(image, 0).astype(np.int64), share)
    return rng.poisson(share * np.maximum(image, 0).astype(np.float64))


def _mixed(seed: int, stream: int, epoch: NDArray[np.int64], row: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Well mixed 64-bit numbers, by the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    value = np.asarray(row, dtype=np.uint64)
    for part in (epoch, np.full_like(value, stream), np.full_like(value, seed % 2**64)):
        value = value + (np.asarray(part, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        value = value ^ (value >> np.uint64(31))
    return value
