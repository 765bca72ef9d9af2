"""Coordinates and conventions, stated once.

- Arrays are indexed ``[..., row, col]`` = ``[..., y, x]``. Positions are float64 ``(n, 2)`` with columns ``(y, x)``: in
  metres (``_m``) at every public boundary, in object pixels (``_px``) inside reconstructions. +y is down the rows, +x
  along the columns, of the object as stored. The position of a frame is the centre of its probe.
- A patch or probe of N pixels has its centre at index ``N // 2``; so has a diffraction frame its zero frequency.
- Far-field pixel at the sample: wavelength · distance / (N · detector pixel).
- Transmission ``O = A·exp(iφ)``, φ in rad; the far field is the unitary FFT of ``P·O``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptycho_bluesky.errors import InputError

__all__ = [
    "D4_OPERATIONS",
    "Geometry",
    "ObjectFrame",
    "apply_d4",
    "crop_centre",
    "overlap",
    "spiral_positions_m",
    "step_for_overlap_m",
]

PLANCK_LIGHTSPEED_EV_M = 1.239841984e-6
"""h·c in eV·m (CODATA 2018)."""

D4_OPERATIONS = (
    "identity",
    "rot90",
    "rot180",
    "rot270",
    "flip_rows",
    "flip_cols",
    "transpose",
    "antitranspose",
)
"""The eight ways in which a detector's axes may lie, by name."""


def apply_d4(image: NDArray[Any], operation: str) -> NDArray[Any]:
    """Apply one of `D4_OPERATIONS` to the last two axes, keeping the centre pixel ``[N//2, N//2]`` in place.

    Parameters
    ----------
    image : ndarray, shape (..., N, N)
        N may be even: the operation turns about the centre *pixel* (a plain flip of an even array moves it by one).
    operation : str
        One of `D4_OPERATIONS`.

    Returns
    -------
    ndarray, shape (..., N, N)
    """
    if operation not in D4_OPERATIONS:
        raise InputError(f"orientation {operation!r}", f"known ones are {', '.join(D4_OPERATIONS)}")
    flip_rows = {"rot180", "rot90", "flip_rows", "antitranspose"}
    flip_cols = {"rot180", "rot270", "flip_cols", "antitranspose"}
    if operation in {"rot90", "rot270", "transpose", "antitranspose"}:
        if image.shape[-1] != image.shape[-2]:
            raise InputError(
                f"image of shape {image.shape}", f"{operation} needs a square image", "crop it to a square"
            )
        image = np.swapaxes(image, -1, -2)
    if operation in flip_rows:
        image = _flip_about_centre(image, -2)
    if operation in flip_cols:
        image = _flip_about_centre(image, -1)
    return image


