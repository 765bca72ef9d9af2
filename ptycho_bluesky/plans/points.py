"""Where a scan goes: points from the arguments that a user prefers, checked before anything moves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import overlap as overlap_of
from ptycho_bluesky.geometry import spiral_positions_m, step_for_overlap_m

__all__ = ["ScanPoints", "listed_points", "spiral_points"]

MAX_POINTS = 1_000_000


@dataclass(frozen=True, eq=False)
class ScanPoints:
    """Points of a scan and how they were asked for.

    Attributes
    ----------
    position_m : ndarray of float64, shape (n, 2)
        (y, x) of each point.
    metadata : dict
        ``pattern, step_m, num_points, centre_m, beam_m, overlap`` for the start document.
    """

    position_m: NDArray[np.float64]
    metadata: dict[str, Any]

    def __len__(self) -> int:
        return len(self.position_m)


def _resolve_step(step_m: float | None, overlap: float | None, beam_m: float | None) -> float:
    if (step_m is None) == (overlap is None):
        raise InputError(
            "both step_m and overlap" if step_m is not None else "neither step_m nor overlap",
            "a spiral takes exactly one of them",
            "give step_m=…, or overlap=… with beam_m=…",
        )
    if beam_m is not None and not beam_m > 0:
        raise InputError(f"beam_m = {beam_m}", "it must be positive")
    if step_m is None:
        if beam_m is None:
            raise InputError(f"overlap = {overlap}", "it needs the size of the beam", "give beam_m=…, in metres")
        step_m = float(step_for_overlap_m(float(overlap or 0.0), beam_m))
    if not (np.isfinite(step_m) and step_m > 0):
        raise InputError(f"step_m = {step_m}", "it must be positive and finite, in metres")
    return float(step_m)


def _resolve_extent(extent_m: float | tuple[float, float]) -> tuple[NDArray[np.float64], bool]:
    """(height, width) in m and whether it is a rectangle rather than a disc."""
    size = np.broadcast_to(np.asarray(extent_m, dtype=np.float64), (2,))
    if not (np.isfinite(size).all() and (size > 0).all()):
        raise InputError(f"extent_m = {extent_m}", "it must be positive and finite, in metres")
    return size, np.ndim(extent_m) > 0


def spiral_points(
    *,
    num_points: int | None = None,
    extent_m: float | tuple[float, float] | None = None,
    step_m: float | None = None,
    overlap: float | None = None,
    beam_m: float | None = None,
    centre_m: tuple[float, float] = (0.0, 0.0),
) -> ScanPoints:
    """Points of a spiral.

    Parameters
    ----------
    num_points : int, optional
        Number of points; or ``extent_m``.
    extent_m : float or (float, float), optional
        Diameter of a disc, or (height, width) of a rectangle that the spiral fills.
    step_m : float, optional
        Distance between neighbours; or ``overlap`` with ``beam_m``.
    overlap : float, optional
        1 − √3·step/beam.
    beam_m : float, optional
        Diameter of the beam.
    centre_m : (float, float)
        (y, x) of the centre.

    Returns
    -------
    ScanPoints

    Raises
    ------
    InputError
        Both or neither of a pair is given, or a value is out of range.

    Examples
    --------
    >>> len(spiral_points(num_points=963, step_m=50e-9))
    963
    """
    step = _resolve_step(step_m, overlap, beam_m)
    if (num_points is None) == (extent_m is None):
        raise InputError(
            "both num_points and extent_m" if num_points is not None else "neither num_points nor extent_m",
            "a spiral takes exactly one of them",
            "give num_points=… or extent_m=…",
        )
    centre = (float(centre_m[0]), float(centre_m[1]))
    if num_points is not None:
        if int(num_points) != num_points or not 1 <= num_points <= MAX_POINTS:
            raise InputError(f"num_points = {num_points}", f"it must be a whole number from 1 to {MAX_POINTS}")
        position_m = spiral_positions_m(int(num_points), step, centre)
    else:
        assert extent_m is not None  # the pair was checked above
        size, rectangle = _resolve_extent(extent_m)
        radius = float(np.hypot(*size) / 2 if rectangle else size[0] / 2)
        count = int(np.ceil(np.pi * (radius / step) ** 2)) + 8
        if count > MAX_POINTS:
            raise InputError(f"{count} points", f"at most {MAX_POINTS}", "widen the step or reduce the extent")
        position_m = spiral_positions_m(count, step, centre)
        offset = position_m - centre
        inside = (np.abs(offset) <= size / 2).all(axis=1) if rectangle else np.hypot(*offset.T) <= radius
        position_m = position_m[inside]
    return ScanPoints(
        position_m,
        {
            "pattern": "spiral",
            "step_m": step,
            "num_points": len(position_m),
            "centre_m": list(centre),
            "beam_m": beam_m,
            "overlap": None if beam_m is None else float(overlap_of(step, beam_m)),
        },
    )


def listed_points(position_m: ArrayLike, *, pattern: str = "list", beam_m: float | None = None) -> ScanPoints:
    """Points given one by one.

    Parameters
    ----------
    position_m : array-like, shape (n, 2)
        (y, x) of each point.
    pattern : str
        Name for the start document.
    beam_m : float, optional

    Raises
    ------
    InputError
        Wrong shape, or a value that is not finite.
    """
    position = np.array(position_m, dtype=np.float64)
    if position.ndim != 2 or position.shape[1] != 2 or len(position) < 1 or len(position) > MAX_POINTS:
        raise InputError(f"positions of shape {position.shape}", "they have shape (n, 2), columns (y, x) in m")
    if not np.isfinite(position).all():
        raise InputError("positions that are not finite", "each point needs a y and an x in m")
    step = float(np.median(np.hypot(*np.diff(position, axis=0).T))) if len(position) > 1 else None
    centre = [float(value) for value in (position.min(axis=0) + position.max(axis=0)) / 2]
    return ScanPoints(
        position,
        {
            "pattern": pattern,
            "step_m": step,
            "num_points": len(position),
            "centre_m": centre,
            "beam_m": beam_m,
            "overlap": None if beam_m is None or step is None else float(overlap_of(step, beam_m)),
        },
    )
