"""From the detector's frame to the canonical one: the same function for the edge and for labels.

A canonical frame is square, holds counts with zero frequency at ``[N//2, N//2]`` and has its axes along those of the
stage. What follows (square root, normalisation) belongs to the network and lies inside the exported model.

Pixels that cannot be trusted are filled from their neighbours, because a network looks at every pixel; whoever compares
counts with a prediction leaves them out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import D4_OPERATIONS, apply_d4

__all__ = ["Canonical", "fill_pixels", "find_fault", "mask_ranges", "ranges_mask"]

LARGEST = {size: 2 ** (8 * size) - 1 for size in (1, 2, 4, 8)}
"""Largest value of an unsigned integer by its bytes."""
FILL_NEIGHBOURS = 4
"""Nearest trusted pixels whose mean stands for one that is not."""
MAX_UNUSABLE = 0.5
"""Part of a frame's pixels that may carry the detector's mark for unusable ones; beyond it the frame is corrupt."""


def mask_ranges(bad: NDArray[np.bool_]) -> list[list[int]]:
    """Bad pixels (H, W) as ``[start, length]`` of runs in row-major order: what a document can carry."""
    edges = np.flatnonzero(np.diff(np.pad(np.asarray(bad, dtype=bool).ravel(), 1)))
    starts, stops = edges[::2], edges[1::2]
    return [[int(start), int(stop - start)] for start, stop in zip(starts, stops, strict=True)]


def ranges_mask(ranges: Sequence[Sequence[int]], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Inverse of `mask_ranges`.

    Raises
    ------
    InputError
        A run lies outside the frame.
    """
    bad = np.zeros(shape[0] * shape[1], dtype=bool)
    for start, length in ranges:
        if start < 0 or length < 0 or start + length > len(bad):
            raise InputError(f"bad pixels {start} to {start + length - 1}", f"the frame of shape {shape} ends before")
        bad[start : start + length] = True
    return bad.reshape(shape)


def unusable_from(dtype: np.dtype[Any], saturation_counts: float | None) -> float | None:
    """Counts from which on a pixel of this type says nothing; None where every value may be a count.

    The largest value of an unsigned type is where its counter ends, and what Dectris' detectors write into dead pixels
    and the gaps between modules (2⁸−1, 2¹⁶−1, 2³²−1).
    """
    largest = float(LARGEST[dtype.itemsize]) if dtype.kind == "u" else None
    if saturation_counts is None:
        return largest
    return saturation_counts if largest is None else min(saturation_counts, largest)


