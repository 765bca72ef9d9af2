"""Handing a stage to the executor and waiting for it, also through the loss of the executor.

Notes
-----
A process of this machine's pool that dies may have been killed by its stage: the stage fails, and the pool is started
anew. A scheduler, interchange or service that is gone (`ptycho_bluesky.workflow.executors.why_broken`) is no fault of
the stage, like Tiled being away: a new connection is tried with growing pauses, and the stage is submitted again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from ptycho_bluesky.errors import InputError, UnreachableError
from ptycho_bluesky.workflow.executors import stop_executor, why_broken

__all__ = ["Compute"]

logger = logging.getLogger(__name__)

POLL_S = 0.2
AGAIN_S = 1.0
FIRST_PAUSE_S, LAST_PAUSE_S = 1.0, 30.0


@dataclass(frozen=True)
class _Call:
    """What was submitted, and to which executor; to none where that could not be reached."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    executor: Executor | None


class _LostError(Exception):
    """What computed a call is gone, and its result with it."""


class Compute:
    """The executor of a worker, shared by the threads of its runs.

    Parameters
    ----------
    make : callable
        Makes an executor; called again when the one in use is broken, or when it raised `UnreachableError`.
    """

    def __init__(self, make: Callable[[], Executor]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._calls: WeakKeyDictionary[Future[Any], _Call] = WeakKeyDictionary()
        self._executor: Executor | None = None
        self._stopped = False
        self._pause_s, self._next_try_s = FIRST_PAUSE_S, 0.0
        self.replaced = 0
        """How often a broken executor was replaced."""
        try:
            self._executor = make()
        except UnreachableError as error:
            # It may come up later, as Tiled may.
            logger.warning("%s Stages wait for it.", error)
            self._next_try_s = time.monotonic() + FIRST_PAUSE_S

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        """Submit to the executor; a broken one is replaced first.

        Returns
        -------
        Future
            With `UnreachableError` where the executor cannot be reached now; `result` waits until it can.
        """
        executor: Executor | None = None
        try:
            executor, future = self._submit(function, arguments)
        except UnreachableError as error:
            future = Future()
            future.set_exception(error)
        with self._lock:
            self._calls[future] = _Call(function, arguments, executor)
        return future

    def _submit(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Executor, Future[Any]]:
        executor = self._usable()
        for again in (True, False):
            try:
                return executor, executor.submit(function, *arguments)
            except Exception as error:
                broken = isinstance(error, BrokenExecutor)
                if not broken and not why_broken(executor):
                    raise
                if again:
                    executor = self._usable(executor if broken else None)
        raise _unreachable("it broke again as soon as it was replaced")

    def _usable(self, broken: Executor | None = None) -> Executor:
        """The executor, made anew where it is broken, as it is where it is the one that the caller names."""
        with self._lock:
            executor = self._executor
            if self._stopped:
                raise RuntimeError("the executor was stopped")
            if executor is not None:
                reason = "a process of it died" if executor is broken else why_broken(executor)
                if not reason:
                    return executor
                logger.warning("the executor is started anew: %s", reason)
                self._executor = None
                self.replaced += 1
                _stop_broken(executor)
                if broken is not None:
                    # Nobody need be waited for: it is processes of this machine.
                    self._next_try_s = 0.0
            if time.monotonic() < self._next_try_s:
                raise _unreachable("it has not answered; it is tried again soon")
            try:
                self._executor = self._make()
            except Exception as error:
                # Its options were good before: what fails now is what it connects to.
                raise _unreachable(str(error)) from error
            finally:
                # Also after a success: one that breaks again and again is not made anew in a hurry.
                self._next_try_s = time.monotonic() + self._pause_s
                self._pause_s = min(2 * self._pause_s, LAST_PAUSE_S)
            return self._executor

    def result(self, future: Future[Any], give_up: Callable[[], None]) -> Any:
        """Wait for a result; ``give_up`` is asked meanwhile and may raise, which cancels what has not begun.

        A call whose executor was lost is submitted again, once there is one.
        """
        told = False
        while True:
            call = self._calls.get(future)
            try:
                value = self._wait(future, call, give_up)
            except _LostError as lost:
                assert call is not None
                if not told:
                    logger.warning("a stage waits for the executor: %s", lost)
                told = True
            else:
                self._pause_s = FIRST_PAUSE_S
                return value
            _pause(AGAIN_S, give_up)
            future = self.submit(call.function, *call.arguments)

    def _wait(self, future: Future[Any], call: _Call | None, give_up: Callable[[], None]) -> Any:
        while not wait([future], timeout=POLL_S).done:
            try:
                give_up()
            except BaseException:
                _cancel(future)
                raise
            # Some futures never end when what computes them is gone.
            if call is not None and call.executor is not None and (reason := why_broken(call.executor)):
                _cancel(future)
                raise _LostError(reason)
        try:
            return future.result()
        except Exception as error:
            if reason := _lost(future, call, error):
                raise _LostError(reason) from error
            raise

    def stop(self, wait_s: float) -> None:
        """End the executor; what still computes after a time is killed where that can be done."""
        with self._lock:
            executor, self._executor, self._stopped = self._executor, None, True
        if executor is not None and why_broken(executor):
            _stop_broken(executor)
        elif executor is not None:
            stop_executor(executor, wait_s)


def _lost(future: Future[Any], call: _Call | None, error: Exception) -> str:
    """Why a finished future says nothing about its call, "" where it does."""
    if call is None:
        return ""
    if call.executor is None:
        return str(error)
    if future.cancelled():
        # Not by us: a Dask client that has lost its scheduler, even for a moment, forgets what it had submitted.
        return why_broken(call.executor) or "what was submitted to it is lost"
    return "" if isinstance(error, InputError) else why_broken(call.executor)


def _cancel(future: Future[Any]) -> None:
    # Parsl's futures cannot be cancelled, and say so by an error.
    with suppress(NotImplementedError):
        future.cancel()


def _stop_broken(executor: Executor) -> None:
    try:
        stop_executor(executor, 0.0)
    except Exception as error:  # noqa: BLE001 it is broken: whatever else fails now, a new one takes its place
        logger.warning("the broken executor did not end cleanly: %s: %s", type(error).__name__, error)


def _unreachable(reason: str) -> UnreachableError:
    return UnreachableError(
        f"the executor is away: {reason}", "stages are computed there", "see to it; what waits then goes on"
    )


def _pause(seconds: float, give_up: Callable[[], None]) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        give_up()
        time.sleep(POLL_S)
