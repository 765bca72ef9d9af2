"""Ophyd devices of a ptychography beamline; the same classes drive the simulated one and real hardware."""

from ptycho_bluesky.devices._errors import HardwareError
from ptycho_bluesky.devices.acquisition import Acquisition
from ptycho_bluesky.devices.area_detector import SlimCam, SlimHDF5, SlimPva
from ptycho_bluesky.devices.beamline import BeamlineGeometry, DetectorGeometry
from ptycho_bluesky.devices.connection import connect, disconnected_pvs, set_signal_defaults
from ptycho_bluesky.devices.detector import PtychoDetector
from ptycho_bluesky.devices.flyer import PtychoFlyer
from ptycho_bluesky.devices.optics import Attenuator, Energy, I0Monitor, Shutter
from ptycho_bluesky.devices.records import EventRecord
from ptycho_bluesky.devices.stage import SampleStage
from ptycho_bluesky.devices.trajectory import Trajectory, TrajectoryController

__all__ = [
    "Acquisition",
    "Attenuator",
    "BeamlineGeometry",
    "DetectorGeometry",
    "Energy",
    "EventRecord",
    "HardwareError",
    "I0Monitor",
    "PtychoDetector",
    "PtychoFlyer",
    "SampleStage",
    "Shutter",
    "SlimCam",
    "SlimHDF5",
    "SlimPva",
    "Trajectory",
    "TrajectoryController",
    "connect",
    "disconnected_pvs",
    "set_signal_defaults",
]
