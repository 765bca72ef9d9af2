"""The lean family: networks that decode only the part of the window that is stitched.

A diffraction frame tells of the lit part of its window alone, and the geometry check asks for a window of at least 1.5
beam diameters: what lies outside the central half is thrown away by the mosaic's weight. These networks do not compute
it. They also avoid convolutions of few channels at full resolution, which a processor computes at a fraction of its
speed: the frame enters through a 6×6 convolution of stride 2 (a 3×3 convolution of its 2×2-unshuffled form, written as
one), falls by strides instead of poolings, and the patch leaves through a pixel shuffle.
"""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from ptycho_bluesky.models.network import IMAGE, PHASE, Network, ScaledTanh, Stage, initialise_he

__all__ = ["LeanNet"]


def _conv(channels_in: int, channels_out: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(channels_in, channels_out, 3, stride, padding=1), nn.ReLU()]


class LeanNet(Network):
    """Four levels down, two up, and a pixel shuffle: (n, 1, H, W) to (n, 1, H/2, W/2), the central half.

    Parameters
    ----------
    channels : int
        Channels at half resolution; they double with every level.
    """

    stages: ClassVar[tuple[Stage, ...]] = (Stage("encoder", IMAGE, "code"), Stage("decoder", "code", PHASE))

    def __init__(self, channels: int) -> None:
        super().__init__()
        c = channels
        self.encoder = nn.Sequential(
            nn.Conv2d(1, c, 6, stride=2, padding=2),
            nn.ReLU(),
            *_conv(c, 2 * c, 2),
            *_conv(2 * c, 2 * c),
            *_conv(2 * c, 4 * c, 2),
            *_conv(4 * c, 4 * c),
            *_conv(4 * c, 8 * c, 2),
            *_conv(8 * c, 8 * c),
        )
        self.decoder = nn.Sequential(
            *_conv(8 * c, 8 * c),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            *_conv(8 * c, 4 * c),
            *_conv(4 * c, 4 * c),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            *_conv(4 * c, 2 * c),
            *_conv(2 * c, 2 * c),
            nn.Conv2d(2 * c, 4, 3, padding=1),
            nn.PixelShuffle(2),
            ScaledTanh(),
        )
        initialise_he(self)

    def patch_shape(self, image_shape: tuple[int, int]) -> tuple[int, int]:
        """(h, w): the central half of the window."""
        return image_shape[0] // 2, image_shape[1] // 2
