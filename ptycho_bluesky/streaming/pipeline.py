"""The edge with its queues: one thread joins, infers and stitches; readers of files and sinks have their own."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from ptycho_bluesky.config import EdgeSettings
from ptycho_bluesky.inference import ModelSlot
from ptycho_bluesky.records import FrameCounts, FrameOrigin, InferredBatch, Mosaic
from ptycho_bluesky.streaming.closing import ClosingOptions, FileReply, FileRequest, read_file
from ptycho_bluesky.streaming.core import EdgeCore, RunResult
from ptycho_bluesky.streaming.frames import Frame
from ptycho_bluesky.streaming.memory import give_memory_back
from ptycho_bluesky.streaming.meters import LatencyMeter, RateMeter
from ptycho_bluesky.streaming.run_state import Phase, RunState
from ptycho_bluesky.streaming.sinks import EdgeStatus, EdgeUpdate, Picture, Sink

__all__ = ["EdgePipeline"]

logger = logging.getLogger(__name__)

TICK_S = 0.02
IDLE_UPDATE_S = 1.0
MAX_BATCH_FACTOR = 8
"""A queue that has grown is worked off in batches of up to this many times the usual one."""
SNAPSHOT_SHARE = 0.1
"""Share of the edge's thread that making pictures and mosaics may take, in CPU time."""
MOSAIC_PERIOD_S = 0.5
"""Least time between two whole mosaics, with variance, maps and frame log; the phase alone is shown more often."""
TICK_PERIOD_S = 0.005
"""Least time between two looks at what waits for time or files."""


