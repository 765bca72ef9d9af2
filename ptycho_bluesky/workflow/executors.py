"""Where the worker's stages are computed: in processes of this machine, or in the worker itself.

Anything that is a ``concurrent.futures.Executor`` will do; what is submitted are plain functions of plain arguments
whose products are files.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from typing import Any

from ptycho_bluesky.config import WorkerSettings

__all__ = ["InlineExecutor", "make_executor", "stop_executor"]

logger = logging.getLogger(__name__)

PARENT_POLL_S = 1.0


class InlineExecutor(Executor):
    """Runs what is submitted at once, in the caller's thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run and return a finished future."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 a future carries whatever its function raised
            future.set_exception(error)
        return future


def make_executor(settings: WorkerSettings) -> Executor:
    """Executor that the settings name."""
    if settings.executor == "inline":
        return InlineExecutor()
    return ProcessPoolExecutor(
        settings.max_workers,
        # Spawned, not forked: the worker has threads, and torch does not survive a fork of them.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_initialise,
        initargs=(os.getpid(),),
    )


def stop_executor(executor: Executor, wait_s: float) -> None:
    """End an executor; processes that are still computing after a time are killed, their products being restartable."""
    processes = list((getattr(executor, "_processes", None) or {}).values())
    executor.shutdown(wait=False, cancel_futures=True)
    deadline = time.monotonic() + wait_s
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join(5.0)


def _initialise(parent: int) -> None:
    """Set up a process of the pool: signals are the worker's business, and it ends when the worker is killed."""
    logging.basicConfig(level=logging.WARNING)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_S)
    os._exit(1)
