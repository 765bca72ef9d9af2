"""Slim areaDetector classes: only the process variables that a scan needs, all of which real drivers have.

ophyd's own plugin classes read tens of configuration variables each; these connect in a fraction of a second and leave
out nothing that the documents carry.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ophyd import Device, EpicsSignal, EpicsSignalRO
from ophyd.areadetector.base import ADComponent as Cpt
from ophyd.areadetector.base import EpicsSignalWithRBV

__all__ = ["ARMED_STATES", "DTYPES", "FAULT_STATES", "SlimCam", "SlimHDF5", "SlimPva"]

DTYPES = {
    "Int8": "|i1",
    "UInt8": "|u1",
    "Int16": "<i2",
    "UInt16": "<u2",
    "Int32": "<i4",
    "UInt32": "<u4",
    "Int64": "<i8",
    "UInt64": "<u8",
    "Float32": "<f4",
    "Float64": "<f8",
}
"""NumPy dtype of areaDetector's DataType."""

ARMED_STATES = ("Acquire", "Readout", "Waiting")
"""DetectorState_RBV of a detector that takes triggers."""
FAULT_STATES = ("Error", "Disconnected")
"""DetectorState_RBV of a detector that will not."""


class SlimCam(Device):
    """areaDetector driver (ADDriver): acquisition, trigger, counters and size."""

    acquire = Cpt(EpicsSignalWithRBV, "Acquire", kind="omitted")
    acquire_time = Cpt(EpicsSignalWithRBV, "AcquireTime", kind="config")
    acquire_period = Cpt(EpicsSignalWithRBV, "AcquirePeriod", kind="config")
    num_images = Cpt(EpicsSignalWithRBV, "NumImages", kind="omitted")
    image_mode = Cpt(EpicsSignalWithRBV, "ImageMode", kind="omitted", string=True)
    trigger_mode = Cpt(EpicsSignalWithRBV, "TriggerMode", kind="omitted", string=True)
    array_callbacks = Cpt(EpicsSignalWithRBV, "ArrayCallbacks", kind="omitted")
    array_counter = Cpt(EpicsSignalWithRBV, "ArrayCounter", kind="omitted")
    detector_state = Cpt(EpicsSignalRO, "DetectorState_RBV", kind="omitted", string=True)
    status_message = Cpt(EpicsSignalRO, "StatusMessage_RBV", kind="omitted", string=True)
    array_size_x = Cpt(EpicsSignalRO, "ArraySizeX_RBV", kind="config")
    array_size_y = Cpt(EpicsSignalRO, "ArraySizeY_RBV", kind="config")
    data_type = Cpt(EpicsSignalRO, "DataType_RBV", kind="config", string=True)
    manufacturer = Cpt(EpicsSignalRO, "Manufacturer_RBV", kind="config", string=True)
    model = Cpt(EpicsSignalRO, "Model_RBV", kind="config", string=True)

    @property
    def fresh_state(self) -> str:
        """DetectorState, read over the network now."""
        return str(self.detector_state.get(as_string=True, use_monitor=False))

    def fault(self) -> str:
        """Why the detector cannot acquire, "" if it can."""
        if not self.detector_state.connected:
            return f"{self.prefix} is disconnected"
        state = self.fresh_state
        if state in FAULT_STATES:
            return f"detector state {state}: {self.status_message.get(as_string=True, use_monitor=False)}"
        return ""

    def lasting_fault(self, grace_s: float = 1.0) -> Callable[[], str]:
        """`fault`, looked at from ``grace_s`` from now on: an error of before is cleared by acquiring."""
        since = time.monotonic()
        return lambda: self.fault() if time.monotonic() - since > grace_s else ""


class SlimHDF5(Device):
    """areaDetector file plugin (NDFileHDF5) in stream mode with SWMR."""

    enable_callbacks = Cpt(EpicsSignalWithRBV, "EnableCallbacks", kind="omitted")
    file_path = Cpt(EpicsSignalWithRBV, "FilePath", kind="omitted", string=True)
    file_name = Cpt(EpicsSignalWithRBV, "FileName", kind="omitted", string=True)
    file_template = Cpt(EpicsSignalWithRBV, "FileTemplate", kind="omitted", string=True)
    full_file_name = Cpt(EpicsSignalRO, "FullFileName_RBV", kind="omitted", string=True)
    file_path_exists = Cpt(EpicsSignalRO, "FilePathExists_RBV", kind="omitted")
    create_directory = Cpt(EpicsSignalWithRBV, "CreateDirectory", kind="omitted")
    auto_increment = Cpt(EpicsSignalWithRBV, "AutoIncrement", kind="omitted")
    file_write_mode = Cpt(EpicsSignalWithRBV, "FileWriteMode", kind="omitted", string=True)
    lazy_open = Cpt(EpicsSignalWithRBV, "LazyOpen", kind="omitted")
    swmr_mode = Cpt(EpicsSignalWithRBV, "SWMRMode", kind="omitted")
    swmr_active = Cpt(EpicsSignalRO, "SWMRActive_RBV", kind="omitted")
    num_capture = Cpt(EpicsSignalWithRBV, "NumCapture", kind="omitted")
    num_captured = Cpt(EpicsSignalRO, "NumCaptured_RBV", kind="omitted")
    capture = Cpt(EpicsSignalWithRBV, "Capture", kind="omitted")
    dropped_arrays = Cpt(EpicsSignalRO, "DroppedArrays_RBV", kind="omitted")
    write_status = Cpt(EpicsSignal, "WriteStatus", kind="omitted")
    write_message = Cpt(EpicsSignal, "WriteMessage", kind="omitted", string=True)

    def fault(self) -> str:
        """Why the plugin cannot write, "" if it can."""
        if not self.write_status.connected:
            return f"{self.prefix} is disconnected"
        if int(self.write_status.get(use_monitor=False)) != 0:
            return f"the file cannot be written: {self.write_message.get(as_string=True, use_monitor=False)}"
        return ""


class SlimPva(Device):
    """areaDetector pvAccess plugin (NDPluginPva)."""

    enable_callbacks = Cpt(EpicsSignalWithRBV, "EnableCallbacks", kind="omitted")
    pv_name = Cpt(EpicsSignalRO, "PvName_RBV", kind="omitted", string=True)
    dropped_arrays = Cpt(EpicsSignalRO, "DroppedArrays_RBV", kind="omitted")
