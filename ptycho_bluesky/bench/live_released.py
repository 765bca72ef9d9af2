"""The released consumer's logic, written anew from its description, as a process of its own.

A queue of frames, one worker that takes a fixed batch of eight, reads it with the network and stitches every patch by
interpolation; a tail shorter than the batch is never read. It gets this project's queued monitor and frame reader, so
that it misses nothing either: what is compared is what happens to the frames. ``python -m`` this module with channel,
model file, engine and precision; a line of JSON is answered with the frames stitched so far and when.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from ptycho_bluesky.bench.live_processes import answer_lines, process_load
from ptycho_bluesky.bench.released import ReleasedStitcher
from ptycho_bluesky.geometry import ObjectFrame
from ptycho_bluesky.inference import load_model
from ptycho_bluesky.streaming.frames import Frame
from ptycho_bluesky.streaming.sources_pva import PvaFrameSource

__all__ = ["main"]

BATCH = 8
CANVAS_M = 12e-6
NUM_THREADS = 2


class ReleasedConsumer:
    """One worker between the frames and the image."""

    def __init__(self, channel: str, model: Path, engine: Any, precision: Any) -> None:
        self._model = load_model(model, engine, precision=precision, num_threads=NUM_THREADS, warm_up_frames=(BATCH,))
        self._frames: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
        self._pixel_m = float(self._model.engine.manifest.get("pixel_size_m") or np.nan)
        self._canvas: ObjectFrame | None = None
        self._stitcher: ReleasedStitcher | None = None
        self.done = 0
        self.last_s = 0.0
        self._source = PvaFrameSource(self._take)
        self._source.open(channel)
        self._thread = threading.Thread(target=self._work, name="worker", daemon=True)
        self._thread.start()

    def set_pixel(self, pixel_m: float) -> None:
        """Pixel at the sample."""
        self._pixel_m = pixel_m

    def close(self) -> None:
        """Stop."""
        self._source.close()
        self._frames.put(None)
        self._thread.join(10.0)

    def _take(self, frames: list[Frame]) -> None:
        for frame in frames:
            if np.isfinite(frame.position_m).all():
                self._frames.put(frame)

    def _work(self) -> None:
        batch: list[Frame] = []
        while (frame := self._frames.get()) is not None:
            batch.append(frame)
            if len(batch) == BATCH:
                self._read(batch)
                batch = []

    def _read(self, batch: list[Frame]) -> None:
        phase = self._model.engine.infer(np.stack([frame.image for frame in batch]).astype(np.float32))
        position = np.array([frame.position_m for frame in batch])
        if self._canvas is None or self._stitcher is None:
            size = round(CANVAS_M / self._pixel_m)
            middle = position[0] - CANVAS_M / 2
            self._canvas = ObjectFrame((float(middle[0]), float(middle[1])), self._pixel_m, (size, size))
            self._stitcher = ReleasedStitcher(self._canvas.shape)
        h, w = phase.shape[1:]
        self._stitcher.add(phase, self._canvas.to_px(position) - (h // 2, w // 2))
        self.done += len(batch)
        self.last_s = time.time()


def main(channel: str, model: Path, engine: str, precision: str, pixel_m: float) -> None:
    """Consume until the input ends."""
    consumer = ReleasedConsumer(channel, model, engine, precision)
    consumer.set_pixel(pixel_m)
    try:
        answer_lines(lambda _: {**process_load(), "frames": consumer.done, "last_s": consumer.last_s})
    finally:
        consumer.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4], float(sys.argv[5]))
