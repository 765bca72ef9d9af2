"""The document writer: what sessions journal on disk comes into Tiled, each run once and whole.

Notes
-----
There is one way in: the journals. Sessions never write to Tiled, so a slow or dead server cannot stall a scan, and a
writer that was away finds everything where it left it.

A run is written once from its start to its stop by bluesky-tiled-plugins' ``TiledWriter``. Whenever that is broken
off (the server died, this process was killed) nobody knows what the last request did; then the run's node is deleted
and its journal replayed from the beginning. The detector's files are not touched by that. A run with a stop document
in Tiled is complete: the writer puts it there last.

A session that dies leaves a journal without a stop document. Such a run stays open until another journal begins after
it, or until nothing was added for `ABANDON_AFTER_S`; then it is closed with ``exit_status: abort`` and the time of its
last document. Should its session be alive after all (paused over night), its next document reopens the run by a
replay; nothing is lost by closing early.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

from ptycho_bluesky.config import Settings
from ptycho_bluesky.errors import InputError, UnreachableError
from ptycho_bluesky.workflow.client import delete_node, get_child, reachable
from ptycho_bluesky.workflow.files import exclusive, write_json
from ptycho_bluesky.workflow.journals import Document, Journal, abandoned_stop, merge_stream_datums
from ptycho_bluesky.workflow.tiled_store import TiledStore

__all__ = ["JournalWriter", "WriterStatus", "status_path"]

logger = logging.getLogger(__name__)

POLL_S = 0.1
LIST_PERIOD_S = 2.0
ABANDON_AFTER_S = 600.0
SUPERSEDED_GRACE_S = 10.0
FIRST_WAIT_S, LAST_WAIT_S = 0.5, 5.0
ATTEMPTS = 3
RETRY_S, LAST_RETRY_S = 30.0, 600.0
GATEWAY_ERRORS = (502, 503, 504)
"""Status of a server that is away; 500 is a request that it cannot serve, which must not hold up other runs."""
DOUBT_NOTE = "may be duplicated"
"""What TiledWriter notes in a run when it repeated a request of which it could not know the outcome."""


@dataclass
class WriterStatus:
    """Counters of a writer; written to `status_path` while it runs.

    Attributes
    ----------
    documents : int
        Documents given to Tiled, replays included.
    runs_complete, runs_open, runs_failed : int
        Runs that this writer completed, has under way, and cannot write (they are tried again now and then).
    replays : int
        Times that a run was begun anew after an outage.
    runs_abandoned : int
        Runs closed for a session that died.
    documents_damaged : int
        Lines of journals that could not be read.
    tiled_reachable : bool
        Whether the last request was answered.
    failures : dict
        Reason for each run that cannot be written.
    """

    documents: int = 0
    runs_complete: int = 0
    runs_open: int = 0
    runs_failed: int = 0
    replays: int = 0
    runs_abandoned: int = 0
    documents_damaged: int = 0
    tiled_reachable: bool = False
    failures: dict[str, str] = field(default_factory=dict)


@dataclass
class _Run:
    """One run under way."""

    uid: str
    journal: Journal
    start_s: float
    writer: Callable[[str, dict[str, Any]], None] | None = None
    doubtful: bool = True
    closed: bool = False
    abandoned: bool = False
    attempts: int = 0
    failed: str = ""
    retry_s: float = 0.0

    @property
    def due(self) -> bool:
        """Whether it is to be written (again) from its beginning now."""
        return self.doubtful and time.monotonic() >= self.retry_s


def status_path(settings: Settings) -> Path:
    """Where a writer leaves its counters."""
    return settings.data_dir / "writer" / "status.json"


class JournalWriter:
    """Tails the journals of `Settings.journal_dir` into Tiled.

    Parameters
    ----------
    settings : Settings
        Journal directory and Tiled.
    abandon_after_s : float
        Silence after which a run without a stop document is closed.

    Notes
    -----
    Not thread-safe: `step` and `run` belong to one thread.
    """

    def __init__(self, settings: Settings, abandon_after_s: float = ABANDON_AFTER_S) -> None:
        self.settings, self.abandon_after_s = settings, abandon_after_s
        self._failures: dict[str, str] = {}
        self.status = WriterStatus(failures=self._failures)
        self._store: TiledStore | None = None
        self._journals: dict[Path, Journal] = {}
        self._sizes: dict[Path, int] = {}
        self._runs: dict[str, _Run] = {}
        self._folder_ns, self._listed_s = 0, 0.0
        self._stops: dict[str, Any] = {}
        self._reported: dict[str, Any] = {}

    def run(self, stop: threading.Event, ready: Callable[[], None] | None = None) -> None:
        """Work until the event is set.

        Raises
        ------
        InputError
            Another writer works on this directory, or Tiled refuses the key.
        StorageError
            The directory cannot be written.
        """
        with exclusive(status_path(self.settings).parent, "document writer"):
            wait_s, told = FIRST_WAIT_S, False
            if ready is not None:
                ready()
            while not stop.is_set():
                try:
                    busy = self.step()
                    wait_s, told = FIRST_WAIT_S, False
                except UnreachableError as error:
                    if not told:
                        logger.warning("%s Runs stay in %s and follow later.", error, self.settings.journal_dir)
                    told, busy = True, False
                    stop.wait(wait_s)
                    wait_s = min(2 * wait_s, LAST_WAIT_S)
                self._report()
                if not busy:
                    stop.wait(POLL_S)
            self.close()
            self._report()

    def close(self) -> None:
        """Close the connection to Tiled."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def step(self) -> bool:
        """Take in what is new, once.

        Returns
        -------
        bool
            Whether anything was new.

        Raises
        ------
        UnreachableError
            Tiled does not answer; every run under way will be replayed.
        """
        fresh = self._read_journals()
        self._close_abandoned()
        if not fresh and not any(run.due for run in self._runs.values()):
            return False
        try:
            store = self._connected()
            for uid, documents in fresh.items():
                run = self._runs[uid]
                if not run.doubtful:
                    self._attempt(store, run, documents)
            for run in self._runs.values():
                if run.due:
                    self._attempt(store, run, None)
        except UnreachableError:
            self.status.tiled_reachable = False
            for run in self._runs.values():
                run.doubtful = run.doubtful or run.writer is not None
            raise
        return True

    # --- journals -----------------------------------------------------------------------------------------------------

    def _read_journals(self) -> dict[str, list[Document]]:
        """New documents of every run, in order."""
        fresh: dict[str, list[Document]] = {}
        for path in self._live_journals():
            try:
                size = path.stat().st_size
                if size == self._sizes.get(path, 0):
                    continue
                journal = self._journals.setdefault(path, Journal(path))
                damaged = journal.damaged
                found = journal.new_documents()
            except FileNotFoundError:
                self._forget(path)
                continue
            for uid, document in found:
                fresh.setdefault(uid, []).append(document)
                self._note(uid, journal, document)
            self._sizes[path] = size
            self.status.documents_damaged += journal.damaged - damaged
        return fresh

    def _live_journals(self) -> list[Path]:
        """Journals that may have grown: those of open runs, and all of them now and then and when one is added."""
        folder = self.settings.journal_dir
        try:
            changed_ns = folder.stat().st_mtime_ns
        except FileNotFoundError:
            return []
        now = time.monotonic()
        if changed_ns != self._folder_ns or now - self._listed_s > LIST_PERIOD_S:
            self._folder_ns, self._listed_s = changed_ns, now
            return sorted(folder.glob("*.jsonl"))
        return sorted({run.journal.path for run in self._runs.values() if not run.closed})

    def _forget(self, path: Path) -> None:
        """A journal was taken away: what it held stays in Tiled as it is."""
        self._journals.pop(path, None)
        self._sizes.pop(path, None)
        self._runs = {uid: run for uid, run in self._runs.items() if run.journal.path != path}

    def _note(self, uid: str, journal: Journal, document: Document) -> None:
        name, doc = document
        run = self._runs.get(uid)
        if run is None:
            run = self._runs[uid] = _Run(uid, journal, float(doc.get("time", time.time())))
        elif run.abandoned or run.closed:
            # Its session was alive after all: begin it anew.
            run.abandoned, run.doubtful = False, True
        run.closed = name == "stop"

    def _close_abandoned(self) -> None:
        now = time.time()
        newest = max((run.start_s for run in self._runs.values()), default=0.0)
        for run in self._runs.values():
            if run.closed or run.abandoned or not run.journal.path.exists():
                continue
            silent_s = now - run.journal.path.stat().st_mtime
            superseded = newest > run.start_s and silent_s > SUPERSEDED_GRACE_S
            if superseded or silent_s > self.abandon_after_s:
                logger.warning(
                    "run %s: no stop document and silent for %.0f s; it is closed as aborted", run.uid, silent_s
                )
                run.abandoned = run.doubtful = True
                self.status.runs_abandoned += 1

    # --- Tiled --------------------------------------------------------------------------------------------------------

    def _connected(self) -> TiledStore:
        if self._store is None:
            self._store = TiledStore.connect(self.settings.tiled)
            self._stops = {run.uid: run.stop.get("uid") for run in self._store.runs() if run.stop}
            logger.info("writing to Tiled at %s", self.settings.tiled.uri)
        self.status.tiled_reachable = True
        return self._store

    def _attempt(self, store: TiledStore, run: _Run, documents: list[Document] | None) -> None:
        """Give a run its new documents, or all of them when there is doubt about what arrived."""
        try:
            with reachable(store.uri):
                if documents is None:
                    self._replay(store, run)
                else:
                    self._give(run, documents)
                if run.closed or run.abandoned:
                    self._check_complete(store, run)
        except UnreachableError as error:
            cause = error.__cause__
            if not isinstance(cause, httpx.HTTPStatusError) or cause.response.status_code in GATEWAY_ERRORS:
                raise
            self._failed(run, cause)
        except Exception as error:  # noqa: BLE001 one run's fault must not keep the others out
            self._failed(run, error)

    def _replay(self, store: TiledStore, run: _Run) -> None:
        documents = run.journal.documents(run.uid)
        if not documents or documents[0][0] != "start":
            raise InputError(f"journal {run.journal.path}", f"it lacks the start of run {run.uid}")
        stop = None
        if run.abandoned and documents[-1][0] != "stop":
            stop = abandoned_stop(documents, run.journal.path.stat().st_mtime)
            documents.append(("stop", stop))
        if documents[-1][0] == "stop" and self._stops.get(run.uid) == documents[-1][1]["uid"]:
            # An earlier writer completed it.
            run.doubtful = False
            return
        node = get_child(store.raw, run.uid)
        if node is not None:
            logger.info("run %s is incomplete in Tiled; it is written anew", run.uid)
            self.status.replays += 1
            delete_node(node)
        from bluesky_tiled_plugins import TiledWriter

        run.writer = TiledWriter(store.raw, batch_size=1)
        self._give(run, documents)
        run.doubtful = False

    def _give(self, run: _Run, documents: Iterable[Document]) -> None:
        assert run.writer is not None
        documents = list(documents)
        for name, doc in merge_stream_datums(documents):
            run.writer(name, doc)
        self.status.documents += len(documents)

    def _check_complete(self, store: TiledStore, run: _Run) -> None:
        if run.writer is None:
            return
        node = get_child(store.raw, run.uid)
        notes = [] if node is None else node.metadata.get("notes", [])
        if node is None or not node.metadata.get("stop") or any(DOUBT_NOTE in note for note in notes):
            run.doubtful = True
            raise InputError(f"run {run.uid}", "Tiled does not have it whole", "it is written anew")
        run.writer, run.attempts, run.failed = None, 0, ""
        self._stops[run.uid] = node.metadata["stop"].get("uid")
        self._failures.pop(run.uid, None)
        self.status.runs_complete += 1
        logger.info("run %s is complete in Tiled", run.uid)

    def _failed(self, run: _Run, error: Exception) -> None:
        run.attempts += 1
        run.doubtful = True
        detail = str(error)
        if run.attempts < ATTEMPTS:
            logger.warning("run %s: %s; trying once more", run.uid, detail)
            return
        wait_s = min(RETRY_S * 2 ** (run.attempts - ATTEMPTS), LAST_RETRY_S)
        run.retry_s = time.monotonic() + wait_s
        if run.failed != detail:
            logger.error(
                "run %s cannot be written (%s); its documents stay in %s, next attempt in %.0f s",
                run.uid, detail, run.journal.path, wait_s, exc_info=error,
            )  # fmt: skip
        run.failed = self._failures[run.uid] = detail

    # --- status -------------------------------------------------------------------------------------------------------

    def _report(self) -> None:
        self.status.runs_open = sum(not (run.closed or run.abandoned) for run in self._runs.values())
        self.status.runs_failed = sum(bool(run.failed) for run in self._runs.values())
        content = asdict(self.status)
        if content != self._reported:
            write_json(status_path(self.settings), content | {"time_s": time.time()})
            self._reported = content
