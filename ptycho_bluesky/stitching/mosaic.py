"""The incremental mosaic: a growing canvas of weighted e^{iφ}, with coverage, variance and maps of values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import ObjectFrame
from ptycho_bluesky.stitching.kernels import TILE_PX, add_patches, are_finite, paint_values, render, render_phase
from ptycho_bluesky.stitching.offsets import MIN_OVERLAP, overlap_phasor
from ptycho_bluesky.stitching.weights import disc_weight

__all__ = ["MAPS", "MosaicBuilder", "MosaicImage"]

MAPS = ("bright_field", "com_y_px", "com_x_px")
"""Maps kept beside the phase from the first frame on: the sum of counts (bright field) and the centre of mass
relative to the centre pixel (differential phase contrast). They need no model, so they cannot invent structure."""

DEFAULT_MAX_PX = 100_000_000
MAP_PX = 4
"""Side of the maps' own pixels: a frame's value is spread over a disc of the beam's size, so finer ones tell nothing
more, and cost sixteen times as much."""
MAP_MARGIN = 2
"""Pixels of the maps beyond the canvas on each side, for discs that are rounded outwards."""
LINE_PX = 16
"""Pixels in a line of the processor's cache."""


@dataclass(frozen=True)
class MosaicImage:
    """A copy of the canvas: arrays as in `ptycho_bluesky.records.Mosaic`."""

    phase_rad: NDArray[np.float32]
    weight: NDArray[np.float32]
    coverage: NDArray[np.int32]
    variance: NDArray[np.float32]
    maps: Mapping[str, NDArray[np.float32]]
    frame: ObjectFrame


