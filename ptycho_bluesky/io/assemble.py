"""From what a file says to a measurement: geometry, pixel and positions, none of them invented."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import Geometry
from ptycho_bluesky.io.units import real_numbers
from ptycho_bluesky.records import Measurement

__all__ = ["RawScan", "StatedGeometry", "assemble", "scaled_probe"]

PIXEL_AGREEMENT = 0.01
"""Relative difference up to which a stated pixel and the one of the geometry count as the same."""
FRAMES_FOR_MEAN = 1000
HOW_TO_STATE = "state --energy-eV, --distance-m and --detector-pixel-m, or --object-pixel-m"


@dataclass(frozen=True)
class StatedGeometry:
    """What a person states about the geometry; it goes before what a file says. None where nothing is stated."""

    energy_eV: float | None = None
    distance_m: float | None = None
    detector_pixel_m: float | None = None
    object_pixel_m: float | None = None

    def __post_init__(self) -> None:
        for name in ("energy_eV", "distance_m", "detector_pixel_m", "object_pixel_m"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value > 0):
                raise InputError(f"{name} = {value}", "it must be positive and finite")

    def over(self, other: StatedGeometry) -> StatedGeometry:
        """The values stated here, and those of the other where nothing is."""
        return StatedGeometry(
            *(
                getattr(other, name) if getattr(self, name) is None else getattr(self, name)
                for name in self.__dataclass_fields__
            )
        )


@dataclass(frozen=True)
class RawScan:
    """What a reader found in a file.

    Attributes
    ----------
    image : array-like, shape (n, N, N)
        An ndarray or `FramesOnDemand`: canonical frames, zero frequency at ``[N//2, N//2]``.
    position : ndarray of float64, shape (m, 2)
        (y, x) in ``position_unit``; m > n where a file was cut.
    position_unit : {"m", "px"}
        px are object pixels.
    stated : StatedGeometry
        What the file states.
    orientation : str
        D4 operation that took the detector's frames to the canonical ones.
    unique_id, timestamp_s, i0 : ndarray or None
        Columns of n rows.
    probe : ndarray of complex, shape (modes, N, N), or None
    mask : ndarray of bool, shape (N, N), or None
    metadata : dict
    """

    image: Any
    position: NDArray[np.float64]
    position_unit: Literal["m", "px"]
    stated: StatedGeometry = field(default_factory=StatedGeometry)
    orientation: str = "identity"
    unique_id: NDArray[np.int64] | None = None
    timestamp_s: NDArray[np.float64] | None = None
    i0: NDArray[np.float64] | None = None
    probe: NDArray[Any] | None = None
    mask: NDArray[np.bool_] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


def _pixel_and_geometry(stated: StatedGeometry, num_px: int, orientation: str) -> tuple[float | None, Geometry | None]:
    parts = {name: getattr(stated, name) for name in ("energy_eV", "distance_m", "detector_pixel_m")}
    missing = [name for name, value in parts.items() if value is None]
    if missing:
        return stated.object_pixel_m, None
    geometry = Geometry(num_px=num_px, orientation=orientation, **parts)
    pixel_m = geometry.object_pixel_m
    if stated.object_pixel_m is not None and abs(stated.object_pixel_m / pixel_m - 1) > PIXEL_AGREEMENT:
        raise InputError(
            f"object pixel stated as {stated.object_pixel_m:.6g} m",
            f"energy, distance and detector pixel give λz/(Np) = {pixel_m:.6g} m",
            "state one of the two",
        )
    return pixel_m, geometry


def assemble(raw: RawScan, stated: StatedGeometry, run_uid: str) -> Measurement:
    """Build the measurement.

    Parameters
    ----------
    raw : RawScan
    stated : StatedGeometry
        Wins over the file.
    run_uid : str

    Returns
    -------
    Measurement
        Positions in metres when the pixel is known, else in object pixels.

    Raises
    ------
    InputError
        Frames are not square images, positions are missing or fewer than frames, the geometry is stated in part, or
        positions are in metres and no pixel is known.
    """
    image = raw.image
    if image.ndim != 3 or image.shape[1] != image.shape[2]:
        raise InputError(f"frames of shape {image.shape}", "a scan is a stack of square images (n, N, N)")
    num_frames, num_px = image.shape[0], image.shape[-1]
    position = real_numbers(raw.position, "positions")
    if position.ndim != 2 or position.shape[1] != 2:
        raise InputError(f"positions of shape {position.shape}", "a position is (y, x), one row a frame")
    if len(position) < num_frames:
        raise InputError(
            f"{len(position)} positions for {num_frames} frames",
            "every frame has a position",
            "give the missing positions, or read fewer frames with --limit",
        )
    told = [v for v in (stated.energy_eV, stated.distance_m, stated.detector_pixel_m) if v is not None]
    merged = stated.over(raw.stated)
    if stated.object_pixel_m is not None and not told:
        # A pixel that is stated alone replaces the file's geometry: the two need not agree.
        merged = StatedGeometry(object_pixel_m=stated.object_pixel_m)
    pixel_m, geometry = _pixel_and_geometry(merged, num_px, raw.orientation)
    if told and geometry is None:
        raise InputError(
            "a geometry stated in part", "energy, distance and detector pixel belong together", HOW_TO_STATE
        )
    if raw.position_unit == "m" and pixel_m is None:
        raise InputError("positions in metres and no pixel size", "a pixel size is never invented", HOW_TO_STATE)
    if raw.position_unit == "px" and pixel_m is not None:
        position = position * pixel_m
    metadata = {"geometry": "unknown" if geometry is None else geometry.as_dict(), **raw.metadata}
    if len(position) > num_frames:
        metadata["positions_without_frame"] = len(position) - num_frames
    nan = np.full(num_frames, np.nan)
    index = np.arange(num_frames, dtype=np.int64)
    return Measurement(
        image=image,
        position_m=position[:num_frames].copy(),
        frame_index=index,
        unique_id=index.copy() if raw.unique_id is None else raw.unique_id,
        timestamp_s=nan if raw.timestamp_s is None else raw.timestamp_s,
        i0=nan.copy() if raw.i0 is None else raw.i0,
        geometry=geometry,
        pixel_size_m=pixel_m,
        probe=raw.probe,
        run_uid=run_uid,
        mask=raw.mask,
        metadata=metadata,
    )


def scaled_probe(probe: NDArray[Any], image: Any) -> NDArray[np.complex64]:
    """Starting probe scaled to the light in the frames.

    Parameters
    ----------
    probe : ndarray of complex, shape (..., N, N)
        Leading axes are modes.
    image : array-like, shape (n, N, N)
        Counts; of many frames some, evenly chosen, stand for all.

    Returns
    -------
    ndarray of complex64, shape (modes, N, N)
        Sum of |P|² = mean counts of a frame.
    """
    if np.issubdtype(image.dtype, np.complexfloating):
        raise InputError(f"frames of type {image.dtype}", "frames hold counts, which are real numbers")
    modes = np.asarray(probe, dtype=np.complex64).reshape(-1, *probe.shape[-2:])
    power = float(np.sum(np.abs(modes.astype(np.complex128)) ** 2))
    some = np.asarray(image[:: max(1, len(image) // FRAMES_FOR_MEAN)])
    counts = float(np.mean(np.sum(some, axis=(1, 2), dtype=np.float64))) if len(some) else 0.0
    if not (np.isfinite(power) and power > 0):
        raise InputError(
            "a starting probe without light or with values that are not finite", "it illuminates the sample"
        )
    return (modes * np.sqrt(counts / power)).astype(np.complex64) if counts > 0 else modes
