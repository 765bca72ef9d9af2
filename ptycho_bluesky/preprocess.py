"""From the detector's frame to the canonical one: the same function for the edge and for labels.

A canonical frame is square, holds counts with zero frequency at ``[N//2, N//2]`` and has its axes along those of the
stage. What follows (square root, normalisation) belongs to the network and lies inside the exported model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import D4_OPERATIONS, apply_d4

__all__ = ["Canonical", "find_fault", "normalise_i0"]


@dataclass(frozen=True)
class Canonical:
    """How a detector's frames become canonical; fixed for a run.

    Attributes
    ----------
    frame_shape : tuple of int
        (H, W) of the detector's frames.
    num_px : int
        Rows and columns of a canonical frame.
    centre_px : tuple of int
        Row and column of zero frequency on the detector; it becomes ``[num_px//2, num_px//2]``.
    orientation : str
        One of `ptycho_bluesky.geometry.D4_OPERATIONS`, applied after the crop.
    """

    frame_shape: tuple[int, int]
    num_px: int
    centre_px: tuple[int, int]
    orientation: str = "identity"

    def __post_init__(self) -> None:
        if self.orientation not in D4_OPERATIONS:
            raise InputError(f"orientation {self.orientation!r}", f"known ones are {', '.join(D4_OPERATIONS)}")
        for size, centre in zip(self.frame_shape, self.centre_px, strict=True):
            first = centre - self.num_px // 2
            if first < 0 or first + self.num_px > size:
                raise InputError(
                    f"a crop of {self.num_px} pixels about {self.centre_px}",
                    f"it must lie inside the frame of shape {self.frame_shape}",
                    "choose a smaller crop or the right centre",
                )

    @classmethod
    def whole(cls, frame_shape: tuple[int, int], orientation: str = "identity") -> Canonical:
        """The largest square about the middle of the frame; a square frame is taken whole.

        Zero frequency lies at ``[H//2, W//2]``.
        """
        height, width = frame_shape
        num_px = min(height, width)
        return cls((height, width), num_px, (height // 2, width // 2), orientation)

    @classmethod
    def from_run(cls, ptycho: Mapping[str, Any], frame_shape: tuple[int, int]) -> Canonical:
        """Read what a run's start document says under ``ptycho`` (``geometry.orientation``; nothing is required)."""
        geometry = ptycho.get("geometry") or {}
        return cls.whole(frame_shape, str(geometry.get("orientation", "identity")))

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of a canonical frame."""
        return self.num_px, self.num_px

    def __call__(self, image: NDArray[Any]) -> NDArray[np.float32]:
        """Make frames canonical.

        Parameters
        ----------
        image : ndarray, shape (n, H, W)
            The detector's frames in counts.

        Returns
        -------
        ndarray of float32, shape (n, num_px, num_px)

        Raises
        ------
        InputError
            The frames have another shape.
        """
        if image.ndim != 3 or image.shape[1:] != self.frame_shape:
            raise InputError(f"frames of shape {image.shape}", f"they must be (n, {self.frame_shape})")
        row, col = (centre - self.num_px // 2 for centre in self.centre_px)
        cropped = image[:, row : row + self.num_px, col : col + self.num_px]
        return np.ascontiguousarray(apply_d4(cropped, self.orientation), dtype=np.float32)


def find_fault(image: NDArray[Any], frame_shape: tuple[int, int]) -> str:
    """Say what is wrong with a frame as it came from the detector, "" if nothing is.

    Parameters
    ----------
    image : ndarray
        Should be (H, W) counts.
    frame_shape : tuple of int
        (H, W) that the run states.
    """
    if image.shape != tuple(frame_shape):
        return f"shape {image.shape} instead of {tuple(frame_shape)}"
    kind = image.dtype.kind
    if kind == "u":
        return ""
    if kind not in "if":
        return f"counts of type {image.dtype}"
    lowest = image.min()
    if kind == "f" and not np.isfinite(image.sum()):
        return "counts that are not finite"
    return "negative counts" if lowest < 0 else ""


def normalise_i0(
    image: NDArray[np.float32], i0: NDArray[np.float64], reference: float | None
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Scale canonical frames to a reference beam intensity.

    Parameters
    ----------
    image : ndarray of float32, shape (n, N, N)
    i0 : ndarray of float64, shape (n,)
        Beam monitor of each frame.
    reference : float or None
        Monitor value to scale to; None leaves the counts as they are.

    Returns
    -------
    image : ndarray of float32, shape (n, N, N)
    flagged : ndarray of bool, shape (n,)
        True for a frame without usable monitor: it is left as it is, never guessed.
    """
    usable: NDArray[np.bool_] = np.asarray(np.isfinite(i0) & (i0 > 0))
    if reference is None:
        return image, ~usable
    factor = np.where(usable, reference / np.where(usable, i0, 1.0), 1.0).astype(np.float32)
    return image * factor[:, None, None], ~usable