class MosaicBuilder:
    """Stitches patches at their own sub-pixel positions.

    Parameters
    ----------
    frame : ObjectFrame
        First canvas, e.g. ``ObjectFrame.around(planned positions, patch, pixel)``; it grows when a patch needs it.
    patch_shape : tuple of int
        (h, w) of the patches; their centre is ``[h//2, w//2]``.
    weight : ndarray of float32, shape (h, w), optional
        Weight of a patch's pixels; by default `ptycho_bluesky.stitching.disc_weight`.
    max_px : int
        Largest canvas; a position that would need more is refused, so that one wild value cannot take the memory.

    Notes
    -----
    Not thread-safe: one thread adds and snapshots. Phases are averaged as e^{iφ}, so a wrap costs nothing. Sums are
    single precision: a patch taken out again leaves rounding (1e-7 of the sum); whether a pixel is covered is counted
    in integers, hence exact.
    """

    def __init__(
        self,
        frame: ObjectFrame,
        patch_shape: tuple[int, int],
        weight: NDArray[np.float32] | None = None,
        max_px: int = DEFAULT_MAX_PX,
    ) -> None:
        self.frame = frame
        self.patch_shape = patch_shape
        self.max_px = max_px
        if frame.shape[0] * frame.shape[1] > max_px:
            raise InputError(
                f"a canvas of {frame.shape[0]} × {frame.shape[1]} pixels",
                f"at most {max_px} are allowed",
                "check the unit (m) of the positions and the geometry",
            )
        self.set_weight(disc_weight(patch_shape) if weight is None else weight)
        self._map_shape = patch_shape
        self._map_weight = disc_weight((-(-patch_shape[0] // MAP_PX), -(-patch_shape[1] // MAP_PX)))
        rows, stride = frame.shape[0], _stride(frame.shape[1])
        self._sums = np.zeros((3, rows, stride), dtype=np.float32)
        self._coverage = np.zeros((rows, stride), dtype=np.int32)
        self._map_sums = np.zeros((1 + len(MAPS), *_map_size(frame.shape)), dtype=np.float32)
        self._start_display()

    @property
    def weight(self) -> NDArray[np.float32]:
        """Weight (h, w) with which patches are added from now on."""
        return self._weight

    def set_weight(self, weight: NDArray[np.float32]) -> None:
        """Change the weight, and with it the shape, of patches added from now on (a new model may have others)."""
        if weight.ndim != 2:
            raise InputError(f"weight of shape {weight.shape}", "it must be (h, w)")
        self.patch_shape = (weight.shape[0], weight.shape[1])
        self._weight = np.ascontiguousarray(weight, dtype=np.float32)

    def add(self, phase_rad: NDArray[np.float32], position_m: ArrayLike) -> NDArray[np.bool_]:
        """Add n patches.

        Parameters
        ----------
        phase_rad : ndarray of float32, shape (n, h, w)
        position_m : array-like, shape (n, 2)
            (y, x) of the patches' centres.

        Returns
        -------
        ndarray of bool, shape (n,)
            False for a patch that was not placed: its position or phase is not finite, or it lies beyond the largest
            canvas.
        """
        phase_rad = self._check_patches(phase_rad, self.patch_shape)
        corner, placed = self._corners(position_m, self.patch_shape, grow=True)
        placed &= _finite(phase_rad)
        self._put(phase_rad, corner, placed, self._weight, 1)
        return placed

    def add_levelled(
        self, phase_rad: NDArray[np.float32], position_m: ArrayLike
    ) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """Add n patches one after the other, each turned by a constant phase so that it agrees with the image under it.

        Parameters
        ----------
        phase_rad : ndarray of float32, shape (n, h, w)
        position_m : array-like, shape (n, 2)

        Returns
        -------
        placed : ndarray of bool, shape (n,)
            As of `add`.
        offset_rad : ndarray of float64, shape (n,)
            What was added to each patch's phase, between −π and π; 0 for a patch that too little is under
            (`ptycho_bluesky.stitching.offsets.MIN_OVERLAP`).
        """
        phase_rad = self._check_patches(phase_rad, self.patch_shape)
        position_m = np.asarray(position_m, dtype=np.float64).reshape(-1, 2)
        corner, placed = self._corners(position_m, self.patch_shape, grow=True)
        placed &= _finite(phase_rad)
        offset = np.zeros(len(phase_rad))
        enough = MIN_OVERLAP * float(self._weight.sum())
        for k in np.flatnonzero(placed):
            real, imag, shared = overlap_phasor(self._sums, phase_rad[k], self._weight, corner[k, 0], corner[k, 1])
            if shared > enough:
                offset[k] = np.arctan2(imag, real)
            turned = phase_rad[k : k + 1] + np.float32(offset[k])
            self._put(turned, corner[k : k + 1], placed[k : k + 1], self._weight, 1)
        return placed, offset

    def move(
        self,
        phase_rad: NDArray[np.float32],
        old_m: ArrayLike,
        new_m: ArrayLike,
        weight: NDArray[np.float32] | None = None,
    ) -> NDArray[np.bool_]:
        """Take n patches out at one position and add them at another.

        Parameters
        ----------
        phase_rad : ndarray of float32, shape (n, h, w)
            The very patches that were added.
        old_m, new_m : array-like, shape (n, 2)
            Where they were placed, and where they belong.
        weight : ndarray of float32, shape (h, w), optional
            Weight with which they were added, if it has changed since.

        Returns
        -------
        ndarray of bool, shape (n,)
            Whether each was moved; one whose new position cannot be placed stays.
        """
        used = self._weight if weight is None else np.ascontiguousarray(weight, dtype=np.float32)
        shape = (used.shape[0], used.shape[1])
        phase_rad = self._check_patches(phase_rad, shape)
        new, placed = self._corners(new_m, shape, grow=True)
        old, old_placed = self._corners(old_m, shape, grow=False)
        placed &= old_placed
        self._put(phase_rad, old, placed, used, -1)
        self._put(phase_rad, new, placed, used, 1)
        return placed

    def add_values(self, values: NDArray[np.float32], position_m: ArrayLike, sign: int = 1) -> NDArray[np.bool_]:
        """Add (or, with sign −1, take out) the values (n, 3) of `MAPS` at positions (n, 2)."""
        corner, placed = self._corners(position_m, self._map_shape, grow=sign > 0)
        centre = corner[placed] + [size // 2 for size in self._map_shape]
        half = [size // 2 for size in self._map_weight.shape]
        # the middle of a map's pixel k lies at MAP_PX·k + (MAP_PX − 1)/2 of the canvas
        at = np.round((centre - (MAP_PX - 1) / 2) / MAP_PX) + MAP_MARGIN - half
        values = np.ascontiguousarray(values[placed], dtype=np.float32)
        paint_values(self._map_sums[1:], self._map_sums[0], values, self._map_weight, at, sign)
        return placed

    def snapshot(self) -> MosaicImage:
        """Copy of the canvas as it is now."""
        cols = self.frame.shape[1]
        phase, variance, weight = (np.empty(self.frame.shape, dtype=np.float32) for _ in range(3))
        render(self._sums, self._coverage, phase, variance, weight)
        lit = self._map_sums[0] > 1e-6
        scale = np.where(lit, 1.0 / np.where(lit, self._map_sums[0], 1.0), 0.0).astype(np.float32)
        maps = {name: _on_canvas(self._map_sums[1 + i] * scale, self.frame.shape) for i, name in enumerate(MAPS)}
        return MosaicImage(phase, weight, self._coverage[:, :cols].copy(), variance, maps, self.frame)

    def picture(self) -> NDArray[np.float32]:
        """Copy of the phase (rows, cols) as it is now, NaN where nothing is.

        Only what has changed since the last call is computed anew, so it can be asked for many times a second.
        """
        render_phase(self._sums, self._coverage, self._changed, np.float32(np.nan), self._phase)
        return self._phase[:, : self.frame.shape[1]].copy()

    def _start_display(self) -> None:
        rows, stride = self._coverage.shape
        self._phase = np.full((rows, stride), np.nan, dtype=np.float32)
        self._changed = np.ones((-(-rows // TILE_PX), -(-stride // TILE_PX)), dtype=np.uint8)

    @staticmethod
    def _check_patches(phase_rad: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
        if phase_rad.ndim != 3 or phase_rad.shape[1:] != shape:
            raise InputError(f"patches of shape {phase_rad.shape}", f"they must be (n, {shape[0]}, {shape[1]})")
        return np.ascontiguousarray(phase_rad, dtype=np.float32)

    def _put(
        self,
        phase_rad: NDArray[np.float32],
        corner: NDArray[np.float64],
        placed: NDArray[np.bool_],
        weight: NDArray[np.float32],
        sign: int,
    ) -> None:
        if not placed.all():
            phase_rad, corner = phase_rad[placed], corner[placed]
        if len(phase_rad):
            add_patches(self._sums, self._coverage, self._changed, phase_rad, weight, corner, sign)

    def _corners(
        self, position_m: ArrayLike, shape: tuple[int, int], grow: bool
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Canvas positions (n, 2) of the patches' corners, and which of them lie on the canvas."""
        position_m = np.asarray(position_m, dtype=np.float64).reshape(-1, 2)
        half = np.array([size // 2 for size in shape], dtype=np.float64)
        finite: NDArray[np.bool_] = np.asarray(np.isfinite(position_m).all(axis=1))
        # rounded, so that a patch is found again where it was placed after the canvas's origin has moved
        corner = np.round(self.frame.to_px(np.where(finite[:, None], position_m, 0.0)) - half, 6)
        inside = finite & self._inside(corner, shape)
        if grow and not inside[finite].all():
            for outside in position_m[finite & ~inside]:
                self._grow(outside, shape)
            return self._corners(position_m, shape, grow=False)
        return corner, inside

    def _inside(self, corner: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.bool_]:
        # one pixel more than the patch: the bilinear spread reaches it
        limit = np.array(self.frame.shape) - np.array(shape) - 1
        return np.asarray(((corner >= 0) & (corner < limit)).all(axis=1))

    def _grow(self, position_m: NDArray[np.float64], shape: tuple[int, int]) -> None:
        """Enlarge the canvas so that a patch at the position fits; nothing happens where it would be too large."""
        margin = max(shape) // 2 + max(self.frame.shape) // 4  # so that a scan without plan grows it few times
        needed = ObjectFrame.around(position_m[None], shape, self.frame.pixel_size_m, margin)
        # the canvas keeps its own grid: shifts are whole pixels
        first = np.floor(self.frame.to_px([needed.origin_m])[0]).astype(np.int64)
        low = np.minimum(first, 0) // MAP_PX * MAP_PX
        high = np.maximum(first + np.array(needed.shape) + 1, self.frame.shape)
        rows, cols = (high - low).tolist()
        if rows * cols > self.max_px:
            return
        origin = self.frame.to_m(low[None].astype(np.float64))[0]
        old_rows, old_cols = self.frame.shape
        place = (slice(-low[0], -low[0] + old_rows), slice(-low[1], -low[1] + old_cols))
        self.frame = ObjectFrame((float(origin[0]), float(origin[1])), self.frame.pixel_size_m, (rows, cols))
        for name in ("_sums", "_coverage"):
            old = getattr(self, name)
            grown = np.zeros((*old.shape[:-2], rows, _stride(cols)), dtype=old.dtype)
            grown[..., place[0], place[1]] = old[..., :old_cols]
            setattr(self, name, grown)
        old_maps, self._map_sums = self._map_sums, np.zeros((1 + len(MAPS), *_map_size((rows, cols))), dtype=np.float32)
        row, col = (-low // MAP_PX).tolist()
        self._map_sums[:, row : row + old_maps.shape[1], col : col + old_maps.shape[2]] = old_maps
        self._start_display()


def _map_size(shape: tuple[int, int]) -> tuple[int, int]:
    """(rows, cols) of the maps of a canvas."""
    rows, cols = (-(-size // MAP_PX) + 2 * MAP_MARGIN for size in shape)
    return rows, cols


def _on_canvas(values: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """A map on the pixels of the canvas."""
    inner = values[MAP_MARGIN:, MAP_MARGIN:]
    return np.ascontiguousarray(inner.repeat(MAP_PX, axis=0).repeat(MAP_PX, axis=1)[: shape[0], : shape[1]])


def _stride(cols: int) -> int:
    """Length of a stored row: an odd number of cache lines, so that successive rows do not displace each other."""
    lines = -(-cols // LINE_PX)
    return (lines + (lines % 2 == 0)) * LINE_PX


def _finite(phase_rad: NDArray[np.float32]) -> NDArray[np.bool_]:
    finite = np.empty(len(phase_rad), dtype=np.bool_)
    are_finite(phase_rad.reshape(len(phase_rad), phase_rad[0].size if len(phase_rad) else 0).view(np.int32), finite)
    return finite
