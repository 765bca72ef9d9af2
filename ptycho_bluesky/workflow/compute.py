"""Handing a stage to the executor and waiting for it: broken executors are replaced, a stop or cancellation ends it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from typing import Any

from ptycho_bluesky.workflow.executors import stop_executor

__all__ = ["Compute"]

logger = logging.getLogger(__name__)

POLL_S = 0.2


class Compute:
    """The executor of a worker, shared by the threads of its runs.

    Parameters
    ----------
    make : callable
        Makes an executor; called again when the one in use is broken (a process of it was killed).
    """

    def __init__(self, make: Callable[[], Executor]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._executor: Executor | None = make()
        self.replaced = 0
        """How often a broken executor was replaced."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        """Submit to the executor; a broken one is replaced first."""
        executor = self._executor
        if executor is None:
            raise RuntimeError("the executor was stopped")
        try:
            return executor.submit(function, *arguments)
        except BrokenExecutor:
            return self._replace(executor).submit(function, *arguments)

    def _replace(self, broken: Executor) -> Executor:
        with self._lock:
            if self._executor is broken:
                logger.warning("a process of the executor died; it is started anew")
                stop_executor(broken, 0.0)
                self._executor = self._make()
                self.replaced += 1
            if self._executor is None:
                raise RuntimeError("the executor was stopped")
            return self._executor

    def result(self, future: Future[Any], give_up: Callable[[], None]) -> Any:
        """Wait for a result; ``give_up`` is asked meanwhile and may raise, which cancels what has not begun."""
        while True:
            try:
                return future.result(timeout=POLL_S)
            except TimeoutError:
                if future.done():
                    raise
            try:
                give_up()
            except BaseException:
                future.cancel()
                raise

    def stop(self, wait_s: float) -> None:
        """End the executor; what still computes after a time is killed where that can be done."""
        with self._lock:
            executor, self._executor = self._executor, None
        if executor is not None:
            stop_executor(executor, wait_s)
