"""Documents that were missed: found in the journals of sessions, or in Tiled."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.workflow.journals import Journal

__all__ = ["DocumentRecovery", "JournalFollower", "JournalSource", "RunSource", "TiledSource"]

logger = logging.getLogger(__name__)

Document = tuple[str, dict[str, Any]]
POLL_S = 0.5
AGAIN_S = (1.0, 3.0, 8.0)
CATCH_UP_PERIOD_S, RETRY_CATCH_UP_S = 30.0, 5.0
MAX_RETRIES = 60


class RunSource(Protocol):
    """Where whole runs can be read, newest first."""

    def recent_runs(self, limit: int) -> list[list[Document]]:
        """Documents of the latest runs so far, newest run first; [] while the source is away."""
        ...

    def close(self) -> None:
        """Release connections."""
        ...


class JournalSource:
    """Journals of sessions on this machine or a shared disk.

    Parameters
    ----------
    directory : path
        One ``.jsonl`` file a run.
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory)

    def recent_runs(self, limit: int) -> list[list[Document]]:
        """Documents of the latest runs, newest first."""
        if not self.directory.is_dir():
            return []
        paths = sorted(self.directory.glob("*.jsonl"), key=lambda path: path.stat().st_mtime, reverse=True)
        runs = []
        for path in paths[:limit]:
            by_run: dict[str, list[Document]] = {}
            try:
                for uid, document in Journal(path).new_documents():
                    by_run.setdefault(uid, []).append(document)
            except OSError as error:
                logger.warning("journal %s is skipped: %s", path, error)
            runs += [documents for documents in reversed(by_run.values()) if documents[0][0] == "start"]
        return runs[:limit]

    def close(self) -> None:
        """Nothing to release."""


class TiledSource:
    """Runs in Tiled, for an edge that does not see the session's disk.

    Parameters
    ----------
    connect : callable
        Gives a connected `ptycho_bluesky.workflow.tiled_store.TiledStore`.
    """

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._store: Any = None

    def recent_runs(self, limit: int) -> list[list[Document]]:
        """Documents of the latest runs, newest first; [] while Tiled is away."""
        try:
            if self._store is None:
                self._store = self._connect()
            uids = [run.uid for run in self._store.runs() if run.is_ptycho][-limit:]
            return [self._documents(uid) for uid in reversed(uids)]
        except Exception as error:  # noqa: BLE001 - any failure means the same: nothing to be had from there now
            logger.debug("no documents from Tiled: %s", error)
            self.close()
            return []

    def close(self) -> None:
        """Close the connection."""
        store, self._store = self._store, None
        if store is not None:
            store.close()

    def _documents(self, uid: str) -> list[Document]:
        return [(str(name), dict(doc)) for name, doc in self._store.run(uid).documents()]


