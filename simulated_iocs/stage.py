"""The sample stage: two motor records that move with a velocity."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

from caproto.server import pvproperty

from ptycho_bluesky.errors import InputError
from simulated_iocs.channels import Busy, RefreshedGroup, guarded, refuse
from simulated_iocs.stage_drive import METRES_PER_UNIT, AxisRange, run_up_s

__all__ = ["MotorAxis", "Stage"]

TICK_S = 0.02
MIN_MOVE_S = 0.004
"""A shorter move would be over before a client saw it begin."""


class MotorAxis(RefreshedGroup):
    """An EPICS motor record.

    Parameters
    ----------
    limit_um : float
        Soft limits are ± this.
    velocity_um_s : float
        Initial VELO.
    description : str
        DESC of the record.
    """

    motor = pvproperty(name="", value=0.0, record="motor", precision=5, units="um")

    def __init__(self, *args: Any, limit_um: float, velocity_um_s: float, description: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limit_um, self._velocity_um_s, self._description = limit_um, velocity_um_s, description
        self._position_um = self._target_um = 0.0
        self._driven = False
        self._busy = Busy()
        self._task: asyncio.Task[None] | None = None

    @property
    def position_um(self) -> float:
        """Readback."""
        return self._position_um

    @property
    def velocity_um_s(self) -> float:
        """VELO."""
        return float(self.motor.field_inst.velocity.value)

    @property
    def moving(self) -> bool:
        """Whether the axis moves, by itself or driven by a trajectory."""
        return self._driven or (self._task is not None and not self._task.done())

    @property
    def range(self) -> AxisRange:
        """Soft limits and velocity."""
        fields = self.motor.field_inst
        return AxisRange(
            self.prefix, float(fields.user_low_limit.value), float(fields.user_high_limit.value), self.velocity_um_s
        )

    async def prepare(self) -> None:
        """Write limits, velocity and units into the record's fields and take over the writable ones."""
        fields = self.motor.field_inst
        for channel, value in (
            (fields.velocity, self._velocity_um_s),
            (fields.max_velocity, self._velocity_um_s),
            (fields.seconds_to_velocity, 0.001),
            (fields.motor_step_size, 0.001),
            (fields.engineering_units, "um"),
            (fields.description, self._description),
            (fields.done_moving_to_value, 1),
            (fields.user_low_limit, -self._limit_um),
            (fields.user_high_limit, self._limit_um),
        ):
            await channel.write(value, verify_value=False)
        # Instead of a putter: caproto's own check of the limits answers with an error, a motor record does not.
        self.motor.verify_value = self._put_value
        fields.stop.putter = self._put_stop
        fields.velocity.putter = guarded(self._put_velocity)
        fields.user_low_limit.putter = self._put_limit
        fields.user_high_limit.putter = self._put_limit
        await self._share_limits(-self._limit_um, self._limit_um)

    async def _share_limits(self, low: float, high: float) -> None:
        # Clients read the limits from the metadata of VAL; the record's fields do not set it.
        for channel in (self.motor, self.motor.field_inst.user_readback_value):
            await channel.write_metadata(
                lower_ctrl_limit=low, upper_ctrl_limit=high, lower_disp_limit=low, upper_disp_limit=high
            )

    async def _put_limit(self, channel: Any, value: float) -> None:
        fields = self.motor.field_inst
        low = value if channel is fields.user_low_limit else fields.user_low_limit.value
        high = value if channel is fields.user_high_limit else fields.user_high_limit.value
        await self._share_limits(low, high)

    async def _put_velocity(self, channel: Any, value: float) -> None:
        if not value > 0.0:
            raise InputError(f"{self.prefix}.VELO = {value}", "a velocity is positive")

    async def _put_stop(self, channel: Any, value: int) -> int:
        if value and not self._driven:
            self._target_um = self._position_um
        return 0

    async def _put_value(self, value: float) -> None:
        limits = self.range
        violation = int(limits.low_um != limits.high_um and not limits.low_um <= value <= limits.high_um)
        await self.motor.field_inst.limit_violation.write(violation)
        if violation:
            await refuse(self.motor, InputError(f"{self.prefix} = {value}", "it is outside the soft limits"))
        if self._driven:
            await refuse(
                self.motor,
                InputError(f"{self.prefix} = {value}", "a trajectory moves this axis", "wait for it or abort it"),
            )
        await self.motor.write(value, verify_value=False)
        self._target_um = float(value)
        if not self.moving:
            await self._begin()
            self._task = asyncio.create_task(self._move())
        await self._busy.wait_and_skip()

    async def _begin(self) -> None:
        self._busy.begin()
        fields = self.motor.field_inst
        await fields.done_moving_to_value.write(0)
        await fields.motor_is_moving.write(1)

    async def _end(self) -> None:
        fields = self.motor.field_inst
        await self._show()
        if self.motor.value != self._position_um:
            await self.motor.write(self._position_um, verify_value=False)
        await fields.motor_is_moving.write(0)
        await fields.done_moving_to_value.write(1)
        self._busy.end()

    async def _show(self) -> None:
        fields = self.motor.field_inst
        await fields.user_readback_value.write(self._position_um)
        await fields.dial_readback_value.write(self._position_um)

    async def _move(self) -> None:
        try:
            await asyncio.sleep(MIN_MOVE_S)
            then = time.monotonic() - MIN_MOVE_S
            while (distance := self._target_um - self._position_um) != 0.0:
                now = time.monotonic()
                reach, then = self.velocity_um_s * (now - then), now
                if abs(distance) <= reach:
                    self._position_um = self._target_um
                    break
                self._position_um += math.copysign(reach, distance)
                await self._show()
                await asyncio.sleep(min(TICK_S, (abs(distance) - reach) / self.velocity_um_s))
        finally:
            self._target_um = self._position_um
            await self._end()

    async def drive_begin(self) -> None:
        """Let a trajectory move the axis."""
        self._driven = True
        await self._begin()

    async def drive_to(self, position_um: float) -> None:
        """Follow the trajectory."""
        if position_um != self._position_um:
            self._position_um = self._target_um = position_um
            await self._show()

    async def drive_end(self) -> None:
        """The trajectory is over; the set point becomes the readback."""
        self._driven = False
        await self._end()


