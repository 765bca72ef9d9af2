"""One frame on its way from a source to the join, before it is known to which run it belongs."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.records import FrameOrigin

__all__ = ["Frame"]


class Frame(NamedTuple):
    """A frame as a source delivers it.

    Attributes
    ----------
    unique_id : int
        The detector's number of the frame.
    image : ndarray, shape (H, W)
        Counts as the detector laid them; empty when ``fault`` says why.
    timestamp_s : float
        End of exposure by the detector's clock, seconds since the epoch; NaN when unknown.
    position_m : tuple of float
        (y, x) read back at the trigger, m; NaN where the frame does not carry it.
    i0 : float
        Beam monitor; NaN when unknown.
    arrival_s : float
        When the source took it, by this machine's clock; NaN for stored frames.
    channel : str
        Where it came from, "" when any run may claim it.
    origin : FrameOrigin
    fault : str
        Why it cannot be used, "" for a whole frame.
    """

    unique_id: int
    image: NDArray[Any]
    timestamp_s: float = np.nan
    position_m: tuple[float, float] = (np.nan, np.nan)
    i0: float = np.nan
    arrival_s: float = np.nan
    channel: str = ""
    origin: FrameOrigin = FrameOrigin.STREAM
    fault: str = ""
