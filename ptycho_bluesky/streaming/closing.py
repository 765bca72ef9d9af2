"""Between a run's stop document and its final account: the tail of the stream, then what only the file has."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.streaming.accounting import NO_SLOT
from ptycho_bluesky.streaming.run_documents import FileColumn
from ptycho_bluesky.streaming.run_state import Batch, Phase, RunState
from ptycho_bluesky.streaming.sources_file import FileColumns, FileFrameSource

__all__ = ["Closing", "ClosingOptions", "FileReply", "FileRequest", "read_file"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClosingOptions:
    """How long a stopped run is waited for.

    Attributes
    ----------
    settle_s : float
        The stream counts as drained when it has been quiet for this long.
    drain_s : float
        And at the latest when no frame of the run has come for this long, though frames of others come.
    wait_s : float
        The file's rows are waited for at most this long.
    grace_s : float
        A file that holds every announced row and grows no more for this long holds all it ever will.
    poll_s : float
        Period at which the file is looked at.
    chunk_frames : int
        Frames read at once.
    backfill : bool
        Whether the file is read at all.
    """

    settle_s: float = 0.3
    drain_s: float = 5.0
    wait_s: float = 15.0
    grace_s: float = 1.0
    poll_s: float = 0.2
    chunk_frames: int = 64
    backfill: bool = True


@dataclass(frozen=True)
class FileRequest:
    """Something to read from a run's file: its columns from row ``start`` on, or the frames of ``rows``."""

    uid: str
    columns: dict[str, FileColumn]
    start: int = 0
    rows: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class FileReply:
    """What was read, or why not."""

    request: FileRequest
    columns: FileColumns | None = None
    image: NDArray[Any] | None = None
    error: str = ""


def read_file(request: FileRequest) -> FileReply:
    """Do what a request asks; errors are part of the reply."""
    try:
        source = FileFrameSource(request.columns)
        if request.rows is None:
            return FileReply(request, columns=source.read_columns(request.start))
        return FileReply(request, image=source.read_frames(request.rows))
    except (InputError, OSError, RuntimeError, KeyError, ValueError) as error:
        return FileReply(request, error=str(error))


class Closing:
    """Leads one stopped run to its end.

    Parameters
    ----------
    run : RunState
    options : ClosingOptions
    now_s : float
        Monotonic time.
    """

    def __init__(self, run: RunState, options: ClosingOptions, now_s: float) -> None:
        self.run, self.options = run, options
        run.phase = Phase.DRAINING
        self._stopped_s = now_s
        self._reading_s = now_s
        self._next_look_s = now_s
        self._outstanding = False
        self._columns: FileColumns | None = None
        self._slots: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._to_read: list[NDArray[np.int64]] = []
        self._complete = False
        self._grown_s = now_s
        self._rows_seen = -1
        self._looked = False
        self._last_error = ""

    @property
    def done(self) -> bool:
        """Whether the run can be closed."""
        return self._complete

    def step(self, now_s: float, quiet_s: float) -> FileRequest | None:
        """Go on as far as possible without waiting.

        Parameters
        ----------
        now_s : float
            Monotonic time.
        quiet_s : float
            For how long no frame has come and none is queued.

        Returns
        -------
        FileRequest or None
            What has to be read next.
        """
        if self.run.phase is Phase.DRAINING:
            drained = not self.run.live or not self.run.ledger.awaits_stream() or quiet_s >= self.options.settle_s
            # a queue that has grown long is worked off first, whatever time it takes
            if not drained and now_s - max(self._stopped_s, self.run.active_s) < self.options.drain_s:
                return None
            self.run.phase = Phase.READING
            self._reading_s = self._next_look_s = self._grown_s = now_s
        if self._outstanding or self._complete:
            return None
        if self._to_read:
            self._outstanding = True
            return FileRequest(self.run.uid, self.run.documents.columns, rows=self._to_read.pop(0))
        if not self._needs_file():
            self._complete = True
            return None
        return self._look(now_s)

    def _needs_file(self) -> bool:
        if not self.options.backfill:
            return False
        run = self.run
        waiting = run.image is not None and run.image.waiting > 0
        return len(run.ledger.missing()) > 0 or ((waiting or run.ledger.ambiguous) and not self._looked)

    def _look(self, now_s: float) -> FileRequest | None:
        """Look into the file (again), or give it up."""
        columns = self.run.documents.columns
        if not {"image", "unique_id"} <= set(columns):
            self._give_up("its documents name no file")
            return None
        if self._looked and (now_s - self._reading_s > self.options.wait_s or self._settled(now_s)):
            self._give_up(self._last_error or "the file does not hold them")
            return None
        if now_s < self._next_look_s:
            return None
        self._outstanding = True
        self._next_look_s = now_s + self.options.poll_s
        return FileRequest(self.run.uid, columns)

    def _settled(self, now_s: float) -> bool:
        announced = self._rows_seen >= self.run.documents.rows_announced
        return not self._last_error and announced and now_s - self._grown_s >= self.options.grace_s

    def _give_up(self, reason: str) -> None:
        missing = len(self.run.ledger.missing())
        if missing:
            logger.warning("run %s: %d frames are lost: %s", self.run.uid[:8], missing, reason)
        self._complete = True

    def take(self, reply: FileReply, now_s: float) -> Batch | None:
        """Take what was read; frames of it that are still wanted come back as a batch."""
        self._outstanding = False
        if reply.error:
            if reply.error != self._last_error:
                logger.warning("run %s: %s", self.run.uid[:8], reply.error)
            self._looked, self._last_error, self._to_read = True, reply.error, []
            return None
        self._last_error = ""
        if reply.columns is not None:
            self._take_columns(reply.columns, now_s)
            return None
        if reply.image is None or reply.request.rows is None or self._columns is None:
            return None
        rows = reply.request.rows
        return self.run.batch_of_rows(self._columns, rows, self._slots[rows], reply.image)

    def _take_columns(self, columns: FileColumns, now_s: float) -> None:
        run = self.run
        self._looked = True
        if len(columns) > self._rows_seen:
            self._rows_seen, self._grown_s = len(columns), now_s
        self._columns, self._slots = columns, run.join_rows(columns)
        if run.ledger.ambiguous:
            run.reconcile(columns, self._slots)
        run.confirm_positions(columns, self._slots)
        wanted = np.isin(self._slots, run.ledger.missing()) & (self._slots != NO_SLOT)
        _, first = np.unique(self._slots, return_index=True)
        once = np.zeros(len(self._slots), dtype=bool)
        once[first] = True
        rows = np.flatnonzero(wanted & once).astype(np.int64)
        size = self.options.chunk_frames
        self._to_read = [rows[i : i + size] for i in range(0, len(rows), size)]
