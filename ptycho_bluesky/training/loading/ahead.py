"""Doing the next piece of work in a thread while the last one is used."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["ahead"]

POLL_S = 0.1


def ahead(items: Iterator[Any], work: Callable[[Any], Any]) -> Iterator[Any]:
    """Results of ``work(item)`` in order, each computed in a thread while the one before it is used."""
    done: queue.Queue[Any] = queue.Queue(maxsize=1)
    stop = threading.Event()
    end = object()

    def put(value: Any) -> None:
        while not stop.is_set():
            try:
                done.put(value, timeout=POLL_S)
                return
            except queue.Full:
                continue

    def run() -> None:
        try:
            for item in items:
                if stop.is_set():
                    return
                put(work(item))
            put(end)
        except BaseException as error:  # noqa: BLE001 - it is raised again where the batches are used
            put(error)

    thread = threading.Thread(target=run, name="read-ahead", daemon=True)
    thread.start()
    try:
        while (value := done.get()) is not end:
            if isinstance(value, BaseException):
                raise value
            yield value
    finally:
        stop.set()
        thread.join()
