"""What the detector hands to its plugins: one record a frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Exposure", "Frame", "FrameSet"]


@dataclass(frozen=True)
class Exposure:
    """State of the beamline for which frames are rendered.

    Attributes
    ----------
    exposure_s : float
        Of one frame.
    transmission : float
        Of the attenuator, 0 to 1.
    energy_eV : float
        Photon energy; 0 where it is unknown.
    orientation : str
        D4 operation that the detector does to the canonical frame.
    """

    exposure_s: float
    transmission: float
    energy_eV: float
    orientation: str = "identity"


@dataclass(frozen=True)
class FrameSet:
    """Frames of a trajectory, ready to leave.

    Attributes
    ----------
    image : ndarray of unsigned int, shape (n, H, W)
        Contiguous.
    position_m : ndarray of float64, shape (n, 2)
        Readback (y, x) at the trigger.
    i0 : ndarray of float64, shape (n,)
    dark : ndarray, shape (H, W)
        What leaves instead while the shutter is closed.
    exposure : Exposure
        What they were rendered for.
    """

    image: NDArray[Any]
    position_m: NDArray[np.float64]
    i0: NDArray[np.float64]
    dark: NDArray[Any]
    exposure: Exposure

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame as the detector's plugins get it.

    Attributes
    ----------
    image : ndarray of unsigned int, shape (H, W)
        Contiguous counts.
    unique_id : int
    timestamp_s : float
        End of the exposure, seconds since the epoch.
    position_y_m, position_x_m : float
        Readback of the stage at the trigger.
    i0 : float
    """

    image: NDArray[Any]
    unique_id: int
    timestamp_s: float
    position_y_m: float
    position_x_m: float
    i0: float
