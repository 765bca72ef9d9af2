"""The edge as a Bluesky callback: in the session, behind 0MQ, or playing stored documents, always the same object."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Self

from event_model import DocumentRouter

from ptycho_bluesky.config import EdgeSettings
from ptycho_bluesky.inference import ModelSlot
from ptycho_bluesky.records import InferredBatch
from ptycho_bluesky.streaming.closing import ClosingOptions
from ptycho_bluesky.streaming.core import RunResult
from ptycho_bluesky.streaming.frames import Frame
from ptycho_bluesky.streaming.pipeline import EdgePipeline
from ptycho_bluesky.streaming.sinks import LatestSink, Sink
from ptycho_bluesky.streaming.sinks_pva import PvaSink
from ptycho_bluesky.streaming.sources_pva import PvaFrameSource

__all__ = ["EdgeInference"]

logger = logging.getLogger(__name__)

KEPT_RESULTS = 2
"""Final results kept in memory for `EdgeInference.wait_result`; each holds every map of its mosaic."""


class EdgeInference(DocumentRouter):
    """Reads the frames of a scan with a network while the scan runs, and stitches them.

    Parameters
    ----------
    settings : EdgeSettings, optional
        Batch size, deadline, queue, periods.
    slot : ModelSlot, optional
        Holds the model; swap another one in at any time. Empty: bright field and centre of mass alone.
    sinks : sequence of Sink
        Where images and counters go. `latest`, a `LatestSink`, is always there.
    channels : sequence of str
        pvAccess channels to monitor from the start. Others are opened as documents name them.
    pva : bool
        Whether frames are taken from pvAccess; False when they come from files or events alone.
    closing : ClosingOptions, optional
        How long the tail of the stream and the file are waited for after a run.
    on_unknown : callable, optional
        ``on_unknown(name, doc)`` for a document of a run whose start was missed.
    on_batch : callable, optional
        ``on_batch(batch)`` after each batch, in the edge's thread.

    Notes
    -----
    Documents are only queued here, so the RunEngine is never held up, and whatever goes wrong behind the queue is
    logged there. The same document twice changes nothing. Close it, or use it as a context manager.

    Examples
    --------
    >>> with EdgeInference(slot=ModelSlot(load_model("model.onnx"))) as edge:  # doctest: +SKIP
    ...     RE.subscribe(edge)
    ...     RE(fly_spiral_ptycho(flyer, stage, num_points=963, step_m=100e-9))
    ...     mosaic = edge.latest.image()
    """

    def __init__(
        self,
        settings: EdgeSettings | None = None,
        slot: ModelSlot | None = None,
        sinks: Sequence[Sink] = (),
        *,
        channels: Sequence[str] = (),
        pva: bool = True,
        closing: ClosingOptions | None = None,
        on_unknown: Callable[[str, dict[str, Any]], None] | None = None,
        on_batch: Callable[[InferredBatch], None] | None = None,
    ) -> None:
        super().__init__()
        self.slot = slot or ModelSlot()
        self.latest = LatestSink(KEPT_RESULTS, timed=not any(isinstance(sink, PvaSink) for sink in sinks))
        share = settings.share if settings is not None else (0, 1)
        self.source = PvaFrameSource(self._take_frames, share) if pva else None
        self.pipeline = EdgePipeline(
            self.slot,
            settings,
            [*sinks, self.latest],
            closing=closing,
            on_unknown=on_unknown,
            on_batch=on_batch,
            source_counters=self.source.counters if self.source else None,
        ).start()
        for channel in channels:
            self._open(channel)

    def __call__(self, name: str, doc: Any, validate: bool = False) -> tuple[str, Any]:
        """Take a document; returns at once."""
        self.take(name, doc)
        return name, doc

    def take(self, name: str, doc: dict[str, Any], live: bool = True) -> None:
        """Take a document; ``live=False`` for a finished run whose frames all come from its file."""
        if live:
            self._open(_channel_of(name, doc))
        self.pipeline.submit_document(name, doc, live)

    def take_run(self, documents: Sequence[tuple[str, dict[str, Any]]], live: bool = True) -> None:
        """Take the documents of one run together, e.g. from a journal."""
        if live:
            for name, doc in documents:
                self._open(_channel_of(name, doc))
        self.pipeline.submit_documents(documents, live)

    def wait_result(self, uid: str, timeout_s: float = 60.0) -> RunResult | None:
        """Final result of a run, None when it is not there in time."""
        return self.latest.wait_for(uid, timeout_s)

    def close(self) -> None:
        """Stop the monitors, the work and the sinks."""
        if self.source is not None:
            self.source.close()
        self.pipeline.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, channel: str) -> None:
        if self.source is not None and channel:
            self.source.open(channel)

    def _take_frames(self, frames: list[Frame]) -> None:
        self.pipeline.submit_frames(frames)


def _channel_of(name: str, doc: dict[str, Any]) -> str:
    """Channel that a start or segment document names, "" for any other document."""
    try:
        if name == "start":
            return str(((doc.get("ptycho") or {}).get("detector") or {}).get("channel") or "")
        if name == "event":
            return str((doc.get("data") or {}).get("pva_channel") or "")
    except AttributeError:
        logger.debug("a %s document of another shape", name)
    return ""
