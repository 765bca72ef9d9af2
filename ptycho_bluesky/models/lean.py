"""The lean family: networks that look only where there is light, and decode only what is stitched.

A zone plate's bright field covers a small part of the detector (50 of 128 pixels in the published set-up, 99 % of the
photons), and a beam lights a small part of the window that the detector resolves: the geometry check asks for a window
of at least 1.5 beam diameters, so what lies outside the central half is thrown away by the mosaic's weight. These
networks read the central part of the frame and answer the central half of the window. They also avoid convolutions of
few channels at full resolution, which a processor computes at a fraction of its speed: the frame enters through a 6×6
convolution of stride 2 (a 3×3 convolution of its 2×2-unshuffled form, written as one), falls by strides instead of
poolings, and the patch leaves through a pixel shuffle.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import crop_centre
from ptycho_bluesky.models.network import IMAGE, PHASE, Network, ScaledTanh, Stage, initialise_he

__all__ = ["CROP_FACTORS", "CentreCrop", "LeanNet", "bright_crop"]

CROP_FACTORS: tuple[int, ...] = (1, 2, 4, 8)
"""How many times shorter than the frame's the side of the part may be that is read."""
BRIGHT_FRACTION = 0.99
"""Part of the photons that must fall into the part that is read."""
LEVELS = 8
"""Stride of the innermost level in pixels of the part that is read."""


def bright_crop(mean_frame: NDArray[Any]) -> int:
    """How far a frame can be cut down without losing more than 1 % of the photons.

    Parameters
    ----------
    mean_frame : ndarray, shape (H, W)
        Mean counts over a corpus, zero frequency at ``[H//2, W//2]``.

    Returns
    -------
    int
        The largest of `CROP_FACTORS` whose part holds `BRIGHT_FRACTION` of the counts and has a side that the network
        can take.
    """
    counts = np.maximum(np.asarray(mean_frame, dtype=np.float64), 0.0)
    for factor in sorted(CROP_FACTORS, reverse=True):
        part = [size // factor for size in counts.shape]
        fits = all(size % (factor * LEVELS) == 0 and size >= 4 * factor * LEVELS for size in counts.shape)
        if fits and crop_centre(counts, tuple(part)).sum() >= BRIGHT_FRACTION * counts.sum():
            return factor
    return 1


class CentreCrop(nn.Module):
    """The central part of an image, its sides shorter by a factor."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, image: Tensor) -> Tensor:
        """Cut (…, H, W) to (…, H/factor, W/factor)."""
        return crop_centre(image, tuple(size // self.factor for size in image.shape[-2:]))


def _conv(channels_in: int, channels_out: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(channels_in, channels_out, 3, stride, padding=1), nn.ReLU()]


def _upsample() -> nn.Module:
    return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)


class LeanNet(Network):
    """Three levels down, two up, and a pixel shuffle: (n, 1, H, W) to (n, 1, H/2, W/2), the central half.

    Parameters
    ----------
    channels : int
        Channels at the first level; they double with every level.
    crop : int
        One of `CROP_FACTORS`: the network reads the central (H/crop, W/crop).
    """

    stages: ClassVar[tuple[Stage, ...]] = (Stage("encoder", IMAGE, "code"), Stage("decoder", "code", PHASE))

    def __init__(self, channels: int, crop: int = 2) -> None:
        super().__init__()
        if crop not in CROP_FACTORS:
            raise InputError(f"crop = {crop}", f"it is one of {CROP_FACTORS}")
        self.channels, self.crop, c = channels, crop, channels
        self.encoder = nn.Sequential(
            CentreCrop(crop),
            nn.Conv2d(1, c, 6, stride=2, padding=2),
            nn.ReLU(),
            *_conv(c, c),
            *_conv(c, 2 * c, 2),
            *_conv(2 * c, 2 * c),
            *_conv(2 * c, 4 * c, 2),
            *_conv(4 * c, 4 * c),
            *_conv(4 * c, 4 * c),
        )
        self.decoder = nn.Sequential(
            _upsample(),
            *_conv(4 * c, 2 * c),
            *_conv(2 * c, 2 * c),
            _upsample(),
            *_conv(2 * c, c),
            *_conv(c, c),
            # H/(2·crop) rows of crop² channels are H/2 rows
            nn.Conv2d(c, crop**2, 3, padding=1),
            nn.PixelShuffle(crop),
            ScaledTanh(),
        )
        initialise_he(self)

    @property
    def architecture(self) -> str:
        """Name by which `ptycho_bluesky.models.build` makes the network."""
        return f"lean{self.channels}"

    @property
    def options(self) -> dict[str, Any]:
        """What `ptycho_bluesky.models.build` needs beside the name."""
        return {"crop": self.crop}

    @property
    def shape_multiple(self) -> int:
        """Rows and columns of a frame are multiples of it."""
        return max(2 * LEVELS, LEVELS * self.crop)

    def patch_shape(self, image_shape: tuple[int, int]) -> tuple[int, int]:
        """(h, w): the central half of the window."""
        return image_shape[0] // 2, image_shape[1] // 2
