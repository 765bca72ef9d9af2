"""A whole simulated measurement: what the detector would see at every point of a trajectory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import Geometry, ObjectFrame, apply_d4
from ptycho_bluesky.simulation.detector import DetectorModel
from ptycho_bluesky.simulation.forward import iterate_diffraction
from ptycho_bluesky.simulation.optics import ZonePlate, probe_diameter_m, zone_plate_probe
from ptycho_bluesky.simulation.sample_map import SampleMap, demo_map

__all__ = ["Experiment", "FrameRenderer", "RenderedScan", "default_geometry"]

DEFAULT_FLUX_PHOTONS_PER_S = 1.3e8
"""From the published doses: 20 000, 1 600, 250 photons/nm² at steps of 50, 180, 460 nm, all 5.2e7 photons in 0.4 s."""
INVERSE_TURN = {"rot90": "rot270", "rot270": "rot90"}
"""Every other operation of a detector's orientation is its own inverse."""


@dataclass(frozen=True)
class RenderedScan:
    """Frames of one trajectory.

    Attributes
    ----------
    image : ndarray of unsigned int, shape (n, H, W)
        Counts as the detector gives them, zero frequency at ``[H//2, W//2]``; ``geometry.orientation`` takes them to
        canonical frames.
    position_m : ndarray of float64, shape (n, 2)
        Where the frames were really taken (y, x), jitter included.
    i0 : ndarray of float64, shape (n,)
        Photons that passed the monitor during each exposure; it stands behind the attenuator and before the shutter.
    """

    image: NDArray[Any]
    position_m: NDArray[np.float64]
    i0: NDArray[np.float64]