class Stage:
    """Two axes of this process, a `StageDrive`: ``m1`` moves x, along the columns, and ``m2`` y, down the rows.

    Parameters
    ----------
    prefix : str
    limit_um, velocity_um_s : float
    """

    def __init__(self, prefix: str, *, limit_um: float, velocity_um_s: float) -> None:
        self.x = MotorAxis(
            f"{prefix}m1", limit_um=limit_um, velocity_um_s=velocity_um_s, description="Sample x, columns"
        )
        self.y = MotorAxis(f"{prefix}m2", limit_um=limit_um, velocity_um_s=velocity_um_s, description="Sample y, rows")
        self.groups: tuple[RefreshedGroup, ...] = (self.x, self.y)

    async def read_m(self) -> tuple[float, float]:
        """Present position (y, x)."""
        return self.y.position_um * METRES_PER_UNIT, self.x.position_um * METRES_PER_UNIT

    async def ranges(self) -> tuple[AxisRange, AxisRange]:
        """What the axes (y, x) can do."""
        return self.y.range, self.x.range

    async def go_to(self, position_m: tuple[float, float]) -> None:
        """Run up to the first point of a trajectory, as fast as the slower axis allows."""
        await self.x.drive_begin()
        await self.y.drive_begin()
        await asyncio.sleep(run_up_s(await self.read_m(), position_m, await self.ranges()))
        await self.follow(position_m)

    async def follow(self, position_m: tuple[float, float]) -> None:
        """Show where the trajectory is."""
        await self.y.drive_to(position_m[0] / METRES_PER_UNIT)
        await self.x.drive_to(position_m[1] / METRES_PER_UNIT)

    async def release(self) -> None:
        """End of the trajectory."""
        await self.x.drive_end()
        await self.y.drive_end()
