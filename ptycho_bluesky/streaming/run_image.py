"""The image of one run while it grows: maps and patches, placed for now or for good."""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import ObjectFrame
from ptycho_bluesky.records import PositionSource
from ptycho_bluesky.stitching import MosaicBuilder
from ptycho_bluesky.stitching.mosaic import MosaicImage
from ptycho_bluesky.stitching.offsets import OffsetDrift, OffsetRecord

__all__ = ["RunImage"]

logger = logging.getLogger(__name__)

REPLACE_PX = 0.5
"""A patch placed by the plan is moved when its measured position is farther away than this."""
_PROVISIONAL = int(PositionSource.PLANNED)
"""Sources up to this one are improved on later; a plain number, which arrays are compared with faster."""
DEFAULT_KEEP_BYTES = 256 * 2**20


@dataclass
class _Kept:
    """What is needed to place a frame again."""

    values: NDArray[np.float32]
    phase_rad: NDArray[np.float32] | None
    weight: NDArray[np.float32] | None
    placed_m: NDArray[np.float64] | None


class RunImage:
    """Stitches a run's frames and corrects those that were placed by the plan.

    Parameters
    ----------
    patch_shape : tuple of int
        (N, N) of the canonical frames; a model's patches may have another shape.
    pixel_size_m : float
        Pixel of the canvas; 1.0 when the geometry is unknown and positions are in object pixels.
    planned_m : ndarray of float64, shape (n, 2), optional
        Planned positions: the first canvas holds them all.
    keep_bytes : int
        Bound of the memory for patches whose position is provisional or unknown. Beyond it the oldest are given up:
        one placed by the plan stays where it is, one without position stays out of the image, and ``given_up`` counts.
    solve_offsets : bool
        Turn each patch by the constant phase that makes it agree with the image under it.
    """

    def __init__(
        self,
        patch_shape: tuple[int, int],
        pixel_size_m: float,
        planned_m: NDArray[np.float64] | None = None,
        keep_bytes: int = DEFAULT_KEEP_BYTES,
        solve_offsets: bool = False,
    ) -> None:
        self.patch_shape, self.pixel_size_m, self.planned_m = patch_shape, pixel_size_m, planned_m
        self.keep_bytes = keep_bytes
        self.given_up = 0
        self.moved = 0
        self.has_phase = False
        """Whether any patch was placed."""
        self._builder: MosaicBuilder | None = None
        self._kept: OrderedDict[int, _Kept] = OrderedDict()
        self._kept_bytes = 0
        self._offsets = OffsetRecord() if solve_offsets else None

    @property
    def offset_drift(self) -> OffsetDrift | None:
        """How far solved offsets have led; None where they are not solved."""
        return None if self._offsets is None else self._offsets.drift()

    @property
    def waiting(self) -> int:
        """Frames whose position is provisional or unknown."""
        return len(self._kept)

    def add(
        self,
        slots: NDArray[np.int64],
        position_m: NDArray[np.float64],
        source: NDArray[np.uint8],
        values: NDArray[np.float32],
        phase_rad: NDArray[np.float32] | None = None,
        weight: NDArray[np.float32] | None = None,
    ) -> None:
        """Place frames.

        Parameters
        ----------
        slots : ndarray of int64, shape (n,)
            Names under which `confirm` finds them.
        position_m : ndarray of float64, shape (n, 2)
            NaN for a frame without position: it waits for one.
        source : ndarray of uint8, shape (n,)
            A `PositionSource` for each.
        values : ndarray of float32, shape (n, 3)
            Values of the maps.
        phase_rad : ndarray of float32, shape (n, h, w), optional
            Patches; None before any model.
        weight : ndarray of float32, shape (h, w), optional
            Weight of the patches' pixels.
        """
        builder = self._builder_for(position_m)
        placed = np.zeros(len(slots), dtype=bool)
        if builder is not None:
            placed = builder.add_values(values, position_m)
            if phase_rad is not None and weight is not None:
                if builder.weight is not weight:
                    builder.set_weight(weight)
                phase_rad = self._stitch(builder, phase_rad, position_m)
        for i in np.flatnonzero(source <= _PROVISIONAL).tolist():
            phase = None if phase_rad is None else phase_rad[i].copy()
            self._keep(
                int(slots[i]), _Kept(values[i].copy(), phase, weight, position_m[i].copy() if placed[i] else None)
            )

    def confirm(self, slots: NDArray[np.int64], position_m: NDArray[np.float64]) -> None:
        """Give frames (n,) their measured positions (n, 2); those that are placed too far away are moved."""
        for slot, measured in zip(slots.tolist(), position_m, strict=True):
            if slot not in self._kept or not np.isfinite(measured).all():
                continue
            kept = self._drop(slot)
            builder = self._builder_for(measured[None])
            if builder is None:
                continue
            if kept.placed_m is None:
                builder.add_values(kept.values[None], measured[None])
                if kept.phase_rad is not None and kept.weight is not None:
                    builder.set_weight(kept.weight)
                    self._stitch(builder, kept.phase_rad[None], measured[None])
            elif np.abs(measured - kept.placed_m).max() > REPLACE_PX * self.pixel_size_m:
                self._move(builder, kept, measured)

    def _stitch(
        self, builder: MosaicBuilder, phase_rad: NDArray[np.float32], position_m: NDArray[np.float64]
    ) -> NDArray[np.float32]:
        """Add patches; returns them as they were added, for they may have to be taken out again."""
        if self._offsets is None:
            placed = builder.add(phase_rad, position_m)
        else:
            placed, offset = builder.add_levelled(phase_rad, position_m)
            self._offsets.add(offset[placed], position_m[placed])
            phase_rad = phase_rad + offset[:, None, None].astype(np.float32)
        self.has_phase |= bool(placed.any())
        return phase_rad

    def _move(self, builder: MosaicBuilder, kept: _Kept, measured: NDArray[np.float64]) -> None:
        assert kept.placed_m is not None
        if builder.add_values(kept.values[None], measured[None])[0]:
            builder.add_values(kept.values[None], kept.placed_m[None], sign=-1)
        if kept.phase_rad is not None:
            builder.move(kept.phase_rad[None], kept.placed_m[None], measured[None], kept.weight)
        self.moved += 1

    def rename(self, moves: list[tuple[int, int]]) -> None:
        """Follow slots (old, new) that the ledger changed."""
        taken = [(new, self._drop(old)) for old, new in moves if old in self._kept]
        for new, kept in taken:
            self._keep(new, kept)

    def snapshot(self) -> MosaicImage | None:
        """Copy of the image; None before the first frame is placed."""
        return None if self._builder is None else self._builder.snapshot()

    def picture(self) -> tuple[NDArray[np.float32], ObjectFrame] | None:
        """Copy of the phase, NaN where nothing is, and its placement; None before the first patch is placed."""
        if self._builder is None or not self.has_phase:
            return None
        return self._builder.picture(), self._builder.frame

    def _builder_for(self, position_m: NDArray[np.float64]) -> MosaicBuilder | None:
        if self._builder is None:
            planned = self.planned_m
            for around in (planned, position_m):
                if around is None or not np.isfinite(around).all(axis=1).any():
                    continue
                try:
                    frame = ObjectFrame.around(around, self.patch_shape, self.pixel_size_m)
                    self._builder = MosaicBuilder(frame, self.patch_shape)
                    break
                except InputError as error:
                    logger.error("no canvas around the positions: %s", error)
        return self._builder

    def _keep(self, slot: int, kept: _Kept) -> None:
        self._kept[slot] = kept
        self._kept_bytes += _size(kept)
        while self._kept_bytes > self.keep_bytes and self._kept:
            _, oldest = self._kept.popitem(last=False)
            self._kept_bytes -= _size(oldest)
            if not self.given_up:
                logger.warning(
                    "too many frames wait for their measured position: the oldest stay where the plan has them"
                )
            self.given_up += 1

    def _drop(self, slot: int) -> _Kept:
        kept = self._kept.pop(slot)
        self._kept_bytes -= _size(kept)
        return kept


def _size(kept: _Kept) -> int:
    return 200 + (0 if kept.phase_rad is None else kept.phase_rad.nbytes)
