"""The trajectory controller: moves the stage along points and triggers the detector at each of them."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ophyd import Component as Cpt
from ophyd import Device, EpicsSignal, EpicsSignalRO

from ptycho_bluesky.devices._errors import HardwareError
from ptycho_bluesky.devices._waiting import put_and_wait, require_connection, wait_until
from ptycho_bluesky.errors import InputError

__all__ = ["Trajectory", "TrajectoryController"]


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Points of a fly scan and their timing.

    Attributes
    ----------
    position_m : ndarray of float64, shape (n, 2)
        (y, x) of each point.
    exposure_s : float
        Exposure of each frame.
    period_s : float
        From one trigger to the next, at least the exposure.
    """

    position_m: NDArray[np.float64]
    exposure_s: float
    period_s: float

    def __post_init__(self) -> None:
        shape = np.shape(self.position_m)
        if len(shape) != 2 or shape[1] != 2 or shape[0] < 1:
            raise InputError(f"positions of shape {shape}", "they have shape (n, 2), columns (y, x) in m")
        if not np.isfinite(self.position_m).all():
            raise InputError("positions that are not finite", "each point needs a y and an x in m")
        if not self.exposure_s > 0:
            raise InputError(f"exposure_s = {self.exposure_s}", "it must be positive")
        if self.period_s < self.exposure_s:
            raise InputError(
                f"period_s = {self.period_s}",
                f"it must not be shorter than exposure_s = {self.exposure_s}",
                "lengthen the period or shorten the exposure",
            )

    def __len__(self) -> int:
        return len(self.position_m)


class TrajectoryController(Device):
    """Trajectory controller of the simulated beamline; real ones (PandA, PowerPMAC, XPS) go behind the same methods.

    Parameters
    ----------
    prefix : str
        ``PTY:fly1:``.
    name : str
    build_timeout_s : float
        Deadline of a build; the simulator renders every frame in it.
    """

    y_m = Cpt(EpicsSignal, "Y_m", kind="omitted")
    x_m = Cpt(EpicsSignal, "X_m", kind="omitted")
    num_points = Cpt(EpicsSignal, "NumPoints", kind="omitted")
    period_s = Cpt(EpicsSignal, "Period_s", kind="config")
    start_index = Cpt(EpicsSignal, "StartIndex", kind="omitted")
    build = Cpt(EpicsSignal, "Build", kind="omitted")
    state = Cpt(EpicsSignalRO, "State_RBV", kind="omitted", string=True)
    start = Cpt(EpicsSignal, "Start", kind="omitted")
    abort = Cpt(EpicsSignal, "Abort", kind="omitted")
    index = Cpt(EpicsSignalRO, "Index_RBV", kind="omitted")
    message = Cpt(EpicsSignalRO, "Message_RBV", kind="omitted", string=True)

    def __init__(self, prefix: str, *, name: str, build_timeout_s: float = 300.0, **kwargs: Any) -> None:
        super().__init__(prefix, name=name, **kwargs)
        self.build_timeout_s = build_timeout_s

    @property
    def fresh_state(self) -> str:
        """State, read over the network now."""
        return str(self.state.get(as_string=True, use_monitor=False))

    def fault(self) -> str:
        """Why the controller cannot run, "" if it can."""
        if reason := self._disconnection():
            return reason
        return f"fault: {self._message()}" if self.fresh_state == "Fault" else ""

    def _disconnection(self) -> str:
        return "" if self.state.connected else f"{self.prefix} is disconnected"

    def _message(self) -> str:
        return str(self.message.get(as_string=True, use_monitor=False))

    def load(self, trajectory: Trajectory) -> None:
        """Write the points and build the trajectory; returns when it is ready.

        Raises
        ------
        HardwareError
            It cannot be built; the message carries the controller's.
        """
        self.halt()
        self.y_m.put(np.ascontiguousarray(trajectory.position_m[:, 0]))
        self.x_m.put(np.ascontiguousarray(trajectory.position_m[:, 1]))
        put_and_wait(self.num_points, len(trajectory))
        put_and_wait(self.period_s, trajectory.period_s)
        put_and_wait(self.start_index, 0)
        finished = threading.Event()
        self.build.put(1, use_complete=True, callback=lambda **_: finished.set())
        # No look at the state meanwhile: a fault of the scan before is shown until the build begins.
        what = f"{self.name} builds {len(trajectory)} points"
        wait_until(finished.is_set, self.build_timeout_s, what, fault=self._disconnection)
        wait_until(lambda: self.fresh_state not in ("Building", "Idle"), 5.0, what, fault=self._disconnection)
        if self.fresh_state != "Ready":
            raise HardwareError(f"{what}: {self.fresh_state}, {self._message()}")

    def run_from(self, index: int, timeout_s: float = 10.0) -> None:
        """Start at point ``index``; returns when it runs (or has already run through).

        Raises
        ------
        HardwareError
            It does not start.
        """
        put_and_wait(self.start_index, index)
        self.start.put(1)
        wait_until(lambda: self.fresh_state in ("Running", "Done"), timeout_s, f"{self.name} starts", fault=self.fault)

    def halt(self, timeout_s: float = 10.0) -> None:
        """Stop triggering; returns when it has stopped."""
        require_connection(self.state)
        if self.fresh_state not in ("Running", "Building"):
            return
        self.abort.put(1)
        wait_until(lambda: self.fresh_state not in ("Running", "Building"), timeout_s, f"{self.name} aborts")
