"""What lies in the beam: the simulated experiment, a test pattern, or a recording."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import Geometry, apply_d4
from ptycho_bluesky.simulation import (
    Area,
    DetectorModel,
    Experiment,
    FrameRenderer,
    RenderedScan,
    SampleMap,
    ZonePlate,
    demo_map,
)
from simulated_iocs.frames import Exposure, FrameSet
from simulated_iocs.options import BeamlineOptions

__all__ = ["Scene", "TestPattern"]

SINGLE_AREA_M = 8e-6


class TestPattern:
    """Frames that cost next to nothing: a ring whose brightness follows the exposure; for tests of rates and control.

    Parameters
    ----------
    geometry : Geometry
    flux_photons_per_s : float
    dtype : str
    """

    __test__ = False  # no test case, whatever its name looks like

    def __init__(self, geometry: Geometry, flux_photons_per_s: float, dtype: str = "uint16") -> None:
        self._geometry, self._flux, self.dtype = geometry, flux_photons_per_s, dtype
        axis = np.arange(geometry.num_px) - geometry.num_px // 2
        radius = np.hypot(axis[:, None], axis[None, :]) / geometry.num_px
        ring = np.exp(-(((radius - 0.2) / 0.05) ** 2))
        self._ring = ring / ring.sum()

    @property
    def geometry(self) -> Geometry | None:
        """As given."""
        return self._geometry

    @property
    def frame_shape(self) -> tuple[int, int]:
        """(H, W) of a frame."""
        return self._geometry.num_px, self._geometry.num_px

    def render(
        self,
        position_m: ArrayLike,
        exposure_s: float,
        transmission: float = 1.0,
        shutter_open: bool = True,
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> RenderedScan:
        """The ring, without noise; row k of the scan has k (modulo 256) in its corner pixel ``[0, 0]``."""
        position = np.asarray(position_m, dtype=np.float64).reshape(-1, 2)
        photons = self._flux * exposure_s * transmission
        largest = np.iinfo(self.dtype).max
        ring = np.minimum(np.rint(self._ring * photons), largest) if shutter_open else np.zeros(self.frame_shape)
        image = np.repeat(ring.astype(self.dtype)[None], len(position), axis=0)
        if shutter_open:
            image[:, 0, 0] = np.arange(len(position)) % 256
        if progress is not None:
            progress(len(position), len(position))
        return RenderedScan(image, position, np.full(len(position), photons))

    def as_dict(self) -> dict[str, Any]:
        """JSON-able description."""
        return {"kind": "pattern", "geometry": self._geometry.as_dict(), "flux_photons_per_s": self._flux}


class Scene:
    """Source of the frames; can change sample and energy while it lives.

    Parameters
    ----------
    options : BeamlineOptions

    Raises
    ------
    InputError
        The sample file or the recording cannot be used.
    """

    def __init__(self, options: BeamlineOptions) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._recorded_position_m: NDArray[np.float64] | None = None
        self._monitor_per_s: float | None = None
        self._object_pixel_m: float
        if options.recorded is not None:
            self._renderer = self._open_recording(options.recorded)
        else:
            self._renderer = self._simulate()
            self._object_pixel_m = self._require_geometry().object_pixel_m

    @property
    def frame_shape(self) -> tuple[int, int]:
        """(H, W) of a frame; never changes."""
        return self._renderer.frame_shape

    @property
    def dtype(self) -> str:
        """Type of the frames; never changes."""
        if isinstance(self._renderer, Experiment):
            return self._renderer.detector.dtype
        return str(getattr(self._renderer, "dtype", self._options.dtype))

    @property
    def geometry(self) -> Geometry | None:
        """Geometry of the frames, None when unknown."""
        return self._renderer.geometry

    @property
    def object_pixel_m(self) -> float:
        """Pixel at the sample; nominal for a recording whose pixel is unknown."""
        return self._object_pixel_m

    @property
    def recorded_position_m(self) -> NDArray[np.float64] | None:
        """Planned positions (n, 2) of a recording."""
        return self._recorded_position_m

    @property
    def is_recorded(self) -> bool:
        """Whether a recording is played."""
        return self._recorded_position_m is not None

    def description(self) -> str:
        """JSON description of sample or recording."""
        if isinstance(self._renderer, Experiment):
            return json.dumps(self._renderer.sample_map.as_dict())
        return json.dumps(self._renderer.as_dict())

    def render(
        self,
        position_m: NDArray[np.float64],
        exposure: Exposure,
        seed: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> FrameSet:
        """Render the frames of a trajectory, and the dark one.

        Parameters
        ----------
        position_m : ndarray of float64, shape (n, 2)
            Planned positions (y, x).
        exposure : Exposure
        seed : int
            Of jitter and shot noise.
        progress : callable, optional
            Called with (frames done, frames in all).

        Returns
        -------
        FrameSet

        Raises
        ------
        InputError
            The source refuses the positions or the exposure.
        """
        self._set_energy(exposure.energy_eV)
        light = exposure.exposure_s, exposure.transmission
        scan = self._renderer.render(position_m, *light, True, seed=seed, progress=progress)
        dark = self._renderer.render(position_m[:1], *light, False, seed=seed).image[0]
        image = scan.image
        if exposure.orientation != "identity":
            image, dark = apply_d4(image, exposure.orientation), apply_d4(dark, exposure.orientation)
        return FrameSet(
            np.ascontiguousarray(image),
            np.asarray(scan.position_m, dtype=np.float64),
            np.asarray(scan.i0, dtype=np.float64),
            np.ascontiguousarray(dark),
            exposure,
        )

    def monitor(self, exposure_s: float, transmission: float) -> float:
        """What the beam monitor counts in such an exposure."""
        if self._monitor_per_s is None:
            scan = self._renderer.render(np.zeros((1, 2)), 1.0, shutter_open=False)
            self._monitor_per_s = float(scan.i0[0])
        # A recording has its own exposure, whatever is asked.
        return self._monitor_per_s * transmission * (1.0 if self.is_recorded else exposure_s)

    def set_sample(self, text: str) -> None:
        """Take another sample map, in JSON, for the same optics.

        Raises
        ------
        InputError
            A recording or a test pattern has no sample, or the text is no sample map.
        """
        with self._lock:
            if not isinstance(self._renderer, Experiment):
                raise InputError(
                    "a new sample", "a recording or test pattern has none to change", "start with --sample"
                )
            sample_map = _parse_sample(text, "SampleJSON")
            if isinstance(sample_map, Experiment):
                sample_map = sample_map.sample_map
            self._renderer = replace(self._renderer, sample_map=_fit(sample_map, self._renderer.geometry))

    def _set_energy(self, energy_eV: float) -> None:
        """Change the photon energy: object pixel, probe and sample raster follow."""
        with self._lock:
            if isinstance(self._renderer, Experiment) and energy_eV != self._renderer.geometry.energy_eV:
                geometry = replace(self._renderer.geometry, energy_eV=energy_eV)
                sample_map = _fit(self._renderer.sample_map, geometry)
                self._renderer = replace(self._renderer, geometry=geometry, sample_map=sample_map)
                self._object_pixel_m = geometry.object_pixel_m

    def _require_geometry(self) -> Geometry:
        geometry = self._renderer.geometry
        if geometry is None:
            raise InputError("an experiment without geometry", "a simulation has one")
        return geometry

    def _open_recording(self, path: Path) -> FrameRenderer:
        from ptycho_bluesky.io.measurement import read_measurement
        from ptycho_bluesky.simulation.recorded import RecordedScan

        options = self._options
        measurement = read_measurement(
            path,
            energy_eV=options.recorded_energy_eV,
            distance_m=options.recorded_distance_m,
            detector_pixel_m=options.recorded_detector_pixel_m,
            object_pixel_m=options.object_pixel_m,
        )
        recording = RecordedScan(measurement)
        self._recorded_position_m = recording.planned_position_m
        self._object_pixel_m = recording.pixel_size_m
        return recording

    def _simulate(self) -> FrameRenderer:
        options = self._options
        geometry = Geometry(
            options.energy_eV, options.distance_m, options.detector_pixel_m, options.size_px, options.orientation
        )
        if options.sample == "pattern":
            return TestPattern(geometry, options.flux_photons_per_s, options.dtype)
        sample = _named_sample(options, geometry.object_pixel_m)
        if isinstance(sample, Experiment):
            if sample.geometry.num_px != options.size_px:
                raise InputError(
                    f"experiment {options.sample} with frames of {sample.geometry.num_px} pixels",
                    f"the size asked for is {options.size_px}",
                    f"give --size {sample.geometry.num_px}",
                )
            return sample
        return Experiment(
            geometry,
            ZonePlate(options.zone_plate_diameter_m, options.outer_zone_m, options.stop_diameter_m, options.defocus_m),
            _fit(sample, geometry),
            options.flux_photons_per_s,
            options.position_jitter_m,
            options.beam_drift,
            DetectorModel(
                saturation_counts=min(options.saturation_counts, int(np.iinfo(options.dtype).max)),
                dtype=options.dtype,
                hot_pixels=options.hot_pixels,
                dead_pixels=options.dead_pixels,
                dark_counts=options.dark_counts,
                seed=options.seed,
            ),
        )


def _named_sample(options: BeamlineOptions, pixel_m: float) -> SampleMap | Experiment:
    if options.sample == "demo":
        return demo_map(options.areas, pixel_size_m=pixel_m, seed=options.seed)
    if options.sample == "star":
        return SampleMap((Area("star", (0.0, 0.0), SINGLE_AREA_M, name="star"),), pixel_m)
    if options.sample == "letters":
        return SampleMap((Area("letters", (0.0, 0.0), SINGLE_AREA_M, seed=options.seed, name="letters"),), pixel_m)
    try:
        return _parse_sample(Path(options.sample).read_text(), options.sample)
    except OSError as error:
        raise InputError(f"sample file {options.sample}: {error.strerror}", "it must be readable") from error


def _parse_sample(text: str, name: str) -> SampleMap | Experiment:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{name}: {error}", "it must be JSON of a sample map or an experiment") from error
    if not isinstance(content, dict):
        raise InputError(f"{name}: {type(content).__name__}", "a sample map is a JSON object")
    if "sample_map" in content:
        return Experiment.from_dict(content)
    return SampleMap.from_dict(content)


def _fit(sample_map: SampleMap, geometry: Geometry) -> SampleMap:
    """Rasterise the sample on the geometry's object pixel; its shapes stay where they are."""
    return replace(sample_map, pixel_size_m=geometry.object_pixel_m)
