"""Connecting devices: bounded, and naming the process variables that do not answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from ophyd.signal import EpicsSignalBase

from ptycho_bluesky.errors import UnreachableError

__all__ = ["connect", "disconnected_pvs", "set_signal_defaults"]


def set_signal_defaults(
    *, timeout_s: float = 5.0, connection_timeout_s: float = 5.0, write_timeout_s: float = 30.0
) -> bool:
    """Bound every read, connection and write of ophyd; call it before the first device is made.

    Without it a put that a server never acknowledges blocks the RunEngine for ever.

    Returns
    -------
    bool
        False if a signal existed already, so that the defaults could not be set.
    """
    try:
        EpicsSignalBase.set_defaults(
            timeout=timeout_s, connection_timeout=connection_timeout_s, write_timeout=write_timeout_s
        )
    except RuntimeError:
        return False
    return True


def _signals(device: Any) -> Iterator[Any]:
    if hasattr(device, "walk_signals"):
        for walk in device.walk_signals(include_lazy=False):
            yield walk.item
    elif isinstance(device, EpicsSignalBase):
        yield device
    else:
        for part in getattr(device, "devices", ()):
            yield from _signals(part)


def disconnected_pvs(*devices: Any) -> list[str]:
    """Names of process variables that are not connected, of devices, signals, or objects with ``devices``."""
    missing = []
    for device in devices:
        for signal in _signals(device):
            if not getattr(signal, "connected", True):
                missing.append(str(getattr(signal, "pvname", signal.name)))
    return sorted(set(missing))


def connect(*devices: Any, timeout_s: float = 5.0) -> None:
    """Wait until every process variable of the devices answers.

    Raises
    ------
    UnreachableError
        Some do not within ``timeout_s``; the message names them.
    """
    deadline = time.monotonic() + timeout_s
    while missing := disconnected_pvs(*devices):
        if time.monotonic() > deadline:
            shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            raise UnreachableError(
                f"process variable(s) {shown} do not answer within {timeout_s:g} s",
                "devices must be connected before a scan",
                "start the beamline (ptycho-bluesky ioc), and check epics.prefix and the EPICS address list",
            )
        time.sleep(0.02)
