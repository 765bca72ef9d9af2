"""Process variables in areaDetector's manner: set points with readbacks, long strings, enums, busy records."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from caproto import AlarmSeverity, AlarmStatus, ChannelType, SkipWrite
from caproto._data import ChannelEnum
from caproto.server import PVGroup, get_pv_pair_wrapper, pvproperty

from ptycho_bluesky.errors import InputError

__all__ = [
    "EMPTY",
    "LONG_ARRAY_BACKLOG",
    "LONG_STRING_CHARS",
    "Busy",
    "RefreshedGroup",
    "accept_empty",
    "command",
    "enum_pair",
    "enum_readback",
    "guarded",
    "index_of",
    "long_string",
    "long_string_pair",
    "number_pair",
    "number_readback",
    "publish",
    "refuse",
    "setting",
    "short_string",
    "short_string_pair",
    "switch",
    "switch_pair",
    "waveform",
]

logger = logging.getLogger(__name__)

LONG_STRING_CHARS = 256
EMPTY = "\0"
"""An empty long string: an array of no characters cannot be put."""
LONG_ARRAY_BACKLOG = 4
"""Updates of a long array that wait for a slow client."""
NO_YES = ("No", "Yes")

# Annotated as Any: pvproperty takes more kinds of dtype than its annotation says.
_property: Any = pvproperty
_pair: Any = get_pv_pair_wrapper(setpoint_suffix="", readback_suffix="_RBV")


def number_pair(name: str, value: float, **options: Any) -> Any:
    """Set point and ``_RBV`` of a number; an int makes a LONG, a float a DOUBLE record."""
    if isinstance(value, float):
        options.setdefault("precision", 6)
    return _pair(name=name, value=value, dtype=type(value), **options)


def number_readback(name: str, value: float, **options: Any) -> Any:
    """Read-only number."""
    if isinstance(value, float):
        options.setdefault("precision", 6)
    return _property(name=name, value=value, dtype=type(value), read_only=True, **options)


def enum_pair(name: str, strings: tuple[str, ...], value: int = 0, **options: Any) -> Any:
    """Set point and ``_RBV`` of a choice."""
    return _pair(name=name, value=strings[value], dtype=ChannelType.ENUM, enum_strings=strings, **options)


def switch_pair(name: str, value: int = 0, strings: tuple[str, str] = NO_YES, **options: Any) -> Any:
    """Set point and ``_RBV`` of a binary choice."""
    return enum_pair(name, strings, value, **options)


def enum_readback(name: str, strings: tuple[str, ...], value: int = 0, **options: Any) -> Any:
    """Read-only choice."""
    return _property(
        name=name, value=strings[value], dtype=ChannelType.ENUM, enum_strings=strings, read_only=True, **options
    )


def short_string(name: str, value: str, **options: Any) -> Any:
    """Read-only string of at most 39 characters (a STRING record, not an array of characters)."""
    return _property(name=name, value=value, dtype=ChannelType.STRING, read_only=True, **options)


def short_string_pair(name: str, value: str, **options: Any) -> Any:
    """Set point and ``_RBV`` of a string of at most 39 characters."""
    return _pair(name=name, value=value, dtype=ChannelType.STRING, **options)


def _long(options: dict[str, Any]) -> dict[str, Any]:
    # Reported as the array of characters that it is: as a string, clients would cut it at 40 characters.
    return {"dtype": ChannelType.CHAR, "max_length": LONG_STRING_CHARS, "report_as_string": False, **options}


def long_string(name: str, value: str, **options: Any) -> Any:
    """Read-only string, an array of characters."""
    return _property(name=name, value=value, **_long({"read_only": True, **options}))


def long_string_pair(name: str, value: str, **options: Any) -> Any:
    """Set point and ``_RBV`` of a string, arrays of characters."""
    return _pair(name=name, value=value, **_long(options))


def command(name: str) -> Any:
    """Writable binary that starts something: Done (0) and ``name`` (1)."""
    return _property(name=name, value="Done", dtype=ChannelType.ENUM, enum_strings=("Done", name))


def setting(name: str, value: float, **options: Any) -> Any:
    """Writable number without a readback."""
    return _property(name=name, value=value, dtype=type(value), **options)


def switch(name: str, strings: tuple[str, str] = ("Off", "On")) -> Any:
    """Writable binary choice without a readback."""
    return _property(name=name, value=strings[0], dtype=ChannelType.ENUM, enum_strings=strings)


def waveform(name: str, max_length: int, **options: Any) -> Any:
    """Array of float64, one NaN at first."""
    return _property(
        name=name,
        value=[float("nan")],
        dtype=float,
        max_length=max_length,
        max_subscription_backlog=LONG_ARRAY_BACKLOG,
        **options,
    )


def accept_empty(channel: Any) -> None:
    """Let a client put an empty string into an array of characters: one NUL is stored.

    caproto cannot convert such a value and answers nothing that its own client would understand; who restores an empty
    initial value then waits for ever.
    """
    convert = channel.write_from_dbr

    async def write_from_dbr(data: Any, data_type: Any, metadata: Any, *, flags: int = 0) -> Any:
        if not bytes(data).strip(b"\0"):
            return await channel.write(EMPTY, flags=flags)
        return await convert(data, data_type, metadata, flags=flags)

    channel.write_from_dbr = write_from_dbr


async def publish(channel: Any, value: Any) -> None:
    """Write a value from inside, past the putter, and only if it is a new one."""
    if isinstance(channel, ChannelEnum):
        value = value if isinstance(value, str) else channel.enum_strings[int(value)]
    elif isinstance(value, str) and channel.data_type == ChannelType.CHAR:
        value = value[: channel.long_string_max_length] or EMPTY
    if channel.value != value:
        await channel.write(value, verify_value=False)


def index_of(channel: Any) -> int:
    """Index of an enum channel's present choice."""
    return int(channel.raw_value)


async def refuse(channel: Any, error: Exception) -> None:
    """Leave the value as it is: log why, raise the channel's alarm, complete the put.

    An error in answer to a put would leave some clients waiting for its completion until their timeout.
    """
    logger.warning("put refused: %s", error)
    await channel.alarm.write(status=AlarmStatus.WRITE, severity=AlarmSeverity.MAJOR_ALARM)
    raise SkipWrite


def guarded(putter: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
    """Make a putter that may raise `InputError` refuse such values."""

    async def put(channel: Any, value: Any) -> Any:
        try:
            result = await putter(channel, value)
        except InputError as error:
            await refuse(channel, error)
            return None
        if channel.alarm.severity != AlarmSeverity.NO_ALARM:
            await channel.alarm.write(status=AlarmStatus.NO_ALARM, severity=AlarmSeverity.NO_ALARM)
        return result

    return put


class Busy:
    """A put that completes when what it started has ended, as EPICS' busy record does."""

    def __init__(self) -> None:
        self._idle = asyncio.Event()
        self._idle.set()

    def begin(self) -> None:
        """What was asked for has started."""
        self._idle.clear()

    def end(self) -> None:
        """It has ended."""
        self._idle.set()

    async def wait_and_skip(self) -> None:
        """Wait for the end; then tell the server that the value was written already."""
        await self._idle.wait()
        raise SkipWrite


class RefreshedGroup(PVGroup):
    """A group whose readbacks follow the simulation.

    `refresh` runs in the server's event loop, ten times a second and at each change of state.
    """

    async def prepare(self) -> None:
        """Set what cannot be set when the group is made; runs once, before the first client is served."""

    async def refresh(self) -> None:
        """Bring every readback up to date."""
