"""Numbers in files and their units: read from their attribute, never guessed from their size."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError

__all__ = ["ELECTRON_VOLT_J", "energy_factor_ev", "length_factor_m", "real_numbers"]

ELECTRON_VOLT_J = 1.602176634e-19
"""One electron volt in joule (SI 2019)."""

_LENGTH_M = {
    "m": 1.0,
    "metre": 1.0,
    "meter": 1.0,
    "mm": 1e-3,
    "um": 1e-6,
    "µm": 1e-6,
    "μm": 1e-6,
    "micron": 1e-6,
    "microns": 1e-6,
    "nm": 1e-9,
    "pm": 1e-12,
}
_ENERGY_EV = {"ev": 1.0, "kev": 1e3, "mev": 1e6, "j": 1.0 / ELECTRON_VOLT_J, "joule": 1.0 / ELECTRON_VOLT_J}


def length_factor_m(unit: str, what: str) -> float:
    """Factor from a unit of length to metres.

    Raises
    ------
    InputError
        The unit is not known; ``what`` names the number.
    """
    factor = _LENGTH_M.get(unit.strip()) or _LENGTH_M.get(unit.strip().lower())
    if factor is None:
        raise InputError(f"{what} in {unit!r}", f"known units of length are {', '.join(_LENGTH_M)}")
    return factor


def energy_factor_ev(unit: str, what: str) -> float:
    """Factor from a unit of energy to electron volts; see `length_factor_m`."""
    factor = _ENERGY_EV.get(unit.strip().lower())
    if factor is None:
        raise InputError(f"{what} in {unit!r}", "known units of energy are eV, keV, MeV and J")
    return factor


def real_numbers(values: Any, what: str) -> NDArray[np.float64]:
    """Numbers of a file as float64.

    Raises
    ------
    InputError
        They are complex, text or records; ``what`` names them.
    """
    array = np.asarray(values)
    if not (np.issubdtype(array.dtype, np.integer) or np.issubdtype(array.dtype, np.floating)):
        raise InputError(f"{what} of type {array.dtype}", "they are real numbers", "check what the file holds there")
    return array.astype(np.float64)
