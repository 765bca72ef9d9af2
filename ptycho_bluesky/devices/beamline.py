"""Geometry as the beamline states it."""

from __future__ import annotations

import logging
import math
from typing import Any

from ophyd import Component as Cpt
from ophyd import Device, EpicsSignalRO

from ptycho_bluesky.config import GeometrySettings
from ptycho_bluesky.geometry import Geometry

__all__ = ["BeamlineGeometry", "DetectorGeometry"]

logger = logging.getLogger(__name__)


class DetectorGeometry(Device):
    """Distance and pixel of a detector, where the beamline serves them (they are no part of areaDetector)."""

    distance_m = Cpt(EpicsSignalRO, "Distance_m_RBV", kind="config")
    pixel_m = Cpt(EpicsSignalRO, "PixelSize_m_RBV", kind="config")


class BeamlineGeometry:
    """Where the geometry of a measurement comes from: the settings, else the beamline, else it is unknown.

    Parameters
    ----------
    settings : GeometrySettings
        What is set there wins.
    energy : Energy, optional
    detector : DetectorGeometry, optional
    """

    def __init__(
        self, settings: GeometrySettings, energy: Any = None, detector: DetectorGeometry | None = None
    ) -> None:
        self._settings, self._energy, self._detector = settings, energy, detector

    @property
    def object_pixel_m(self) -> float | None:
        """Pixel at the sample that the settings state for an unknown geometry."""
        return self._settings.object_pixel_m

    def _first_known(self, stated: float | None, signal: Any) -> float | None:
        if stated is not None:
            return stated
        if signal is None or not signal.connected:
            return None
        value = float(signal.get(use_monitor=False))
        return value if math.isfinite(value) and value > 0 else None

    def read(self, frame_shape: tuple[int, int]) -> Geometry | None:
        """Geometry of frames (H, W), None when anything is unknown or the frames are not square."""
        energy_eV = self._first_known(self._settings.energy_eV, self._energy and self._energy.energy_eV)
        distance_m = self._first_known(self._settings.distance_m, self._detector and self._detector.distance_m)
        pixel_m = self._first_known(self._settings.detector_pixel_m, self._detector and self._detector.pixel_m)
        if energy_eV is None or distance_m is None or pixel_m is None:
            return None
        if frame_shape[0] != frame_shape[1]:
            logger.warning("frames of %d x %d pixels are not square: the run states no geometry", *frame_shape)
            return None
        return Geometry(energy_eV, distance_m, pixel_m, frame_shape[0], self._settings.orientation)
