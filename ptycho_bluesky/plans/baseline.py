"""Baseline readings that never hide why a scan ended."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from bluesky import Msg
from bluesky import plan_stubs as bps
from bluesky.preprocessors import plan_mutator
from bluesky.protocols import Readable

from ptycho_bluesky.plans.stubs import attempt

__all__ = ["baseline_wrapper"]


def baseline_wrapper(
    plan: Generator[Msg, Any, Any], devices: Sequence[Readable], name: str = "baseline"
) -> Generator[Msg, Any, Any]:
    """Read devices behind every ``open_run`` and before every ``close_run``.

    Parameters
    ----------
    plan : generator of Msg
    devices : sequence of Readable
    name : str
        Stream.

    Notes
    -----
    As `bluesky.preprocessors.baseline_wrapper`, but a failure of the second reading is logged: bluesky's would replace
    the error that ended the scan (a dead server) by its own.
    """
    if not devices:
        return (yield from plan)

    def before() -> Generator[Msg, Any, None]:
        yield from bps.declare_stream(*devices, name=name)
        yield from bps.trigger_and_read(devices, name=name)

    def after(message: Msg) -> Generator[Msg, Any, Any]:
        yield from attempt(bps.trigger_and_read(devices, name=name), "reading the baseline")
        # a pause behind close_run would repeat the reading, without a run
        yield from attempt(bps.checkpoint(), "checkpoint")
        return (yield message)

    def mutate(message: Msg) -> tuple[Any, Any]:
        if message.command == "open_run":
            return None, before()
        if message.command == "close_run":
            return after(message), None
        return None, None

    return (yield from plan_mutator(plan, mutate))