class EdgePipeline:
    """Takes documents and frames from any thread and works on them in one of its own.

    Parameters
    ----------
    slot : ModelSlot
    settings : EdgeSettings, optional
        Batch size, deadline, bound of the queue, display period, backfill.
    sinks : sequence of Sink
    closing : ClosingOptions, optional
    on_unknown : callable, optional
        ``on_unknown(name, doc)``, called in the edge's thread for a document whose run is not known: have its
        documents fetched elsewhere and submitted. It must return at once.
    on_batch : callable, optional
        ``on_batch(batch)`` in the edge's thread.
    source_counters : callable, optional
        Gives ``(waiting, overruns)``: frames that the source holds, and those that its monitor lost.

    Notes
    -----
    Order of work: documents, then frames of the stream, then what was read from files. The frame queue is bounded;
    what does not fit is counted, is *missed*, and is read from the file at the end of the run. Nothing waits for a
    sink.
    """

    def __init__(
        self,
        slot: ModelSlot,
        settings: EdgeSettings | None = None,
        sinks: Sequence[Sink] = (),
        *,
        closing: ClosingOptions | None = None,
        on_unknown: Callable[[str, dict[str, Any]], None] | None = None,
        on_batch: Callable[[InferredBatch], None] | None = None,
        source_counters: Callable[[], tuple[int, int]] | None = None,
    ) -> None:
        self.settings = settings or EdgeSettings()
        self.slot, self.sinks = slot, tuple(sinks)
        self._batch_hook = on_batch
        self._source_counters = source_counters or (lambda: (0, 0))
        self._core = EdgeCore(
            slot,
            closing=closing or ClosingOptions(backfill=self.settings.backfill),
            max_batch=self.settings.batch_size * MAX_BATCH_FACTOR,
            share=self.settings.share,
            residual_share=self.settings.residual_share,
            solve_offsets=self.settings.solve_offsets,
            on_batch=self._batch_done,
            on_closed=self._run_closed,
            on_unknown=on_unknown,
        )
        self._condition = threading.Condition()
        self._documents: deque[tuple[str, dict[str, Any], bool]] = deque()
        self._frames: deque[tuple[float, Frame]] = deque()
        self._replies: deque[FileReply] = deque()
        self._requests: queue.Queue[FileRequest | None] = queue.Queue()
        self._reading = 0
        self._stopping = False
        self._busy = False
        self._dropped = 0
        self._rate, self._latency = RateMeter(), LatencyMeter()
        self._new_ids: list[np.ndarray] = []
        self._new_timestamps: list[np.ndarray] = []
        self._last_frame: tuple[Any, int] | None = None
        self._last_counts = FrameCounts()
        self._dirty = False
        self._next_update_s = self._next_mosaic_s = self._next_tick_s = 0.0
        self._published_model = ""
        self._threads = [
            threading.Thread(target=self._work, name="edge", daemon=True),
            threading.Thread(target=self._read, name="edge-files", daemon=True),
        ]

    # --- from any thread ---------------------------------------------------------------------------------------------

    def start(self) -> EdgePipeline:
        """Start working."""
        for thread in self._threads:
            thread.start()
        return self

    def submit_document(self, name: str, doc: dict[str, Any], live: bool = True) -> None:
        """Hand over a document; returns at once."""
        with self._condition:
            self._documents.append((name, doc, live))
            self._condition.notify()

    def submit_documents(self, documents: Iterable[tuple[str, dict[str, Any]]], live: bool = True) -> None:
        """Hand over the documents of a run together."""
        with self._condition:
            self._documents.extend((name, doc, live) for name, doc in documents)
            self._condition.notify()

    def submit_frames(self, frames: Sequence[Frame]) -> int:
        """Hand over frames; returns how many were taken: those that do not fit the queue are counted and let go."""
        now_s = time.monotonic()
        with self._condition:
            room = max(self.settings.queue_frames - len(self._frames), 0)
            before = len(self._frames)
            self._frames.extend((now_s, frame) for frame in frames[:room])
            if len(frames) > room:
                if not self._dropped:
                    logger.warning("the frame queue is full; frames are let go and will be read from the file")
                self._dropped += len(frames) - room
            if before == 0 or before < self.settings.batch_size <= len(self._frames):
                self._condition.notify()
        return min(len(frames), room)

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until every document and frame has been worked off and every stopped run is closed."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with self._condition:
                queued = self._documents or self._frames or self._replies or self._reading or self._busy
                if not queued and not any(run.phase is not Phase.OPEN for run in list(self._core.runs.values())):
                    return True
            time.sleep(0.005)
        return False

    def stop(self, timeout_s: float = 10.0) -> None:
        """Stop working and close the sinks; an unfinished run is caught up by the next edge."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        self._requests.put(None)
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout_s)
        for sink in self.sinks:
            sink.close()

    @property
    def open_runs(self) -> list[str]:
        """Uids of runs that are not closed."""
        return list(self._core.runs)

    # --- the edge's thread -------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._condition:
                if not self._stopping and not self._ready():
                    self._condition.wait(self._patience_s())
                if self._stopping:
                    return
                documents = list(self._documents)
                self._documents.clear()
                frames = self._gather()
                reply = self._replies.popleft() if not frames and self._replies else None
                self._busy = bool(documents or frames or reply)
            try:
                self._turn(documents, frames, reply)
            except Exception:  # an edge that dies loses its runs; one that skips a batch reads it back from the file
                logger.exception("the edge skips a piece of work; its frames are read from the file")
            self._busy = False

    def _ready(self) -> bool:
        return bool(self._documents or self._replies or self._batch_is_due())

    def _batch_is_due(self) -> bool:
        if not self._frames:
            return False
        full = len(self._frames) >= self.settings.batch_size
        return full or time.monotonic() - self._frames[0][0] >= self.settings.deadline_s

    def _patience_s(self) -> float:
        if not self._frames:
            return TICK_S
        return max(1e-4, min(TICK_S, self._frames[0][0] + self.settings.deadline_s - time.monotonic()))

    def _gather(self) -> list[Frame]:
        if not self._batch_is_due():
            return []
        # what waits goes together: the busier the edge, the larger and cheaper its batches
        waiting, size = len(self._frames), self.settings.batch_size
        step = max(size // 2, 1)
        count = min(waiting - waiting % step if waiting > size else waiting, size * MAX_BATCH_FACTOR)
        return [self._frames.popleft()[1] for _ in range(count)]

    def _turn(
        self, documents: list[tuple[str, dict[str, Any], bool]], frames: list[Frame], reply: FileReply | None
    ) -> None:
        for name, doc, live in documents:
            self._core.document(name, doc, live)
        if frames:
            self._core.frames(frames)
        if reply is not None:
            self._reading -= 1
            self._core.file_reply(reply)
        now_s = time.monotonic()
        if documents or reply is not None or now_s >= self._next_tick_s:
            self._next_tick_s = now_s + TICK_PERIOD_S
            self._tick()
        news = self._dirty or self.slot.model_id != self._published_model
        if now_s >= self._next_update_s + (0.0 if news else IDLE_UPDATE_S):
            self._publish()

    def _tick(self) -> None:
        waiting, _ = self._source_counters()
        self._core.tick(stream_empty=not self._frames and not waiting)
        while self._core.requests:
            self._reading += 1
            self._requests.put(self._core.requests.popleft())

    def _batch_done(self, run: RunState, batch: InferredBatch) -> None:
        frames = batch.frames
        self._rate.add(len(frames))
        if run is self._core.current:
            self._new_ids.append(frames.unique_id)
            self._new_timestamps.append(frames.timestamp_s[frames.origin != FrameOrigin.FILE])
            self._last_frame = (frames.image[-1], int(frames.unique_id[-1]))
            self._dirty = True
        if self._batch_hook is not None:
            self._batch_hook(batch)

    def _publish(self, final: RunResult | None = None) -> None:
        begun_s, used_s = time.monotonic(), time.thread_time()
        self._published_model = self.slot.model_id
        run = self._core.current
        picture = self._picture(run, final)
        mosaic_s = time.thread_time()
        mosaic = self._mosaic(run, final, begun_s)
        mosaic_s = time.thread_time() - mosaic_s
        shown = picture is not None or mosaic is not None
        if final is not None:
            self._last_counts, geometry = final.counts, final.geometry
        else:
            self._last_counts = run.counts() if run is not None else FrameCounts()
            geometry = run.documents.geometry if run is not None else None
        update = EdgeUpdate(
            status=self._status(),
            counts=self._last_counts,
            mosaic=mosaic,
            picture=picture,
            complete=final is not None,
            geometry=geometry,
            frame=self._last_frame[0] if self._last_frame and self._dirty else None,
            frame_id=self._last_frame[1] if self._last_frame else 0,
            new_ids=np.concatenate(self._new_ids) if shown and self._new_ids else np.zeros(0, dtype=np.int64),
            new_timestamps_s=np.concatenate(self._new_timestamps) if shown and self._new_timestamps else np.zeros(0),
            published=self._latency.published,
        )
        if shown or run is None or run.uid not in self._core.runs:
            self._new_ids, self._new_timestamps, self._dirty = [], [], False
        for sink in self.sinks:
            sink.update(update)
        # what everything else took is paid for by its own, longer period: the next picture does not wait for it
        used_s = time.thread_time() - used_s - mosaic_s
        self._next_update_s = begun_s + max(self.settings.display_period_s, used_s / SNAPSHOT_SHARE)

    def _shows(self, run: RunState | None, final: RunResult | None) -> bool:
        return run is not None and (final is not None or (self._dirty and run.uid in self._core.runs))

    def _picture(self, run: RunState | None, final: RunResult | None) -> Picture | None:
        """The phase, as often as asked."""
        if run is None or run.image is None or not self._shows(run, final):
            return None
        made = run.image.picture()
        return None if made is None else Picture(made[0], made[1], run.uid, run.models[-1] if run.models else "")

    def _mosaic(self, run: RunState | None, final: RunResult | None, now_s: float) -> Mosaic | None:
        """All images, the maps and the log, now and then and at the end."""
        if final is not None and run is not None:
            return final.mosaic
        if run is None or not self._shows(run, final) or now_s < self._next_mosaic_s:
            return None
        used_s = time.thread_time()
        mosaic = run.mosaic()
        self._next_mosaic_s = now_s + max(MOSAIC_PERIOD_S, (time.thread_time() - used_s) / SNAPSHOT_SHARE)
        return mosaic

    def _status(self) -> EdgeStatus:
        core = self._core
        waiting, overruns = self._source_counters()
        p50, p99 = self._latency.quantiles_ms()
        return EdgeStatus(
            state="running" if core.busy else "ready",
            run_uid=core.current.uid if core.current else "",
            model_id=self.slot.model_id,
            queue_depth=len(self._frames) + waiting,
            dropped=self._dropped,
            overruns=overruns,
            frames_per_s=self._rate.per_s,
            latency_p50_ms=p50,
            latency_p99_ms=p99,
            residual=core.current.trust.latest if core.current else np.nan,
            flags=core.current.trust.flags().words if core.current else "",
            bad_documents=core.bad_documents,
        )

    def _run_closed(self, result: RunResult) -> None:
        for sink in self.sinks:
            sink.finish(result)
        if self._core.current is not None and result.mosaic.run_uid == self._core.current.uid:
            self._publish(final=result)
        give_memory_back()

    # --- the file reader's thread ------------------------------------------------------------------------------------

    def _read(self) -> None:
        while (request := self._requests.get()) is not None:
            reply = read_file(request)
            with self._condition:
                self._replies.append(reply)
                self._condition.notify()
