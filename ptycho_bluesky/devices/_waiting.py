"""Waiting with a deadline, and sequences of puts as one status.

Whatever decides reads over the network (``use_monitor=False``): a monitored value may lag behind what happened since.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, cast

from bluesky.protocols import Status
from ophyd.status import Status as OphydStatus
from ophyd.utils import DisconnectedError

from ptycho_bluesky.devices._errors import HardwareError

__all__ = ["POLL_S", "put_and_wait", "require_connection", "run_in_thread", "wait_until"]

logger = logging.getLogger(__name__)

POLL_S = 0.01
"""Period at which hardware is looked at."""


def run_in_thread(function: Callable[[], None], obj: Any, name: str) -> Status:
    """Run a function that blocks in a thread of its own and return its status at once.

    The RunEngine calls devices in its event loop: what waits for hardware must not wait there.

    Parameters
    ----------
    function : callable
        Every wait inside has a deadline of its own; an exception fails the status.
    obj : object
        Device that the status belongs to.
    name : str
        Of the thread, for whoever reads a stack dump.
    """
    status = OphydStatus(obj)

    def work() -> None:
        try:
            function()
        except (TimeoutError, DisconnectedError) as error:
            failure = HardwareError(f"{name}: a process variable is disconnected or does not answer ({error})")
            failure.__cause__ = error
            status.set_exception(failure)
        except Exception as error:
            logger.debug("%s failed", name, exc_info=True)
            status.set_exception(error)
        else:
            status.set_finished()

    threading.Thread(target=work, name=name, daemon=True).start()
    return cast("Status", status)


def wait_until(
    condition: Callable[[], bool],
    timeout_s: float,
    what: str,
    *,
    fault: Callable[[], str] | None = None,
    poll_s: float = POLL_S,
) -> None:
    """Wait until a condition holds.

    Parameters
    ----------
    condition : callable
        Looked at every ``poll_s``.
    timeout_s : float
        Deadline in s.
    what : str
        What is waited for, for the message.
    fault : callable, optional
        Returns why it can never come true, "" while it can.

    Raises
    ------
    HardwareError
        The deadline passed, or ``fault`` gave a reason.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        reason = fault() if fault is not None else ""
        if reason:
            raise HardwareError(f"{what}: {reason}")
        if time.monotonic() > deadline:
            raise HardwareError(f"{what}: not within {timeout_s:g} s")
        time.sleep(poll_s)


def require_connection(signal: Any) -> None:
    """Fail at once where a signal is disconnected, rather than after the time-out of each access.

    Raises
    ------
    HardwareError
        It is disconnected.
    """
    if not signal.connected:
        raise HardwareError(f"{getattr(signal, 'pvname', signal.name)} is disconnected")


def put_and_wait(signal: Any, value: Any, timeout_s: float = 5.0) -> None:
    """Put a value and wait until the readback shows it.

    Raises
    ------
    HardwareError
        The readback did not follow in time.
    """
    require_connection(signal)
    signal.put(value)

    def reached() -> bool:
        readback = signal.get(use_monitor=False)
        if isinstance(value, str):
            return str(readback).rstrip("/\0") == value.rstrip("/")
        return abs(float(readback) - float(value)) <= 1e-6 * max(1.0, abs(float(value)))

    wait_until(reached, timeout_s, f"{signal.name} = {value!r}")
