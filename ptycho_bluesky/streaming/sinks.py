"""What leaves the edge, and the protocol of whatever takes it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.geometry import Geometry, ObjectFrame
from ptycho_bluesky.records import FrameCounts, Mosaic
from ptycho_bluesky.streaming.core import RunResult

__all__ = ["EdgeStatus", "EdgeUpdate", "LatestSink", "Picture", "Sink"]


@dataclass(frozen=True)
class EdgeStatus:
    """Figures of the edge as a whole.

    Attributes
    ----------
    state : str
        ``starting``, ``ready`` or ``running``.
    run_uid, model_id : str
    queue_depth : int
        Frames between source and network.
    dropped : int
        Frames that did not fit the queue (they count as missed, and come from the file).
    overruns : int
        Frames that the monitor reports as lost on their way.
    frames_per_s : float
    latency_p50_ms, latency_p99_ms : float
        End of exposure to publication, over the last thousand frames; NaN before any.
    residual : float
        Running mean of the physics residuals, NaN while none is computed.
    flags : str
        What is unusual about the run, words joined by ``+``; "" for nothing.
    bad_documents : int
    """

    state: str = "starting"
    run_uid: str = ""
    model_id: str = ""
    queue_depth: int = 0
    dropped: int = 0
    overruns: int = 0
    frames_per_s: float = 0.0
    latency_p50_ms: float = np.nan
    latency_p99_ms: float = np.nan
    residual: float = np.nan
    flags: str = ""
    bad_documents: int = 0


@dataclass(frozen=True)
class Picture:
    """The phase of a mosaic for display: what is cheap enough to make many times a second.

    Attributes
    ----------
    phase_rad : ndarray of float32, shape (rows, cols)
        The whole canvas at full resolution, NaN where nothing is.
    frame : ObjectFrame
        Its placement.
    run_uid : str
    model_id : str
        Model that read the last frames.
    """

    phase_rad: NDArray[np.float32]
    frame: ObjectFrame
    run_uid: str
    model_id: str = ""


@dataclass(frozen=True)
class EdgeUpdate:
    """The edge at one moment.

    Attributes
    ----------
    status : EdgeStatus
    counts : FrameCounts
        Of the current run.
    mosaic : Mosaic or None
        Of the current run, with every map and the frame log; None when it has not changed or was sent a moment ago.
    picture : Picture or None
        Its phase, as often as the display period allows; None when it has not changed or no model reads frames.
    complete : bool
        Whether this is the run's final mosaic.
    geometry : Geometry or None
    frame : ndarray or None
        Last frame, (H, W) counts.
    frame_id : int
        Its unique id.
    new_ids : ndarray of int64
        Unique ids that this update's image holds and that of the update before did not.
    new_timestamps_s : ndarray of float64
        Ends of exposure of those that came by the stream, for the latency.
    published : callable
        ``published(timestamps_s)`` is called by the sink whose publication counts for the latency.
    """

    status: EdgeStatus
    counts: FrameCounts
    mosaic: Mosaic | None = None
    picture: Picture | None = None
    complete: bool = False
    geometry: Geometry | None = None
    frame: NDArray[Any] | None = None
    frame_id: int = 0
    new_ids: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    new_timestamps_s: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    published: Callable[[NDArray[np.float64]], None] = lambda timestamps_s: None

    @property
    def has_image(self) -> bool:
        """Whether there is a picture or a mosaic."""
        return self.picture is not None or self.mosaic is not None


class Sink(Protocol):
    """Takes what the edge makes. Every method returns at once: slow work belongs in a thread of the sink's own."""

    def update(self, update: EdgeUpdate) -> None:
        """Take the present state; an update that was not used yet may be replaced by a newer one."""
        ...

    def finish(self, result: RunResult) -> None:
        """Take the final result of a run; none may be dropped."""
        ...

    def close(self) -> None:
        """Finish what was taken, within seconds, and release everything."""
        ...


class LatestSink:
    """Keeps the newest update and the last results in this process, for live plots and tests.

    Parameters
    ----------
    keep : int
        Results kept.
    on_update : callable, optional
        Called with each update, from the edge's thread: it must return at once.
    timed : bool
        Whether keeping an update counts as its publication, for the latency.
    """

    def __init__(
        self, keep: int = 10, on_update: Callable[[EdgeUpdate], None] | None = None, timed: bool = True
    ) -> None:
        self._lock = threading.Condition()
        self._keep, self._on_update, self._timed = keep, on_update, timed
        self._image: NDArray[np.float32] | None = None
        self.latest: EdgeUpdate | None = None
        self.results: dict[str, RunResult] = {}

    def update(self, update: EdgeUpdate) -> None:
        """Keep the update."""
        with self._lock:
            self.latest = update
            if update.picture is not None:
                self._image = update.picture.phase_rad
            elif update.mosaic is not None:
                self._image = display_image(update.mosaic)
        if self._timed and update.has_image:
            update.published(update.new_timestamps_s)
        if self._on_update is not None:
            self._on_update(update)

    def finish(self, result: RunResult) -> None:
        """Keep the result."""
        with self._lock:
            self.results[result.mosaic.run_uid] = result
            while len(self.results) > self._keep:
                self.results.pop(next(iter(self.results)))
            self._image = display_image(result.mosaic)
            self._lock.notify_all()

    def close(self) -> None:
        """Nothing to release."""

    def image(self) -> NDArray[np.float32] | None:
        """Newest mosaic (rows, cols), NaN where nothing is; bright field before there is a phase. For `LiveScan`."""
        with self._lock:
            return self._image

    def wait_for(self, uid: str, timeout_s: float) -> RunResult | None:
        """Final result of a run, None when it is not there in time."""
        with self._lock:
            self._lock.wait_for(lambda: uid in self.results, timeout_s)
            return self.results.get(uid)


def display_image(mosaic: Mosaic) -> NDArray[np.float32]:
    """Phase where it is covered, else the bright field, NaN elsewhere."""
    if mosaic.coverage.any():
        return np.where(mosaic.coverage > 0, mosaic.phase_rad, np.nan).astype(np.float32)
    bright = mosaic.maps["bright_field"]
    return np.where(bright != 0, bright, np.nan).astype(np.float32)
