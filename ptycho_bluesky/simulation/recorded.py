"""A recorded scan, played back as if it were being measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import KDTree

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import Geometry
from ptycho_bluesky.records import Measurement
from ptycho_bluesky.simulation.experiment import RenderedScan

__all__ = ["DEFAULT_NOMINAL_PIXEL_M", "RecordedScan"]

DEFAULT_NOMINAL_PIXEL_M = 1e-8
"""Pixel by which positions in object pixels become stage positions when the real pixel is not known."""


class RecordedScan:
    """Frames of a file, each shown where it was recorded: implements `FrameRenderer`.

    Parameters
    ----------
    measurement : Measurement
        With positions in metres, or in object pixels when its pixel is unknown.
    nominal_pixel_m : float
        Used for the stage alone, and only when the pixel is unknown: the geometry then stays unknown.

    Notes
    -----
    Asked for a position, it shows the frame that was recorded nearest to it, and says where that was. The exposure is
    the recorded one whatever is asked; an attenuator thins the counts binomially, as it would have.
    """

    def __init__(self, measurement: Measurement, nominal_pixel_m: float = DEFAULT_NOMINAL_PIXEL_M) -> None:
        if not len(measurement):
            raise InputError("a recording without frames", "there is nothing to play")
        if not (np.isfinite(nominal_pixel_m) and nominal_pixel_m > 0):
            raise InputError(f"nominal_pixel_m = {nominal_pixel_m}", "it must be positive and finite")
        self._measurement = measurement
        self._nominal = measurement.pixel_size_m is None
        self.pixel_size_m = float(nominal_pixel_m if measurement.pixel_size_m is None else measurement.pixel_size_m)
        scale_m = self.pixel_size_m / measurement.step_px_m
        self.planned_position_m: NDArray[np.float64] = np.asarray(measurement.position_m, dtype=np.float64) * scale_m
        """Where the frames were recorded (n, 2), in recorded order; nominal when the pixel is unknown."""
        if not np.isfinite(self.planned_position_m).all():
            raise InputError("recorded positions that are not finite", "each frame is played where it was recorded")
        self._tree = KDTree(self.planned_position_m)

    def __len__(self) -> int:
        return len(self._measurement)

    @property
    def geometry(self) -> Geometry | None:
        """Geometry of what is played, None when unknown: its frames are canonical, however the detector stood."""
        geometry = self._measurement.geometry
        return None if geometry is None else replace(geometry, orientation="identity")

    @property
    def probe(self) -> NDArray[Any] | None:
        """Starting probe of the recording (modes, N, N), if it has one."""
        return self._measurement.probe

    @property
    def frame_shape(self) -> tuple[int, int]:
        """(H, W) of a frame."""
        rows, cols = self._measurement.image.shape[1:]
        return int(rows), int(cols)

    @cached_property
    def _counts(self) -> NDArray[Any]:
        image = np.asarray(self._measurement.image)
        if not np.isfinite(image).all() or image.min() < 0:
            raise InputError("recorded counts that are negative or not finite", "a detector counts photons")
        if np.issubdtype(image.dtype, np.unsignedinteger):
            return image
        counts = np.rint(image)
        return counts.astype(np.uint16 if counts.max() <= np.iinfo(np.uint16).max else np.uint32)

    @property
    def dtype(self) -> str:
        """Type of the frames; recordings in float are rounded to counts."""
        return self._counts.dtype.name

    def nearest(self, position_m: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Rows (n,) of the frames recorded nearest to the positions (n, 2), and how far away (n,) in m."""
        position = np.asarray(position_m, dtype=np.float64).reshape(-1, 2)
        if not np.isfinite(position).all():
            raise InputError("positions that are not finite", "a frame has a position")
        distance, row = self._tree.query(position)
        return np.asarray(row, dtype=np.int64), np.asarray(distance, dtype=np.float64)

    def render(
        self,
        position_m: ArrayLike,
        exposure_s: float,
        transmission: float = 1.0,
        shutter_open: bool = True,
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> RenderedScan:
        """Frames recorded nearest to the asked positions.

        Parameters
        ----------
        position_m : array-like of float, shape (n, 2)
        exposure_s : float
            Ignored: the recording has its own.
        transmission : float
            Of the attenuator, 0 to 1.
        shutter_open : bool
            With the shutter closed the frames are empty.
        seed : int
            Of the attenuator's thinning.
        progress : callable, optional
            Called with (frames done, frames in all).

        Returns
        -------
        RenderedScan
            ``position_m`` are the recorded positions; ``i0`` the recorded monitor (1 where there is none) times the
            transmission.
        """
        if not 0 <= transmission <= 1:
            raise InputError(f"transmission = {transmission}", "it lies between 0 and 1")
        row, _ = self.nearest(position_m)
        image = self._counts[row]
        if not shutter_open:
            image = np.zeros_like(image)
        elif transmission < 1:
            rng = np.random.default_rng(seed)
            image = rng.binomial(image.astype(np.int64), transmission).astype(image.dtype)
        monitor = np.asarray(self._measurement.i0, dtype=np.float64)[row]
        i0 = np.where(np.isfinite(monitor), monitor, 1.0) * transmission
        if progress is not None:
            progress(len(row), len(row))
        return RenderedScan(image, self.planned_position_m[row], i0)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able description; the frames themselves stay in their file."""
        geometry = self.geometry
        return {
            "kind": "recorded",
            "source": self._measurement.run_uid,
            "num_frames": len(self),
            "geometry": "unknown" if geometry is None else geometry.as_dict(),
            "pixel_size_m": None if self._nominal else self.pixel_size_m,
            "nominal_pixel_m": self.pixel_size_m if self._nominal else None,
        }
