"""The sample stage."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from ophyd import Component as Cpt
from ophyd import Device, EpicsMotor, EpicsSignal

from ptycho_bluesky.errors import InputError

__all__ = ["MOTOR_UNIT_M", "SampleStage", "StageMotor"]

MOTOR_UNIT_M = {"m": 1.0, "mm": 1e-3, "um": 1e-6, "µm": 1e-6, "μm": 1e-6, "micron": 1e-6, "nm": 1e-9}
"""Metres in a unit of a motor record's EGU field."""


class StageMotor(EpicsMotor):
    """Motor record that says when its last move is over.

    Its unit reads as text with every control layer (caproto hands out bytes otherwise).
    """

    motor_egu = Cpt(EpicsSignal, ".EGU", kind="config", auto_monitor=True, string=True)

    _last_move: Any = None

    def move(self, position: float, wait: bool = True, **kwargs: Any) -> Any:
        """Move, as any ophyd motor."""
        self._last_move = super().move(position, wait=False, **kwargs)
        if wait:
            self._last_move.wait()
        return self._last_move

    def wait_until_still(self, timeout_s: float) -> None:
        """Wait until the last move is over, however it ended.

        A move that is asked for while the record still decelerates fails the one before it.
        """
        if self._last_move is not None:
            self._last_move.exception(timeout_s)


class SampleStage(Device):
    """Two motor records; ``x`` moves along the columns and ``y`` down the rows of the object.

    Parameters
    ----------
    prefix : str
        Common prefix of the motors, ``PTY:`` for ``PTY:m1`` and ``PTY:m2``.
    name : str
    """

    x = Cpt(StageMotor, "m1")
    y = Cpt(StageMotor, "m2")

    @property
    def axes(self) -> tuple[Any, Any]:
        """Motors (y, x), in the order of the columns of positions."""
        return self.y, self.x

    def wait_until_still(self, timeout_s: float = 10.0) -> None:
        """Wait until both motors have ended their last move."""
        for motor in self.axes:
            motor.wait_until_still(timeout_s)

    def unit_m(self, motor: Any) -> float:
        """Metres in one engineering unit of the motor.

        Raises
        ------
        InputError
            The motor's EGU is no known length.
        """
        unit = str(motor.egu).strip()
        if unit not in MOTOR_UNIT_M:
            raise InputError(
                f"{motor.name}: EGU = {unit!r}",
                f"it must be a length, one of {', '.join(MOTOR_UNIT_M)}",
                f"set {motor.prefix}.EGU",
            )
        return MOTOR_UNIT_M[unit]

    def to_motor(self, position_m: tuple[float, float] | ArrayLike) -> tuple[float, float]:
        """Position (y, x) in m to set points (y, x) in the motors' units."""
        y, x = np.asarray(position_m, dtype=np.float64)
        return float(y) / self.unit_m(self.y), float(x) / self.unit_m(self.x)

    def check_positions(self, position_m: ArrayLike) -> None:
        """Check positions (n, 2) in m against the soft limits.

        Raises
        ------
        InputError
            A position lies outside; the message names the axis, the extreme and the limits.
        """
        for column, motor in enumerate((self.y, self.x)):
            value = np.asarray(position_m, dtype=np.float64)[:, column] / self.unit_m(motor)
            low, high = motor.limits
            if low >= high:
                continue  # a motor record without limits has both at 0
            extreme = float(value.min()) if value.min() < low else float(value.max())
            if not low <= extreme <= high:
                raise InputError(
                    f"{motor.name} would go to {extreme:.4g} {motor.egu}",
                    f"its limits are {low:g} to {high:g} {motor.egu}",
                    "scan a smaller area, move the centre or change the limits",
                )
