"""Who looks at the edge's mosaic, in a process of its own: notes when each image came and which frames it lists.

``python -m`` this module with the name of the channel. Every line of JSON on standard input is answered with the
images since the last answer (``received_s``, ``run_uid``, ``ids`` as text, ``shape``, ``complete``) and the cost of the
process.
"""

from __future__ import annotations

import sys
import threading
import time
from importlib import import_module
from typing import Any

from ptycho_bluesky.bench.live_processes import answer_lines, process_load

__all__ = ["main"]

WAIT_S = 0.2


class Receiver:
    """A queued monitor of an NTNDArray."""

    def __init__(self, channel: str) -> None:
        self._pva: Any = import_module("pvaccess")
        self._queue = self._pva.PvObjectQueue(1000)
        self._channel = self._pva.Channel(channel, self._pva.PVA)
        self._channel.qMonitor(self._queue, "record[queueSize=50]field()")
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._images: list[dict[str, Any]] = []
        self._thread = threading.Thread(target=self._run, name="receiver", daemon=True)
        self._thread.start()

    def take(self) -> list[dict[str, Any]]:
        """Images since the last call."""
        with self._lock:
            images, self._images = self._images, []
        return images

    @property
    def overruns(self) -> int:
        """Images that the monitor lost."""
        return int(self._channel.getMonitorCounters().get("nOverruns", 0))

    def close(self) -> None:
        """Stop."""
        self._stop.set()
        self._channel.stopMonitor()
        self._thread.join(3.0)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                structure = self._queue.get(WAIT_S)
            except self._pva.QueueEmpty:
                continue
            received_s = time.time()
            image = _describe(structure)
            with self._lock:
                self._images.append({"received_s": received_s, **image})


def _describe(structure: Any) -> dict[str, Any]:
    attributes = {entry["name"]: entry["value"][0].get("value") for entry in structure["attribute"]}
    return {
        "run_uid": attributes.get("RunUid", ""),
        "ids": attributes.get("NewUniqueIds", ""),
        "complete": bool(attributes.get("Complete", 0)),
        "shape": [dimension["size"] for dimension in reversed(structure["dimension"])],
    }


def main(channel: str) -> None:
    """Receive until the input ends."""
    receiver = Receiver(channel)
    try:
        answer_lines(lambda _: {**process_load(), "images": receiver.take(), "overruns": receiver.overruns})
    finally:
        receiver.close()


if __name__ == "__main__":
    main(sys.argv[1])
