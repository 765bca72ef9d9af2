"""The edge without threads or sockets: documents and frames in, batches, images and accounts out.

`ptycho_bluesky.streaming.pipeline` drives it from queues while a scan runs, `ptycho_bluesky.streaming.replay` from a
file; both take the same path through it.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import Geometry
from ptycho_bluesky.inference import ModelSlot
from ptycho_bluesky.records import FrameCounts, FrameOrigin, InferredBatch, Mosaic
from ptycho_bluesky.streaming.accounting import Ledger, RowJoiner
from ptycho_bluesky.streaming.closing import Closing, ClosingOptions, FileReply, FileRequest
from ptycho_bluesky.streaming.frames import Frame
from ptycho_bluesky.streaming.held import ClockOffset, HeldFrames
from ptycho_bluesky.streaming.run_documents import RunDocuments
from ptycho_bluesky.streaming.run_state import Batch, Phase, RunState

__all__ = ["EdgeCore", "RunResult"]

logger = logging.getLogger(__name__)

REMEMBERED_RUNS = 1000
CONFIRM_PERIOD_S = 0.2
SIGN_OF_LIFE_S = 30.0


@dataclass(frozen=True)
class RunResult:
    """What the edge has of a run, finally (``complete``) or so far."""

    mosaic: Mosaic
    counts: FrameCounts
    geometry: Geometry | None
    complete: bool
    metadata: dict[str, Any]


@dataclass
class _Confirming:
    """How far the measured positions of a running run have been read."""

    joiner: RowJoiner
    row: int = 0
    asked_s: float = -np.inf
    outstanding: bool = False


class EdgeCore:
    """Joins documents and frames to runs, reads and stitches them, and closes stopped runs.

    Parameters
    ----------
    slot : ModelSlot
        The serving model; it is looked at once a batch.
    closing : ClosingOptions, optional
    wall_clock : bool
        False when stored runs are played back, whose times say nothing about now.
    max_batch : int
        Frames read by the network at once, at most.
    residual_share : float
        Part of the time that physics residuals may take; 1: every frame has one.
    share : tuple of int
        ``(k, n)``: frames whose unique id is k modulo n are read, the others belong to other edges.
    solve_offsets : bool
        Turn each patch by the constant phase that makes it agree with the image under it.
    on_batch : callable, optional
        ``on_batch(run, batch)`` after each batch.
    on_closed : callable, optional
        ``on_closed(result)`` when a run is closed.
    on_unknown : callable, optional
        ``on_unknown(name, doc)`` for a document of a run whose start was missed.

    Notes
    -----
    Not thread-safe. What has to be read from files is left in ``requests``; whoever drives the core has it read and
    brings the reply to `file_reply`.
    """

    def __init__(
        self,
        slot: ModelSlot,
        *,
        closing: ClosingOptions | None = None,
        wall_clock: bool = True,
        max_batch: int = 64,
        share: tuple[int, int] = (0, 1),
        residual_share: float = 0.05,
        solve_offsets: bool = False,
        on_batch: Callable[[RunState, InferredBatch], None] | None = None,
        on_closed: Callable[[RunResult], None] | None = None,
        on_unknown: Callable[[str, dict[str, Any]], None] | None = None,
    ) -> None:
        self.slot = slot
        self.requests: deque[FileRequest] = deque()
        self.runs: OrderedDict[str, RunState] = OrderedDict()
        self.current: RunState | None = None
        self.held = HeldFrames()
        self.bad_documents = 0
        self.max_batch = max_batch
        self._options = closing or ClosingOptions()
        self._wall_clock, self._share = wall_clock, share
        self._residual_share, self._solve_offsets = residual_share, solve_offsets
        self._on_batch, self._on_closed, self._on_unknown = on_batch, on_closed, on_unknown
        self._closing: dict[str, Closing] = {}
        self._closed: OrderedDict[str, None] = OrderedDict()
        self._run_of: dict[str, str] = {}
        self._clock = ClockOffset()
        self._confirming: dict[str, _Confirming] = {}
        self._last_frame_s = time.monotonic()

    # --- documents ---------------------------------------------------------------------------------------------------

    def document(self, name: str, doc: dict[str, Any], live: bool = True) -> None:
        """Take a document; a bad one is logged and counted, nothing else.

        Parameters
        ----------
        name : str
        doc : dict
        live : bool
            False for a finished run that is caught up: frames of the stream are not its.
        """
        try:
            self._document(name, doc, live)
        except (InputError, KeyError, TypeError, ValueError, AttributeError) as error:
            self.bad_documents += 1
            logger.warning("a %s document is skipped: %s", name, error)

    def _document(self, name: str, doc: dict[str, Any], live: bool) -> None:
        if name == "start":
            self._start(doc, live)
            return
        if name == "event_page":
            from event_model import unpack_event_page

            for event in unpack_event_page(cast(Any, doc)):
                self._document("event", dict(event), live)
            return
        run = self._run_for(name, doc)
        if run is None:
            return
        if name == "descriptor":
            run.documents.add_descriptor(doc)
        elif name == "event":
            if run.take_event(doc):
                self._offer_held()
            self._event_frame(run, doc)
        elif name == "stream_resource":
            run.documents.add_resource(doc)
        elif name == "stream_datum":
            run.documents.add_datum(doc)
        elif name == "stop":
            run.documents.stop = doc
            self._stop(run, str(doc.get("exit_status", "")))

    def _start(self, doc: dict[str, Any], live: bool) -> None:
        uid = str(doc["uid"])
        if uid in self.runs or uid in self._closed:
            return
        if not isinstance(doc.get("ptycho"), dict):
            self._remember_closed(uid)  # no run of ours: its other documents are ignored
            return
        ledger = Ledger(share=self._share)
        run = RunState(
            RunDocuments(doc), live, self._wall_clock, ledger,
            residual_share=self._residual_share, solve_offsets=self._solve_offsets,
        )  # fmt: skip
        if live:
            for other in list(self.runs.values()):
                if other.live and other.phase is Phase.OPEN and other.documents.channel == run.documents.channel:
                    # one detector takes part in one run at a time: the other one's session died
                    logger.warning("run %s ended without a stop document", other.uid[:8])
                    self._stop(other, "abort")
            self.current = run
            self._clock.reset()
        elif self.current is None:
            self.current = run
        self.runs[uid] = run
        logger.info("run %s: %s", uid[:8], doc.get("plan_name", ""))

    def _run_for(self, name: str, doc: dict[str, Any]) -> RunState | None:
        parent = str(doc.get("run_start") or doc.get("descriptor") or doc.get("stream_resource") or "")
        uid = parent if "run_start" in doc else self._run_of.get(parent, "")
        if name == "stream_datum" and not uid:
            uid = self._run_of.get(str(doc.get("stream_resource", "")), "")
        run = self.runs.get(uid)
        if run is None:
            if uid not in self._closed and self._on_unknown is not None:
                self._on_unknown(name, doc)
            if name == "descriptor" and uid in self._closed:
                self._run_of[str(doc["uid"])] = uid
            return None
        if name in ("descriptor", "stream_resource"):
            self._run_of[str(doc["uid"])] = uid
        run.active_s = time.monotonic()
        return run

    def _event_frame(self, run: RunState, doc: dict[str, Any]) -> None:
        """Take a frame that lies in an event itself (slow step scans of detectors without file or pvAccess)."""
        key = run.documents.image_key
        data = doc.get("data", {})
        if not key or key not in data or run.documents.stream_of(str(doc.get("descriptor", ""))) != "primary":
            return
        image = np.asarray(data[key])
        if image.ndim != 2 or image.dtype.kind not in "uif":
            return
        stem = key.removesuffix("image")
        position = tuple(float(data.get(f"{stem}position_{axis}_m", np.nan)) for axis in "yx")
        frame = Frame(
            unique_id=int(data.get(f"{stem}unique_id", doc.get("seq_num", 0))),
            image=image,
            timestamp_s=float(doc.get("time", np.nan)),
            position_m=(position[0], position[1]),
            i0=float(data.get(f"{stem}i0", np.nan)),
            channel=run.documents.channel,
            origin=FrameOrigin.EVENT,
        )
        batch, _ = run.join([frame])
        if batch is not None:
            self._process(run, batch)

    def _stop(self, run: RunState, status: str) -> None:
        if run.uid in self._closing:
            return
        logger.info("run %s has stopped (%s)", run.uid[:8], status)
        self._closing[run.uid] = Closing(run, self._options, time.monotonic())

    # --- frames ------------------------------------------------------------------------------------------------------

    def frames(self, frames: Sequence[Frame]) -> None:
        """Take frames of the stream, at most ``max_batch`` of them for one pass of the network."""
        self._last_frame_s = time.monotonic()
        before = self._clock.offset_s
        self._clock.observe(frames)
        if self._clock.offset_s != before:
            for run in self._live_runs():
                run.ledger.clock_offset_s = self._clock.offset_s
            self._offer_held()
        self._route(frames)

    def _live_runs(self) -> list[RunState]:
        return [run for run in reversed(self.runs.values()) if run.live]

    def _route(self, frames: Sequence[Frame]) -> None:
        left: list[Frame] = list(frames)
        for run in self._live_runs():
            if not left:
                return
            here = ("", run.documents.channel)
            mine = [frame for frame in left if frame.channel in here] if here[1] else left
            other = [frame for frame in left if frame.channel not in here] if len(mine) < len(left) else []
            unknown: list[Frame] = []
            for i in range(0, len(mine), self.max_batch):
                batch, rest = run.join(mine[i : i + self.max_batch])
                unknown += rest
                if batch is not None:
                    self._process(run, batch)
            left = unknown + other
        self.held.put(left, time.monotonic())

    def _offer_held(self) -> None:
        self._route(self.held.take_all())

    def _process(self, run: RunState, batch: Batch) -> None:
        run.active_s = time.monotonic()
        inferred = run.process(batch, self.slot.current, time.time())
        if self._on_batch is not None:
            self._on_batch(run, inferred)

    # --- files -------------------------------------------------------------------------------------------------------

    def file_reply(self, reply: FileReply) -> None:
        """Take what was read from a file."""
        run = self.runs.get(reply.request.uid)
        if run is None:
            return
        closing, confirming = self._closing.get(run.uid), self._confirming.get(run.uid)
        if confirming is not None and reply.request.rows is None and confirming.outstanding:
            confirming.outstanding = False
            if reply.columns is not None and reply.columns.first_row == confirming.row:
                slots = confirming.joiner.join(reply.columns.unique_id, reply.columns.timestamp_s)
                run.confirm_positions(reply.columns, slots)
                confirming.row += len(reply.columns)
        elif closing is not None:
            batch = closing.take(reply, time.monotonic())
            if batch is not None:
                self._process(run, batch)

    def _confirm_provisional(self, run: RunState, now_s: float) -> None:
        """Have the measured positions read while a run with provisional ones goes on."""
        columns = run.documents.columns
        if run.phase is not Phase.OPEN or run.image is None or not run.image.waiting:
            return
        confirming = self._confirming.setdefault(run.uid, _Confirming(RowJoiner(run.ledger)))
        early = now_s - confirming.asked_s < CONFIRM_PERIOD_S
        if early or confirming.outstanding or run.documents.rows_announced <= confirming.row:
            return
        if {"image", "unique_id"} <= set(columns):
            confirming.outstanding, confirming.asked_s = True, now_s
            self.requests.append(FileRequest(run.uid, columns, start=confirming.row))

    # --- time --------------------------------------------------------------------------------------------------------

    def tick(self, stream_empty: bool = True) -> None:
        """Go on with what waits for time or files.

        Parameters
        ----------
        stream_empty : bool
            Whether no frame is queued anywhere before the core.
        """
        now_s = time.monotonic()
        self.held.expire(now_s)
        quiet_s = now_s - self._last_frame_s if stream_empty else 0.0
        for run in list(self.runs.values()):
            self._confirm_provisional(run, now_s)
        for uid, closing in list(self._closing.items()):
            confirming = self._confirming.get(uid)
            if confirming is not None and confirming.outstanding:
                continue  # its reply must not be taken for the closing's
            request = closing.step(now_s, quiet_s)
            if request is not None:
                self.requests.append(request)
            if closing.done:
                self._close(uid)

    def _close(self, uid: str) -> None:
        run = self.runs[uid]
        run.ledger.close()
        run.phase = Phase.CLOSED
        result = self.result(run)
        for store in (self.runs, self._closing, self._confirming):
            store.pop(uid, None)
        self._remember_closed(uid)
        counts = result.counts
        logger.info(
            "run %s closed: %d generated, %d inferred, %d recovered, %d rejected, %d lost, %d unaccounted",
            uid[:8], counts.generated, counts.inferred, counts.recovered, counts.rejected, counts.lost,
            counts.unaccounted,
        )  # fmt: skip
        if self._on_closed is not None:
            self._on_closed(result)
        run.release()

    def _remember_closed(self, uid: str) -> None:
        self._closed[uid] = None
        while len(self._closed) > REMEMBERED_RUNS:
            old, _ = self._closed.popitem(last=False)
            self._run_of = {parent: run for parent, run in self._run_of.items() if run != old}

    @property
    def busy(self) -> bool:
        """Whether a run of the stream goes on or is being closed; one long without a sign of life does not count."""
        now_s = time.monotonic()
        return any(
            run.live and (run.phase is not Phase.OPEN or now_s - run.active_s < SIGN_OF_LIFE_S)
            for run in self.runs.values()
        )

    def result(self, run: RunState) -> RunResult:
        """What there is of a run now."""
        stop = run.documents.stop or {}
        metadata = {
            "plan_name": run.documents.start.get("plan_name", ""),
            "exit_status": stop.get("exit_status", ""),
            "rejected_by_reason": run.ledger.rejected_by_reason(),
            "frames_without_i0": run.flagged_i0,
            "trust": run.trust.summary(),
            "patches_moved": run.image.moved if run.image else 0,
            "patches_given_up": run.image.given_up if run.image else 0,
            "model_errors": {model_id: text for model_id, text in run.model_errors.items() if text},
            "pixel_size_m": run.documents.pixel_size_m,
        }
        drift = run.image.offset_drift if run.image else None
        if drift is not None:
            metadata["offset_drift"] = asdict(drift)
        complete = run.phase is Phase.CLOSED
        return RunResult(run.mosaic(), run.counts(), run.documents.geometry, complete, metadata)
