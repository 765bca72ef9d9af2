"""Shutter, attenuator, energy and the beam monitor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ptycho_bluesky.errors import InputError
from simulated_iocs.channels import (
    RefreshedGroup,
    guarded,
    index_of,
    number_pair,
    number_readback,
    publish,
    switch_pair,
)
from simulated_iocs.frames import Exposure

__all__ = ["Attenuator", "Beam", "BeamMonitor", "Energy", "Shutter"]

MIN_ENERGY_EV, MAX_ENERGY_EV = 1_000.0, 100_000.0


class Shutter(RefreshedGroup):
    """``Open`` (0/1); it is closed at start."""

    open = switch_pair("Open", 0, ("Closed", "Open"))

    @property
    def is_open(self) -> bool:
        """Whether light reaches the sample."""
        return index_of(self.open.readback) == 1


class Attenuator(RefreshedGroup):
    """``Transmission``, 0 to 1."""

    transmission = number_pair("Transmission", 1.0)

    async def prepare(self) -> None:
        """Refuse what lies outside 0 to 1."""
        self.transmission.setpoint.putter = guarded(self._put)

    async def _put(self, channel: Any, value: float) -> None:
        if not 0.0 <= value <= 1.0:
            raise InputError(f"{channel.pvname} = {value}", "a transmission lies between 0 and 1")
        await self.transmission.readback.write(value)

    @property
    def value(self) -> float:
        """Transmission."""
        return float(self.transmission.readback.value)


class Energy(RefreshedGroup):
    """Photon energy; 0 where a recording does not state it, and then it cannot be set.

    Parameters
    ----------
    energy_eV : float
        Initial value.
    """

    energy = number_pair("Energy_eV", 0.0, units="eV")

    def __init__(self, *args: Any, energy_eV: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._initial_eV = energy_eV

    async def prepare(self) -> None:
        """Show the initial energy, then accept new ones."""
        await publish(self.energy.setpoint, self._initial_eV)
        await publish(self.energy.readback, self._initial_eV)
        self.energy.setpoint.putter = guarded(self._put)

    async def _put(self, channel: Any, value: float) -> None:
        if self._initial_eV == 0.0 and value != 0.0:
            raise InputError(f"{channel.pvname} = {value}", "the recording's energy is unknown and fixed")
        if self._initial_eV and not MIN_ENERGY_EV <= value <= MAX_ENERGY_EV:
            raise InputError(f"{channel.pvname} = {value}", f"it lies between {MIN_ENERGY_EV} and {MAX_ENERGY_EV} eV")
        await self.energy.readback.write(value)

    @property
    def photon_energy(self) -> float:
        """Photon energy in eV."""
        return float(self.energy.readback.value)


class BeamMonitor(RefreshedGroup):
    """``Value_RBV``: what the monitor counts during one exposure.

    Parameters
    ----------
    reading : callable
        Returns it.
    """

    value = number_readback("Value_RBV", 0.0)

    def __init__(self, *args: Any, reading: Callable[[], float], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reading = reading

    async def refresh(self) -> None:
        """Read it."""
        await publish(self.value, self._reading())


class Beam:
    """Light and noise of the frames that are rendered next.

    Parameters
    ----------
    attenuator : Attenuator
    energy : Energy
    seed : callable
        Returns the seed in force.
    flipped : callable
        Returns whether the detector's rows run upwards.
    """

    def __init__(
        self, attenuator: Attenuator, energy: Energy, seed: Callable[[], int], flipped: Callable[[], bool]
    ) -> None:
        self._attenuator, self._energy, self._seed, self._flipped = attenuator, energy, seed, flipped
        self._num_seeds = 0

    def exposure(self, exposure_s: float) -> Exposure:
        """State of the beamline for frames of this exposure."""
        orientation = "flip_rows" if self._flipped() else "identity"
        return Exposure(exposure_s, self._attenuator.value, self._energy.photon_energy, orientation)

    def next_seed(self) -> int:
        """Another seed at each call, the same ones after each start: no two scans share their noise."""
        self._num_seeds += 1
        return int(np.random.SeedSequence([self._seed(), self._num_seeds]).generate_state(1)[0])
