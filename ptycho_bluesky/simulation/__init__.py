"""Forward physics: optics, samples, far field, detector, and scans played back from recordings."""

from ptycho_bluesky.simulation.detector import DetectorModel
from ptycho_bluesky.simulation.experiment import Experiment, FrameRenderer, RenderedScan, default_geometry
from ptycho_bluesky.simulation.optics import ZonePlate, probe_diameter_m, zone_plate_probe
from ptycho_bluesky.simulation.recorded import RecordedScan
from ptycho_bluesky.simulation.sample_map import Area, SampleMap, demo_map

__all__ = [
    "Area",
    "DetectorModel",
    "Experiment",
    "FrameRenderer",
    "RecordedScan",
    "RenderedScan",
    "SampleMap",
    "ZonePlate",
    "default_geometry",
    "demo_map",
    "probe_diameter_m",
    "zone_plate_probe",
]
