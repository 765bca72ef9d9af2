"""The detector: photons to counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError

__all__ = ["DetectorModel"]


@dataclass(frozen=True)
class DetectorModel:
    """A photon-counting pixel detector.

    Attributes
    ----------
    saturation_counts : int
        Counts at which a pixel stays.
    dtype : {"uint8", "uint16", "uint32"}
        Type of the frames.
    hot_pixels, dead_pixels : int
        Number of pixels that always show ``saturation_counts``, and 0; their places are drawn from ``seed``.
    dark_counts : float
        Mean counts a pixel and frame without light.
    poisson : bool
        Draw counts; False rounds the expected ones (for noise-free tests).
    seed : int
        Of the defects.
    """

    saturation_counts: int = 65535
    dtype: Literal["uint8", "uint16", "uint32"] = "uint16"
    hot_pixels: int = 0
    dead_pixels: int = 0
    dark_counts: float = 0.0
    poisson: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.dtype not in ("uint8", "uint16", "uint32"):
            raise InputError(f"dtype = {self.dtype!r}", "a detector counts in uint8, uint16 or uint32")
        if not 1 <= self.saturation_counts <= np.iinfo(self.dtype).max:
            raise InputError(f"saturation_counts = {self.saturation_counts}", f"it fits {self.dtype} and is at least 1")
        if self.hot_pixels < 0 or self.dead_pixels < 0 or not self.dark_counts >= 0:
            raise InputError(
                f"{self.hot_pixels} hot, {self.dead_pixels} dead pixels, {self.dark_counts} dark counts",
                "none is negative",
            )

    def defects(self, shape: tuple[int, ...]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Masks of the hot and of the dead pixels of a frame of this shape; no pixel is both."""
        if self.hot_pixels + self.dead_pixels > np.prod(shape):
            raise InputError(
                f"{self.hot_pixels} hot and {self.dead_pixels} dead pixels", f"a frame has {np.prod(shape)}"
            )
        order = np.random.default_rng(self.seed).permutation(int(np.prod(shape)))
        hot, dead = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
        hot.flat[order[: self.hot_pixels]] = True
        dead.flat[order[self.hot_pixels : self.hot_pixels + self.dead_pixels]] = True
        return hot, dead

    def good_pixels(self, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Mask of the pixels that can be trusted."""
        hot, dead = self.defects(shape)
        return ~(hot | dead)

    def expose(self, intensity: NDArray[np.floating], rng: np.random.Generator) -> NDArray[np.unsignedinteger]:
        """Count photons.

        Parameters
        ----------
        intensity : ndarray of float, shape (..., H, W)
            Expected photons a pixel.
        rng : numpy.random.Generator
            Of the shot noise.

        Returns
        -------
        ndarray of `dtype`, shape (..., H, W)
        """
        expected = intensity + self.dark_counts if self.dark_counts else intensity
        counts = rng.poisson(expected) if self.poisson else np.rint(expected)
        counts = np.minimum(counts, self.saturation_counts).astype(self.dtype)
        if self.hot_pixels or self.dead_pixels:
            hot, dead = self.defects(intensity.shape[-2:])
            counts[..., hot] = self.saturation_counts
            counts[..., dead] = 0
        return counts

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> DetectorModel:
        """Inverse of `as_dict`; unknown keys are ignored."""
        return cls(**{name: content[name] for name in cls.__dataclass_fields__ if name in content})