@lru_cache(maxsize=64)
def _fill_table(packed: bytes, shape: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Flat indices (m,) of bad pixels, and of the trusted ones (m, k) that stand for each."""
    bad = np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=shape[0] * shape[1]).astype(bool)
    good, missing = np.flatnonzero(~bad), np.flatnonzero(bad)
    if not len(good):
        raise InputError("a mask without a trusted pixel", "a frame holds some", "check the mask")
    tree = KDTree(np.stack(np.unravel_index(good, shape), axis=1))
    _, nearest = tree.query(np.stack(np.unravel_index(missing, shape), axis=1), k=min(FILL_NEIGHBOURS, len(good)))
    return missing, good[np.asarray(nearest).reshape(len(missing), -1)]


def fill_pixels(frames: NDArray[Any], bad: NDArray[np.bool_]) -> NDArray[Any]:
    """Copy of frames (n, H, W) with bad pixels (H, W) filled by the mean of the nearest good ones.

    Counts of integers are rounded to integers.
    """
    filled = np.array(frames, order="C")
    missing, sources = _fill_table(np.packbits(bad).tobytes(), (bad.shape[0], bad.shape[1]))
    flat = filled.reshape(len(filled), -1)
    value = flat[:, sources].mean(axis=2, dtype=np.float64)
    flat[:, missing] = value if filled.dtype.kind == "f" else np.rint(value).astype(filled.dtype)
    return filled


@dataclass(frozen=True)
class Canonical:
    """How a detector's frames become canonical; fixed for a run.

    Attributes
    ----------
    frame_shape : tuple of int
        (H, W) of the detector's frames.
    num_px : int
        Rows and columns of a canonical frame: the region of interest.
    centre_px : tuple of int
        Row and column of zero frequency on the detector; it becomes ``[num_px//2, num_px//2]``.
    orientation : str
        One of `ptycho_bluesky.geometry.D4_OPERATIONS`, applied after the crop.
    bad : ndarray of bool, shape (H, W), or None
        Pixels that are dead or hot, True.
    saturation_counts : float or None
        Counts from which on a pixel cannot be trusted; the largest value of an unsigned type never is.
    """

    frame_shape: tuple[int, int]
    num_px: int
    centre_px: tuple[int, int]
    orientation: str = "identity"
    bad: NDArray[np.bool_] | None = field(default=None, compare=False, repr=False)
    saturation_counts: float | None = None

    def __post_init__(self) -> None:
        if self.orientation not in D4_OPERATIONS:
            raise InputError(f"orientation {self.orientation!r}", f"known ones are {', '.join(D4_OPERATIONS)}")
        for size, centre in zip(self.frame_shape, self.centre_px, strict=True):
            first = centre - self.num_px // 2
            if first < 0 or first + self.num_px > size or self.num_px < 1:
                raise InputError(
                    f"a crop of {self.num_px} pixels about {self.centre_px}",
                    f"it must lie inside the frame of shape {self.frame_shape}",
                    "choose a smaller crop or the right centre",
                )
        if self.bad is not None and self.bad.shape != tuple(self.frame_shape):
            raise InputError(f"mask of shape {self.bad.shape}", f"frames have shape {self.frame_shape}")
        if self.saturation_counts is not None and not self.saturation_counts > 0:
            raise InputError(f"saturation_counts = {self.saturation_counts}", "it must be positive")

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
        """Read what a run's start document says under ``ptycho``; nothing is required.

        Parameters
        ----------
        ptycho : mapping
            ``geometry.orientation``, and under ``canonical``: ``centre_px``, ``num_px``, ``bad_ranges`` (see
            `mask_ranges`) and ``saturation_counts``. A centre without ``num_px`` gives the largest square about it.
        frame_shape : tuple of int
            (H, W) of the detector's frames.

        Raises
        ------
        InputError
            The content cannot be read, or the crop leaves the frame.
        """
        geometry, stated = ptycho.get("geometry") or {}, ptycho.get("canonical") or {}
        height, width = frame_shape
        try:
            row, col = (int(v) for v in stated.get("centre_px") or (height // 2, width // 2))
            # about its centre pixel an even square reaches one pixel less far to the right
            largest = min(height, width, 2 * min(row, col, height - row, width - col) or 1)
            num_px = int(stated.get("num_px") or (largest if stated.get("centre_px") else min(height, width)))
            ranges, limit = stated.get("bad_ranges") or [], stated.get("saturation_counts")
            bad = ranges_mask(ranges, frame_shape) if ranges else None
            saturation_counts = None if limit is None else float(limit)
        except (TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"'canonical' of the run: {error}", "it holds numbers", "calibrate anew") from error
        orientation = str(geometry.get("orientation", "identity"))
        return cls(frame_shape, num_px, (row, col), orientation, bad, saturation_counts)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of a canonical frame."""
        return self.num_px, self.num_px

    @cached_property
    def good(self) -> NDArray[np.bool_]:
        """Pixels (num_px, num_px) of a canonical frame that can be trusted, frame by frame exceptions aside."""
        if self.bad is None:
            return np.ones(self.shape, dtype=bool)
        return np.ascontiguousarray(~self._crop(self.bad[None])[0])

    def _crop(self, image: NDArray[Any]) -> NDArray[Any]:
        row, col = (centre - self.num_px // 2 for centre in self.centre_px)
        return apply_d4(image[:, row : row + self.num_px, col : col + self.num_px], self.orientation)

    def read(self, image: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """Make frames canonical in their own type.

        Parameters
        ----------
        image : ndarray, shape (n, H, W)
            The detector's frames in counts.

        Returns
        -------
        frames : ndarray, shape (n, num_px, num_px)
            Pixels that cannot be trusted hold the mean of the nearest that can.
        unusable : ndarray of bool, shape (n, num_px, num_px), or None
            Pixels that were filled in each frame; None where they are those of `good` in every frame.

        Raises
        ------
        InputError
            The frames have another shape.
        """
        if image.ndim != 3 or image.shape[1:] != self.frame_shape:
            raise InputError(f"frames of shape {image.shape}", f"they must be (n, {self.frame_shape})")
        frames = self._crop(image)
        limit = unusable_from(image.dtype, self.saturation_counts)
        if limit is None or not frames.size or frames.max() < limit:
            return (frames if self.good.all() else fill_pixels(frames, ~self.good)), None
        unusable = np.ascontiguousarray((frames >= limit) | ~self.good)
        frames = np.array(frames, order="C")
        for i in np.flatnonzero(unusable.any(axis=(1, 2))).tolist():
            frames[i] = fill_pixels(frames[i : i + 1], unusable[i])[0]
        return frames, unusable

    def __call__(self, image: NDArray[Any]) -> NDArray[np.float32]:
        """Make frames (n, H, W) canonical: float32 (n, num_px, num_px); see `read`."""
        return np.ascontiguousarray(self.read(image)[0], dtype=np.float32)

    def as_dict(self) -> dict[str, Any]:
        """What `from_run` reads under ``canonical``, JSON-able; the orientation belongs to the geometry."""
        content: dict[str, Any] = {"centre_px": list(self.centre_px), "num_px": self.num_px}
        if self.bad is not None and self.bad.any():
            content["bad_ranges"] = mask_ranges(self.bad)
        if self.saturation_counts is not None:
            content["saturation_counts"] = self.saturation_counts
        return content


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
        largest = LARGEST[image.dtype.itemsize]
        if image.max() == largest and np.count_nonzero(image == largest) > MAX_UNUSABLE * image.size:
            return "most pixels carry the detector's mark for unusable ones"
        return ""
    if kind not in "if":
        return f"counts of type {image.dtype}"
    lowest = image.min()
    if kind == "f" and not np.isfinite(image.sum()):
        return "counts that are not finite"
    return "negative counts" if lowest < 0 else ""