def crop_centre(image: Any, shape: tuple[int, ...]) -> Any:
    """Cut the middle out of the last two axes, the centre pixel ``[N//2, N//2]`` staying the centre.

    Parameters
    ----------
    image : ndarray or Tensor, shape (..., H, W)
    shape : tuple of int
        (h, w), at most (H, W).

    Returns
    -------
    ndarray or Tensor, shape (..., h, w)
        A view.
    """
    starts = [full // 2 - part // 2 for full, part in zip(image.shape[-2:], shape, strict=True)]
    ends = [start + part for start, part in zip(starts, shape, strict=True)]
    if min(starts) < 0 or any(end > full for end, full in zip(ends, image.shape[-2:], strict=True)):
        raise InputError(f"a centre of {shape} of an image {image.shape[-2:]}", "the part is not larger than the whole")
    return image[..., starts[0] : ends[0], starts[1] : ends[1]]


def _flip_about_centre(image: NDArray[Any], axis: int) -> NDArray[Any]:
    flipped = np.flip(image, axis)
    return np.roll(flipped, 1, axis) if image.shape[axis] % 2 == 0 else flipped


@dataclass(frozen=True)
class Geometry:
    """Geometry of a far-field measurement with square frames.

    Attributes
    ----------
    energy_eV : float
        Photon energy.
    distance_m : float
        Sample to detector.
    detector_pixel_m : float
        Pitch of a detector pixel (after binning).
    num_px : int
        Rows and columns of a canonical frame.
    orientation : str
        D4 operation that takes the detector's frame to the canonical one.
    """

    energy_eV: float
    distance_m: float
    detector_pixel_m: float
    num_px: int
    orientation: str = "identity"

    def __post_init__(self) -> None:
        for name in ("energy_eV", "distance_m", "detector_pixel_m", "num_px"):
            value = getattr(self, name)
            if not np.isfinite(value) or value <= 0:
                raise InputError(f"{name} = {value}", "it must be positive and finite", "state the beamline's geometry")
        if self.orientation not in D4_OPERATIONS:
            raise InputError(f"orientation = {self.orientation!r}", f"known ones are {', '.join(D4_OPERATIONS)}")

    @property
    def wavelength_m(self) -> float:
        """Wavelength hc/E."""
        return PLANCK_LIGHTSPEED_EV_M / self.energy_eV

    @property
    def object_pixel_m(self) -> float:
        """Pixel at the sample, λ·z/(N·p)."""
        return self.wavelength_m * self.distance_m / (self.num_px * self.detector_pixel_m)

    @property
    def window_m(self) -> float:
        """Width of the probe window, N times the object pixel."""
        return self.num_px * self.object_pixel_m

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form, with the derived pixel beside it for readers."""
        return {**asdict(self), "object_pixel_m": self.object_pixel_m}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any] | None) -> Geometry | None:
        """Inverse of `as_dict`; None for None or an ``unknown`` geometry."""
        if not content or "energy_eV" not in content:
            return None
        return cls(**{name: content[name] for name in cls.__dataclass_fields__ if name in content})


@dataclass(frozen=True)
class ObjectFrame:
    """Placement of an object or mosaic array in the sample's plane.

    Attributes
    ----------
    origin_m : tuple of float
        Position (y, x) of the centre of pixel ``[0, 0]``.
    pixel_size_m : float
        Pixel; with an unknown geometry 1.0 by convention, positions then being in object pixels.
    shape : tuple of int
        (rows, cols).
    """

    origin_m: tuple[float, float]
    pixel_size_m: float
    shape: tuple[int, int]

    def to_px(self, position_m: ArrayLike) -> NDArray[np.float64]:
        """Positions (n, 2) in m to fractional array indices (n, 2) (row, col)."""
        return (np.asarray(position_m, dtype=np.float64) - self.origin_m) / self.pixel_size_m

    def to_m(self, position_px: ArrayLike) -> NDArray[np.float64]:
        """Fractional array indices (n, 2) to positions (n, 2) in m."""
        return np.asarray(position_px, dtype=np.float64) * self.pixel_size_m + self.origin_m

    @property
    def extent_m(self) -> tuple[float, float, float, float]:
        """(left, right, bottom, top) in m, for matplotlib's ``imshow(origin="upper")``."""
        top, left = (o - self.pixel_size_m / 2 for o in self.origin_m)
        rows, cols = self.shape
        return left, left + cols * self.pixel_size_m, top + rows * self.pixel_size_m, top

    @classmethod
    def around(
        cls, position_m: ArrayLike, patch_px: int | tuple[int, int], pixel_size_m: float, margin_px: int = 2
    ) -> ObjectFrame:
        """Smallest frame that holds every patch of ``patch_px`` pixels centred on the positions, plus a margin.

        The origin lies on a whole multiple of the pixel, so that frames of neighbouring scans share one grid.
        """
        position_m = np.asarray(position_m, dtype=np.float64).reshape(-1, 2)
        position_m = position_m[np.isfinite(position_m).all(axis=1)]
        if not len(position_m):
            raise InputError("no finite position", "a frame is laid around at least one position")
        patch = np.broadcast_to(np.asarray(patch_px, dtype=np.int64), (2,))
        first = np.floor(position_m.min(axis=0) / pixel_size_m).astype(np.int64) - patch // 2 - margin_px
        last = np.ceil(position_m.max(axis=0) / pixel_size_m).astype(np.int64) + (patch - patch // 2) + margin_px
        origin = first * pixel_size_m
        rows, cols = (last - first + 1).tolist()
        return cls((float(origin[0]), float(origin[1])), float(pixel_size_m), (rows, cols))

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {"origin_m": list(self.origin_m), "pixel_size_m": self.pixel_size_m, "shape": list(self.shape)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ObjectFrame:
        """Inverse of `as_dict`."""
        y, x = content["origin_m"]
        rows, cols = content["shape"]
        return cls((float(y), float(x)), float(content["pixel_size_m"]), (int(rows), int(cols)))


def overlap(step_m: float, beam_m: float) -> float:
    """Overlap of a spiral, 1 − √3·S/B (Babu et al., Nat. Commun. 14, 7059, 2023), for step S and beam B."""
    return 1.0 - np.sqrt(3.0) * step_m / beam_m


def step_for_overlap_m(overlap_fraction: float, beam_m: float) -> float:
    """Step that gives the overlap: S = (1 − overlap)·B/√3."""
    if not overlap_fraction < 1.0:
        raise InputError(f"overlap = {overlap_fraction}", "it must be below 1", "ask for e.g. 0.8")
    return (1.0 - overlap_fraction) * beam_m / np.sqrt(3.0)


def spiral_positions_m(
    num_points: int, step_m: float, centre_m: tuple[float, float] = (0.0, 0.0)
) -> NDArray[np.float64]:
    """Archimedean spiral with neighbours ``step_m`` apart along the arm and between arms.

    Parameters
    ----------
    num_points : int
        Number of points.
    step_m : float
        Distance between turns, and arc length between points.
    centre_m : tuple of float
        (y, x) of the centre.

    Returns
    -------
    ndarray of float64, shape (num_points, 2)
        Positions (y, x) in m, from the centre outwards.

    Notes
    -----
    r = S·θ/2π; the angle of point k solves the arc length s(θ) = S/(4π)·(θ√(1+θ²) + asinh θ) = k·S by Newton's method.
    """
    if num_points < 1 or not step_m > 0:
        raise InputError(f"num_points = {num_points}, step_m = {step_m}", "a spiral has ≥ 1 point and a positive step")
    arc = np.arange(num_points) * 4.0 * np.pi
    theta = np.sqrt(arc + 1e-12)
    for _ in range(30):
        root = np.sqrt(1.0 + theta**2)
        theta = theta - (theta * root + np.arcsinh(theta) - arc) / (2.0 * root)
    radius = step_m * theta / (2.0 * np.pi)
    return np.stack([centre_m[0] + radius * np.sin(theta), centre_m[1] + radius * np.cos(theta)], axis=1)
