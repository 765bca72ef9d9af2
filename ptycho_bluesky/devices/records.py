"""Readable records: what one event of a stream carries that is no process variable."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from bluesky.protocols import Status
from event_model.documents import DataKey

from ptycho_bluesky.devices._waiting import run_in_thread

__all__ = ["Action", "EventRecord"]

_DTYPES = {float: ("number", "<f8"), int: ("integer", "<i8"), str: ("string", "<U")}


class EventRecord:
    """Named values that a plan reads into a stream of their own.

    Parameters
    ----------
    name : str
        Name of the record (and of the stream that it is meant for).
    fields : dict of str to type
        Data key to ``int``, ``float``, ``str``, or ``list`` for a one-dimensional float array.
    on_trigger : callable, optional
        Called by `trigger`; its status is returned. It fills the record with `put`.

    Notes
    -----
    Arrays are handed out as lists: documents then read the same before and after JSON and msgpack.
    """

    parent = None

    def __init__(self, name: str, fields: dict[str, type], *, on_trigger: Callable[[], Status] | None = None) -> None:
        self.name = name
        self._fields = dict(fields)
        self._on_trigger = on_trigger
        self._values: dict[str, Any] = {}
        self._timestamp_s = 0.0

    @property
    def hints(self) -> dict[str, Any]:
        """No field is worth a plot."""
        return {"fields": []}

    @property
    def values(self) -> dict[str, Any]:
        """Values by data key."""
        return dict(self._values)

    def put(self, **values: Any) -> None:
        """Set every field; the time stamp of the reading is now.

        Raises
        ------
        KeyError
            A field is missing or unknown.
        """
        if set(values) != set(self._fields):
            raise KeyError(f"{self.name} takes {sorted(self._fields)}, not {sorted(values)}")
        self._values = {
            key: np.asarray(value, dtype=np.float64).tolist() if self._fields[key] is list else self._fields[key](value)
            for key, value in values.items()
        }
        self._timestamp_s = time.time()

    def trigger(self) -> Status:
        """Do what fills the record, e.g. arm the detector."""
        if self._on_trigger is None:
            return run_in_thread(lambda: None, self, self.name)
        return self._on_trigger()

    def describe(self) -> dict[str, DataKey]:
        """Data keys; the length of an array is that of the present value."""
        keys: dict[str, DataKey] = {}
        for key, kind in self._fields.items():
            if kind is list:
                shape: list[int | None] = [len(self._values.get(key, ()))]
                keys[key] = DataKey(source=f"py:{self.name}.{key}", dtype="array", shape=shape, dtype_numpy="<f8")
            else:
                dtype, dtype_numpy = _DTYPES[kind]
                keys[key] = DataKey(source=f"py:{self.name}.{key}", dtype=dtype, shape=[])  # pyright: ignore[reportArgumentType]
                if kind is not str:
                    keys[key]["dtype_numpy"] = dtype_numpy
        return keys

    def read(self) -> dict[str, Any]:
        """Values with their time stamp (s since the epoch)."""
        return {key: {"value": value, "timestamp": self._timestamp_s} for key, value in self._values.items()}


class Action:
    """Something that a plan has a device do, as a message: ``bps.trigger(device.action, wait=True)``.

    Parameters
    ----------
    name : str
    on_trigger : callable
        Starts it and returns its status.
    """

    parent = None

    def __init__(self, name: str, on_trigger: Callable[[], Status]) -> None:
        self.name = name
        self._on_trigger = on_trigger

    def trigger(self) -> Status:
        """Start it."""
        return self._on_trigger()
