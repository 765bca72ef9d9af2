"""Transport and join alone, as a process of its own: from the stream to a joined batch in memory, nothing read.

``python -m`` this module with the name of the channel. A line ``{"documents": [[name, doc], …]}`` tells of the run; any
line is answered with the account of the run and the cost of the process.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from typing import Any

import numpy as np

from ptycho_bluesky.bench.live_processes import answer_lines, process_load
from ptycho_bluesky.streaming.frames import Frame
from ptycho_bluesky.streaming.run_documents import RunDocuments
from ptycho_bluesky.streaming.run_state import RunState
from ptycho_bluesky.streaming.sources_pva import PvaFrameSource

__all__ = ["main"]

BATCH = 32


class Joiner:
    """Queue and join of the edge, without what follows."""

    def __init__(self, channel: str) -> None:
        self._frames: deque[Frame] = deque()
        self._come = threading.Condition()
        self._run: RunState | None = None
        self._stopping = False
        self.joined = 0
        self.source = PvaFrameSource(self._take)
        self.source.open(channel)
        self._thread = threading.Thread(target=self._work, name="join", daemon=True)
        self._thread.start()

    def document(self, name: str, doc: dict[str, Any]) -> None:
        """Take a document of the run."""
        with self._come:
            if name == "start":
                self._run, self.joined = RunState(RunDocuments(doc)), 0
            elif self._run is not None and name == "descriptor":
                self._run.documents.add_descriptor(doc)
            elif self._run is not None and name == "event":
                self._run.take_event(doc)

    def account(self) -> dict[str, Any]:
        """Counts of the run."""
        with self._come:
            counts = self._run.counts().as_dict() if self._run is not None else {}
        waiting, lost = self.source.counters()
        return {"counts": counts, "joined": self.joined, "waiting": waiting + len(self._frames), "lost": lost}

    def close(self) -> None:
        """Stop."""
        self.source.close()
        with self._come:
            self._stopping = True
            self._come.notify()
        self._thread.join(5.0)

    def _take(self, frames: list[Frame]) -> None:
        with self._come:
            self._frames.extend(frames)
            if len(self._frames) >= BATCH:
                self._come.notify()

    def _work(self) -> None:
        while True:
            with self._come:
                if len(self._frames) < BATCH and not self._stopping:
                    self._come.wait(0.02)
                if self._stopping:
                    return
                frames = [self._frames.popleft() for _ in range(min(BATCH, len(self._frames)))]
                run = self._run
            if frames and run is not None:
                batch, _ = run.join(frames)
                self.joined += 0 if batch is None else len(np.asarray(batch.frames.image))


def main(channel: str) -> None:
    """Join until the input ends."""
    joiner = Joiner(channel)

    def answer(content: dict[str, Any]) -> dict[str, Any]:
        for name, doc in content.get("documents", []):
            joiner.document(name, doc)
        return {**process_load(), **joiner.account()}

    try:
        answer_lines(answer)
    finally:
        joiner.close()


if __name__ == "__main__":
    main(sys.argv[1])
