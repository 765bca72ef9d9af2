"""The edge of the live bench: the edge's own service, which also tells what it costs. ``python -m`` this module.

Arguments: configuration file, folder of models. Every line of JSON on standard input is answered with the CPU time and
the memory of the process, the serving model, and the batches since the last answer: when each was done, its frames, and
the model that read it.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from pathlib import Path
from typing import Any

from ptycho_bluesky.bench.live_processes import answer_lines, process_load
from ptycho_bluesky.callbacks.edge_service import EdgeService
from ptycho_bluesky.config import load_settings
from ptycho_bluesky.records import InferredBatch
from ptycho_bluesky.training.registry import LocalModelStore

__all__ = ["main"]


class BatchTrace:
    """Notes each batch in the edge's thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._batches: list[tuple[float, int, str]] = []

    def note(self, batch: InferredBatch) -> None:
        """Note a batch that was just stitched."""
        with self._lock:
            self._batches.append((time.time(), len(batch.frames), batch.model_id))

    def take(self) -> list[tuple[float, int, str]]:
        """Batches since the last call."""
        with self._lock:
            batches, self._batches = self._batches, []
        return batches


def main(config: Path, models: Path) -> None:
    """Serve until the input ends."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    settings = load_settings(config)
    settings.epics.apply()
    trace = BatchTrace()
    service = EdgeService(settings, tiled=False, models=LocalModelStore(models), on_batch=trace.note)

    def answer(_: dict[str, Any]) -> dict[str, Any]:
        return {**process_load(), "model_id": service.slot.model_id, "batches": trace.take()}

    try:
        service.start()
        answer_lines(answer)
    finally:
        service.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
