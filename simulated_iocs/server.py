"""Serves a beamline until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from caproto import CaprotoError
from caproto.asyncio.server import Context
from caproto.sync.client import read

from ptycho_bluesky.errors import InputError, UnreachableError
from simulated_iocs.beamline import Beamline
from simulated_iocs.options import BeamlineOptions
from simulated_iocs.publisher import PVA

__all__ = ["ready_line", "run", "serve"]

logger = logging.getLogger(__name__)

SWITCH_INTERVAL_S = 5e-4
"""The interpreter's thread switch interval; its default, 5 ms, is ten periods of a 2 kHz detector."""
SEARCH_S = 0.5
READY_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 5.0


def ready_line(beamline: Beamline) -> str:
    """What is printed once everything is served."""
    options = beamline.options
    parts = {"prefix": options.prefix, "role": options.role, "pvs": len(beamline.pvdb)}
    parts["ca_port"] = os.environ.get("EPICS_CA_SERVER_PORT", "5064")
    if options.role != "stage":
        rows, cols = beamline.scene.frame_shape
        parts |= {
            "pva_port": os.environ.get("EPICS_PVAS_SERVER_PORT", "5075"),
            "channel": beamline.channel,
            "frame": f"{rows}x{cols}",
            "dtype": beamline.scene.dtype,
            "source": "recorded" if beamline.scene.is_recorded else options.sample,
        }
    return "READY ioc " + " ".join(f"{key}={value}" for key, value in parts.items())


def _is_served(name: str, timeout_s: float) -> bool:
    try:
        read(name, timeout=timeout_s, repeater=False)
    except (CaprotoError, TimeoutError, OSError):
        return False
    return True


async def _wait_until_served(beamline: Beamline) -> None:
    """Read through real clients before saying so."""
    loop = asyncio.get_running_loop()
    name = next(iter(beamline.pvdb))
    deadline = loop.time() + READY_TIMEOUT_S
    while not await loop.run_in_executor(None, _is_served, name, SEARCH_S):
        if loop.time() > deadline:
            raise UnreachableError(f"{name} is not served", "the server answers itself", "check the EPICS ports")
    if not beamline.channel:
        return
    channel = PVA.Channel(beamline.channel)
    channel.setTimeout(READY_TIMEOUT_S)
    try:
        await loop.run_in_executor(None, channel.get, "field(uniqueId)")
    except PVA.PvaException as error:
        raise UnreachableError(
            f"{beamline.channel} is not served: {error}", "the server answers itself", "check the EPICS ports"
        ) from error


async def serve(options: BeamlineOptions, on_ready: Callable[[Beamline], None] = lambda beamline: None) -> None:
    """Serve a beamline until SIGINT or SIGTERM.

    Parameters
    ----------
    options : BeamlineOptions
    on_ready : callable
        Called once clients can reach every server.

    Raises
    ------
    InputError
        The options cannot be used, or another server has the prefix already.
    UnreachableError
        The servers cannot be reached.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    beamline = await loop.run_in_executor(None, Beamline, options)
    name = next(iter(beamline.pvdb))
    if await loop.run_in_executor(None, _is_served, name, SEARCH_S):
        beamline.close()
        raise InputError(
            f"prefix {options.prefix}: {name} is served already",
            "a process variable has one server",
            "stop the other one, or choose another prefix or other ports",
        )
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    tasks: list[asyncio.Task[None]] = []
    try:
        await beamline.prepare()
        tasks = [
            asyncio.create_task(Context(beamline.pvdb).run()),
            asyncio.create_task(beamline.refresh_forever()),
        ]
        await _run_until(stop, tasks, _wait_until_served(beamline))
        if not stop.is_set():
            on_ready(beamline)
        await _run_until(stop, tasks)
    finally:
        logger.info("stopping")
        await loop.run_in_executor(None, beamline.close)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_TIMEOUT_S)


async def _run_until(
    stop: asyncio.Event, tasks: list[asyncio.Task[None]], work: Coroutine[Any, Any, None] | None = None
) -> None:
    """Wait for the end of the work (or the stop event), and raise what ends a server task early."""
    waiter = asyncio.ensure_future(stop.wait())
    pending: set[asyncio.Future[Any]] = {waiter, *tasks}
    if work is not None:
        pending.add(asyncio.ensure_future(work))
    try:
        done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        waiter.cancel()


def run(options: BeamlineOptions, on_ready: Callable[[Beamline], None] = lambda beamline: None) -> None:
    """`serve` in an event loop of its own."""

    async def serve_and_leave() -> None:
        exit_code = 1
        try:
            await serve(options, on_ready)
            exit_code = 0
        finally:
            # Nothing is open any more: neither a task that swallows its cancellation nor a rendering that goes on must
            # keep the process alive.
            last_resort = threading.Timer(STOP_TIMEOUT_S, os._exit, args=(exit_code,))
            last_resort.daemon = True
            last_resort.start()

    asyncio.run(serve_and_leave())