class JournalFollower:
    """Tells the documents that sessions add to their journals from now on.

    Parameters
    ----------
    directory : path
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory)
        self._journals: dict[Path, Journal] = {}
        self._sizes: dict[Path, int] = {}
        for path in self._paths():
            self._sizes[path] = path.stat().st_size

    def _paths(self) -> list[Path]:
        return list(self.directory.glob("*.jsonl")) if self.directory.is_dir() else []

    def new_documents(self) -> list[Document]:
        """Documents of every journal that has grown since the last call, from its beginning the first time."""
        found: list[Document] = []
        try:
            grown = [path for path in self._paths() if path.stat().st_size != self._sizes.get(path)]
            for path in sorted(grown, key=lambda path: path.stat().st_mtime):
                self._sizes[path] = path.stat().st_size
                journal = self._journals.setdefault(path, Journal(path))
                found += [document for _, document in journal.new_documents()]
        except OSError as error:
            logger.warning("journals in %s: %s", self.directory, error)
        return found


class DocumentRecovery:
    """Fetches what a pipeline missed, in a thread of its own.

    Documents normally come over 0MQ. What was sent before the edge listened, or while the proxy was away, is found in
    the journals of sessions on this machine, else in Tiled. A document that the edge already has changes nothing there.

    Parameters
    ----------
    sources : sequence of RunSource
        Asked in order; the first that knows a run is believed.
    submit : callable
        ``submit(documents, live)`` hands documents over, together.
    has_result : callable, optional
        ``has_result(uid)``: whether the final mosaic of a finished run is stored already; it may raise `InputError`
        while that cannot be told.
    catch_up_runs : int
        How many of the latest runs are looked at for ones that are finished and have no result.
    follower : JournalFollower, optional
    """

    def __init__(
        self,
        sources: Sequence[RunSource],
        submit: Callable[[list[Document], bool], None],
        has_result: Callable[[str], bool] | None = None,
        catch_up_runs: int = 0,
        follower: JournalFollower | None = None,
    ) -> None:
        self._sources, self._submit = tuple(sources), submit
        self._has_result, self._catch_up_runs = has_result, catch_up_runs
        self._follower = follower
        self._wake, self._stop = threading.Event(), threading.Event()
        self._retries, self._wanted = 0, False
        self._given: dict[str, int] = {}
        self.first_look = threading.Event()
        """Set once the run in progress, if any, has been taken up."""
        self._thread = threading.Thread(target=self._run, name="edge-recovery", daemon=True)

    def start(self) -> None:
        """Take up the run in progress, then finished runs without result; go on looking until `stop`."""
        self._thread.start()

    def report_unknown(self, name: str, doc: dict[str, Any]) -> None:
        """Tell that a document's run is not known; its documents are looked for."""
        logger.debug("the run of a %s document is not known; looking for it", name)
        self._retries, self._wanted = 0, True
        self._wake.set()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Stop."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        for source in self._sources:
            source.close()

    def _run(self) -> None:
        self._guarded(self.recover_open)
        self.first_look.set()
        again = [time.monotonic() + delay_s for delay_s in AGAIN_S]
        next_catch_up_s = 0.0
        while not self._stop.is_set():
            self._guarded(self.follow)
            if self._wanted:
                found = self._guarded(self.recover_open)
                self._retries += 1
                self._wanted = not found and self._retries < MAX_RETRIES
            elif again and time.monotonic() >= again[0]:
                # a source that lags behind the stream may have had too little the first time
                again.pop(0)
                self._guarded(self.recover_open)
            if time.monotonic() >= next_catch_up_s:
                known = self._guarded(self.catch_up)
                next_catch_up_s = time.monotonic() + (CATCH_UP_PERIOD_S if known else RETRY_CATCH_UP_S)
            self._wake.wait(POLL_S)
            self._wake.clear()

    def _guarded(self, work: Callable[[], bool]) -> bool:
        try:
            return work()
        except Exception:  # a damaged journal must not keep the edge from the next run
            logger.exception("missed documents could not be recovered")
            return False

    def follow(self) -> bool:
        """Hand over what sessions have journalled since the last call."""
        documents = [] if self._follower is None else self._follower.new_documents()
        if documents:
            self._submit(documents, True)
        return bool(documents)

    def recover_open(self) -> bool:
        """Hand over the newest run, if it has not stopped and more is known of it than was handed over before."""
        runs = self._recent(1)
        if not runs or (_stopped(runs[0]) and not self._wanted):
            return False
        uid, documents = _uid(runs[0]), runs[0]
        if len(documents) <= self._given.get(uid, 0):
            return False
        if uid not in self._given:
            logger.info("run %s is under way; its documents are taken up", uid[:8])
        self._given[uid] = len(documents)
        self._submit(documents, True)
        return True

    def catch_up(self) -> bool:
        """Hand over finished runs that have no result, oldest first.

        Returns
        -------
        bool
            False when it cannot be told now which runs have a result: call again soon.
        """
        if self._catch_up_runs <= 0:
            return True
        for documents in reversed(self._recent(self._catch_up_runs)):
            uid = _uid(documents)
            if uid in self._given or not _stopped(documents) or not _is_ptycho(documents):
                continue
            try:
                if self._has_result is not None and self._has_result(uid):
                    self._given[uid] = len(documents)
                    continue
            except (InputError, OSError) as error:
                logger.debug("it cannot be told whether run %s has a result: %s", uid[:8], error)
                return False
            logger.info("run %s has no result yet and is caught up", uid[:8])
            self._given[uid] = len(documents)
            self._submit(documents, False)
        return True

    def _recent(self, limit: int) -> list[list[Document]]:
        for source in self._sources:
            runs = source.recent_runs(limit)
            if runs:
                return runs
        return []


def _uid(documents: list[Document]) -> str:
    return str(documents[0][1].get("uid", ""))


def _stopped(documents: list[Document]) -> bool:
    return any(name == "stop" for name, _ in documents)


def _is_ptycho(documents: list[Document]) -> bool:
    return isinstance(documents[0][1].get("ptycho"), dict)
