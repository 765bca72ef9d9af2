"""Shutter, attenuator, energy and beam monitor."""

from __future__ import annotations

import logging
from typing import Any

from bluesky.protocols import Status
from ophyd import Component as Cpt
from ophyd import Device, EpicsSignalRO
from ophyd.areadetector.base import EpicsSignalWithRBV

from ptycho_bluesky.devices._waiting import put_and_wait, require_connection, run_in_thread, wait_until
from ptycho_bluesky.errors import InputError

logger = logging.getLogger(__name__)

__all__ = ["Attenuator", "Energy", "I0Monitor", "Shutter"]


class Shutter(Device):
    """Fast shutter: ``set("open")`` and ``set("closed")``; unstaging closes it, whatever ended the scan."""

    control = Cpt(EpicsSignalWithRBV, "Open", kind="hinted")

    timeout_s = 5.0
    """Deadline of a movement."""
    _demand: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether the readback says open."""
        return bool(self.control.get(use_monitor=False))

    def set(self, value: str | bool | int) -> Status:
        """Open or close.

        Parameters
        ----------
        value : str or bool
            ``"open"``/True or ``"closed"``/False.

        Raises
        ------
        InputError
            Any other value.
        """
        known = {"open": 1, "close": 0, "closed": 0, True: 1, False: 0}
        key = value.lower() if isinstance(value, str) else value
        if key not in known:
            raise InputError(f"shutter {value!r}", 'it is "open" or "closed"')
        demand = known[key]
        require_connection(self.control)
        self._demand = demand
        self.control.put(demand)  # here, not in the thread: a close that follows must come after an open
        return run_in_thread(lambda: self._arrive(demand), self, f"{self.name} set")

    def _arrive(self, demand: int) -> None:
        wait_until(lambda: self._demand != demand or self.is_open == bool(demand), self.timeout_s, f"{self.name} moves")

    def open(self) -> None:
        """Open now and wait for it."""
        self._demand = 1
        self.control.put(1)
        self._arrive(1)

    def close(self) -> None:
        """Close now and wait for it; an opening under way is given up without an error."""
        require_connection(self.control)
        self._demand = 0
        self.control.put(0)
        self._arrive(0)

    def unstage(self) -> list[Any]:
        """Close; a shutter that cannot be reached is logged, so that other devices are unstaged all the same."""
        try:
            self.close()
        except Exception:  # boundary: the RunEngine unstages what else it can
            logger.exception("%s could not be closed", self.name)
        return super().unstage()


class Attenuator(Device):
    """Attenuator by its transmission, 0 to 1."""

    transmission = Cpt(EpicsSignalWithRBV, "Transmission", kind="hinted")

    def set(self, value: float) -> Status:
        """Set the transmission.

        Raises
        ------
        InputError
            Outside 0 to 1.
        """
        if not 0.0 <= value <= 1.0:
            raise InputError(f"transmission = {value}", "it must lie between 0 and 1")
        return run_in_thread(lambda: put_and_wait(self.transmission, value), self, f"{self.name} set")


class Energy(Device):
    """Photon energy in eV."""

    energy_eV = Cpt(EpicsSignalWithRBV, "Energy_eV", kind="hinted")

    def set(self, value: float) -> Status:
        """Set the photon energy in eV.

        Raises
        ------
        InputError
            Not positive.
        """
        if not value > 0.0:
            raise InputError(f"energy = {value} eV", "it must be positive")
        return run_in_thread(lambda: put_and_wait(self.energy_eV, value), self, f"{self.name} set")


class I0Monitor(Device):
    """Beam intensity in front of the sample."""

    value = Cpt(EpicsSignalRO, "Value_RBV", kind="hinted")