class FrameRenderer(Protocol):
    """What a simulated detector needs: the physics, or a recording."""

    @property
    def geometry(self) -> Geometry | None:
        """Geometry of the frames, None when unknown."""
        ...

    @property
    def frame_shape(self) -> tuple[int, int]:
        """(H, W) of a frame."""
        ...

    @property
    def dtype(self) -> str:
        """NumPy name of the frames' type, e.g. ``uint16``."""
        ...

    def render(
        self,
        position_m: ArrayLike,
        exposure_s: float,
        transmission: float = 1.0,
        shutter_open: bool = True,
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> RenderedScan:
        """Frames at the positions (n, 2)."""
        ...

    def as_dict(self) -> dict[str, Any]:
        """JSON-able description."""
        ...


def default_geometry(size_px: int = 64) -> Geometry:
    """Set-up B of the paper: 10 keV, 0.9 m, 75 µm; object pixel 23.2 nm at 64 pixels, 11.6 nm at 128."""
    return Geometry(energy_eV=10e3, distance_m=0.9, detector_pixel_m=75e-6, num_px=size_px)


@dataclass(frozen=True)
class Experiment:
    """A beamline with a sample: implements `FrameRenderer`.

    Attributes
    ----------
    geometry : Geometry
    plate : ZonePlate
    sample_map : SampleMap
        Its pixel must be the geometry's object pixel.
    flux_photons_per_s : float
        On the sample, without attenuation.
    position_jitter_m : float
        Standard deviation, an axis, of the distance between asked and real positions.
    beam_drift : float
        Fraction of the flux that is lost, linearly, from the first to the last frame of a scan; negative for a gain.
    detector : DetectorModel
    """

    geometry: Geometry
    plate: ZonePlate
    sample_map: SampleMap
    flux_photons_per_s: float = DEFAULT_FLUX_PHOTONS_PER_S
    position_jitter_m: float = 0.0
    beam_drift: float = 0.0
    detector: DetectorModel = field(default_factory=DetectorModel)

    def __post_init__(self) -> None:
        pixel_m = self.geometry.object_pixel_m
        if not np.isclose(self.sample_map.pixel_size_m, pixel_m, rtol=1e-6, atol=0.0):
            raise InputError(
                f"sample with pixels of {self.sample_map.pixel_size_m:.6g} m",
                f"the geometry's object pixel is {pixel_m:.6g} m",
                "build the sample map with geometry.object_pixel_m",
            )
        if not (self.flux_photons_per_s > 0 and self.position_jitter_m >= 0 and self.beam_drift <= 1):
            raise InputError(
                f"flux {self.flux_photons_per_s} /s, jitter {self.position_jitter_m} m, drift {self.beam_drift}",
                "flux is positive, jitter not negative, drift at most 1",
            )

    @classmethod
    def default(cls, size_px: int = 64, sample_map: SampleMap | None = None, **options: Any) -> Experiment:
        """The default experiment at this frame size, with `demo_map` unless another sample is given."""
        geometry = default_geometry(size_px)
        sample = sample_map or demo_map(pixel_size_m=geometry.object_pixel_m)
        return cls(geometry, options.pop("plate", ZonePlate()), sample, **options)

    @property
    def frame_shape(self) -> tuple[int, int]:
        """(H, W) of a frame."""
        return self.geometry.num_px, self.geometry.num_px

    @property
    def dtype(self) -> str:
        """Type of the frames."""
        return self.detector.dtype

    @cached_property
    def probe(self) -> NDArray[np.complex64]:
        """Probe of one photon, complex64 (N, N); |probe|² sums to 1."""
        return zone_plate_probe(self.plate, self.geometry)

    @property
    def beam_m(self) -> float:
        """Diameter that holds 90 % of the probe."""
        return probe_diameter_m(self.probe, self.geometry.object_pixel_m)

    @cached_property
    def _truth(self) -> tuple[NDArray[np.complex64], ObjectFrame]:
        return self.sample_map.object()

    def truth(self) -> tuple[NDArray[np.complex64], ObjectFrame]:
        """The object, complex64 (rows, cols), and its placement."""
        return self._truth

    def render(
        self,
        position_m: ArrayLike,
        exposure_s: float,
        transmission: float = 1.0,
        shutter_open: bool = True,
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> RenderedScan:
        """Frames along a trajectory.

        Parameters
        ----------
        position_m : array-like of float, shape (n, 2)
            Asked positions (y, x) of the probe's centre.
        exposure_s : float
            Of each frame.
        transmission : float
            Of the attenuator, 0 to 1.
        shutter_open : bool
            With the shutter closed only dark counts arrive.
        seed : int
            Of jitter and shot noise.
        progress : callable, optional
            Called with (frames done, frames in all).

        Returns
        -------
        RenderedScan

        Raises
        ------
        InputError
            A position is not finite, the exposure is not positive, or the transmission is outside 0 to 1.
        """
        if not (np.isfinite(exposure_s) and exposure_s > 0):
            raise InputError(f"exposure_s = {exposure_s}", "it must be positive and finite")
        if not 0 <= transmission <= 1:
            raise InputError(f"transmission = {transmission}", "it lies between 0 and 1")
        asked = np.asarray(position_m, dtype=np.float64).reshape(-1, 2)
        rng = np.random.default_rng(seed)
        actual = asked + self.position_jitter_m * rng.standard_normal(asked.shape)
        n = len(actual)
        current = 1.0 - self.beam_drift * np.arange(n) / max(1, n - 1)
        i0 = self.flux_photons_per_s * exposure_s * transmission * current
        photons = (i0 if shutter_open else np.zeros(n)).astype(np.float32)
        obj, frame = self.truth()
        image = np.empty((n, *self.frame_shape), dtype=self.detector.dtype)
        turn = INVERSE_TURN.get(self.geometry.orientation, self.geometry.orientation)
        for rows, intensity in iterate_diffraction(self.probe, obj, frame.to_px(actual)):
            intensity *= photons[rows, None, None]
            image[rows] = self.detector.expose(apply_d4(intensity, turn), rng)
            if progress is not None:
                progress(rows.stop, n)
        return RenderedScan(image, actual, i0)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form; `from_dict` rebuilds the same experiment from it."""
        return {
            "kind": "simulated",
            "geometry": self.geometry.as_dict(),
            "plate": self.plate.as_dict(),
            "sample_map": self.sample_map.as_dict(),
            "flux_photons_per_s": self.flux_photons_per_s,
            "position_jitter_m": self.position_jitter_m,
            "beam_drift": self.beam_drift,
            "detector": self.detector.as_dict(),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Experiment:
        """Inverse of `as_dict`."""
        geometry = Geometry.from_dict(content.get("geometry"))
        if geometry is None:
            raise InputError("an experiment without geometry", "energy, distance and detector pixel are stated")
        return cls(
            geometry,
            ZonePlate.from_dict(content.get("plate", {})),
            SampleMap.from_dict(content["sample_map"]),
            detector=DetectorModel.from_dict(content.get("detector", {})),
            **{k: float(content[k]) for k in ("flux_photons_per_s", "position_jitter_m", "beam_drift") if k in content},
        )
