"""What the trajectory controller and the detector need of a stage, in this process or in another one."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from caproto import CaprotoError
from caproto.sync.client import read, write
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError, UnreachableError

__all__ = ["METRES_PER_UNIT", "AxisRange", "RemoteStage", "StageDrive", "check_trajectory", "run_up_s"]

logger = logging.getLogger(__name__)

METRES_PER_UNIT = 1e-6
"""The axes' engineering unit is the micrometre."""
VELOCITY_TOLERANCE = 1.001
MAX_RUN_UP_S = 30.0
REMOTE_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class AxisRange:
    """What an axis can do.

    Attributes
    ----------
    name : str
        Process variable of the motor record.
    low_um, high_um : float
        Soft limits; equal ones mean none.
    velocity_um_s : float
    """

    name: str
    low_um: float
    high_um: float
    velocity_um_s: float


class StageDrive(Protocol):
    """A stage whose axes are given in the order (y, x)."""

    async def read_m(self) -> tuple[float, float]:
        """Present position (y, x)."""
        ...

    async def ranges(self) -> tuple[AxisRange, AxisRange]:
        """What the axes (y, x) can do."""
        ...

    async def go_to(self, position_m: tuple[float, float]) -> None:
        """Run up to the first point of a trajectory and stay under its control."""
        ...

    async def follow(self, position_m: tuple[float, float]) -> None:
        """Be where the trajectory is."""
        ...

    async def release(self) -> None:
        """End of the trajectory."""
        ...


def check_trajectory(position_m: NDArray[np.float64], period_s: float, ranges: tuple[AxisRange, AxisRange]) -> None:
    """Refuse a trajectory that the stage cannot follow.

    Parameters
    ----------
    position_m : ndarray of float64, shape (n, 2)
        (y, x).
    period_s : float
        Time between points.
    ranges : tuple of AxisRange
        Of y and x.

    Raises
    ------
    InputError
        A point lies outside the soft limits, or the way between two takes longer than the period.
    """
    position_um = position_m / METRES_PER_UNIT
    for axis, values in zip(ranges, position_um.T, strict=True):
        low, high = float(values.min()), float(values.max())
        if axis.low_um != axis.high_um and not axis.low_um <= low <= high <= axis.high_um:
            raise InputError(
                f"trajectory from {low:.4g} to {high:.4g} um along {axis.name}",
                f"its soft limits are {axis.low_um:g} to {axis.high_um:g} um",
                "scan a smaller area or move the centre",
            )
        step_um = float(np.abs(np.diff(values)).max(initial=0.0))
        if step_um > axis.velocity_um_s * period_s * VELOCITY_TOLERANCE:
            raise InputError(
                f"trajectory with a step of {step_um:.4g} um within {period_s:g} s along {axis.name}",
                f"its VELO is {axis.velocity_um_s:g} um/s",
                "take a longer period or a smaller step",
            )


def run_up_s(here_m: tuple[float, float], there_m: tuple[float, float], ranges: tuple[AxisRange, AxisRange]) -> float:
    """Time that the slower axis takes."""
    distance_um = np.abs(np.subtract(there_m, here_m)) / METRES_PER_UNIT
    return min(MAX_RUN_UP_S, float(max(d / axis.velocity_um_s for d, axis in zip(distance_um, ranges, strict=True))))


class RemoteStage:
    """The stage that another process serves: implements `StageDrive` with puts and gets.

    Parameters
    ----------
    prefix : str
        ``m1`` (x) and ``m2`` (y) follow it.

    Notes
    -----
    One thread makes all calls, as caproto's synchronous client asks for; nothing stays connected between them. While a
    trajectory runs, the motor records get a new target ten times a second.
    """

    def __init__(self, prefix: str) -> None:
        self._axes = (f"{prefix}m2", f"{prefix}m1")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="remote-stage")
        self._lost = False

    async def _call(self, function: Any, *arguments: Any, **options: Any) -> Any:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(
                self._thread, lambda: function(*arguments, timeout=REMOTE_TIMEOUT_S, repeater=False, **options)
            )
        except (CaprotoError, TimeoutError, OSError) as error:
            raise UnreachableError(
                f"{arguments[0]}: {error}", "the detector follows a stage", "start ptycho-bluesky ioc stage"
            ) from error

    async def _get(self, name: str) -> float:
        return float((await self._call(read, name)).data[0])

    async def read_m(self) -> tuple[float, float]:
        """Present position (y, x)."""
        y, x = [await self._get(f"{axis}.RBV") for axis in self._axes]
        return y * METRES_PER_UNIT, x * METRES_PER_UNIT

    async def ranges(self) -> tuple[AxisRange, AxisRange]:
        """What the axes (y, x) can do."""
        y, x = [
            AxisRange(axis, *[await self._get(f"{axis}.{field}") for field in ("LLM", "HLM", "VELO")])
            for axis in self._axes
        ]
        return y, x

    async def go_to(self, position_m: tuple[float, float]) -> None:
        """Move there and wait."""
        self._lost = False
        duration_s = run_up_s(await self.read_m(), position_m, await self.ranges())
        await self._put(position_m)
        await asyncio.sleep(duration_s)

    async def _put(self, position_m: tuple[float, float]) -> None:
        for axis, value in zip(self._axes, position_m, strict=True):
            await self._call(write, axis, value / METRES_PER_UNIT)

    async def follow(self, position_m: tuple[float, float]) -> None:
        """Tell the motors where the trajectory is; a stage that is lost on the way does not stop the detector."""
        if self._lost:
            return
        try:
            await self._put(position_m)
        except UnreachableError as error:
            self._lost = True
            logger.error("%s", error)

    async def release(self) -> None:
        """Nothing to do: the motors stay at their last target."""
