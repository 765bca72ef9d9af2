"""Documents that were missed: found in the journals of sessions, or in Tiled."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.workflow.journals import Journal

__all__ = ["DocumentRecovery", "JournalSource", "RunSource", "TiledSource"]

logger = logging.getLogger(__name__)

Document = tuple[str, dict[str, Any]]
RETRY_S, LATER_S = 1.0, 5.0
AGAIN_S = (1.0, 2.0, 5.0)
MAX_RETRIES = 30


class RunSource(Protocol):
    """Where whole runs can be read, newest first."""

    def recent_runs(self, limit: int) -> list[list[Document]]:
        """Documents of the latest runs so far, newest run first; [] while the source is away."""
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
            self._store = None
            return []

    def _documents(self, uid: str) -> list[Document]:
        return [(str(name), dict(doc)) for name, doc in self._store.run(uid).documents()]


class DocumentRecovery:
    """Fetches what a pipeline missed, in a thread of its own.

    Parameters
    ----------
    sources : sequence of RunSource
        Asked in order; the first that knows a run is believed.
    submit : callable
        ``submit(documents, live)`` hands the documents of one run over, together.
    has_result : callable, optional
        ``has_result(uid)``: whether the final mosaic of a finished run is stored already.
    catch_up_runs : int
        Finished runs without result that are taken up at the start.
    """

    def __init__(
        self,
        sources: Sequence[RunSource],
        submit: Callable[[list[Document], bool], None],
        has_result: Callable[[str], bool] | None = None,
        catch_up_runs: int = 0,
    ) -> None:
        self._sources, self._submit = tuple(sources), submit
        self._has_result, self._catch_up_runs = has_result, catch_up_runs
        self._wake, self._stop = threading.Event(), threading.Event()
        self._retries, self._wanted = 0, False
        self._given: dict[str, int] = {}
        self._thread = threading.Thread(target=self._run, name="edge-recovery", daemon=True)

    def start(self) -> None:
        """Take up the run in progress and finished runs without result, then wait for `report_unknown`."""
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

    def _run(self) -> None:
        pending = True
        again = list(AGAIN_S)
        while not self._stop.is_set():
            try:
                if pending:
                    pending = not self.take_up()
                if self._wanted:
                    self._wanted = not self.recover_open() and self._retries < MAX_RETRIES
                    self._retries += 1
                    again = list(AGAIN_S)
                elif again and not pending:
                    # a source that lags behind the stream may have had too little the first time
                    self.recover_open()
            except Exception:  # a damaged journal must not keep the edge from the next run
                logger.exception("missed documents could not be recovered")
            if self._wanted:
                self._stop.wait(RETRY_S)
            elif pending:
                self._stop.wait(LATER_S)
            else:
                self._wake.wait(again.pop(0) if again else None)
            self._wake.clear()

    def take_up(self) -> bool:
        """Hand over the run in progress, and finished ones that have no result yet, oldest first.

        Returns
        -------
        bool
            False when it cannot be told now which runs have a result: call again.
        """
        runs = self._recent(max(1, self._catch_up_runs))
        open_run = runs[0] if runs and not _stopped(runs[0]) else None
        if open_run is not None and self._hand_over(open_run):
            logger.info("run %s is under way; its documents are taken up", _uid(open_run)[:8])
        if self._catch_up_runs <= 0:
            return True
        for documents in reversed(runs):
            uid = _uid(documents)
            if uid in self._given or not _stopped(documents) or not _is_ptycho(documents):
                continue
            try:
                if self._has_result is not None and self._has_result(uid):
                    continue
            except (InputError, OSError) as error:
                logger.debug("it cannot be told whether run %s has a result: %s", uid[:8], error)
                return False
            logger.info("run %s has no result yet and is caught up", uid[:8])
            self._given[uid] = len(documents)
            self._submit(documents, False)
        return True

    def recover_open(self) -> bool:
        """Hand over the newest run if there is more of it than was handed over before; False when there is nothing."""
        runs = self._recent(1)
        return bool(runs) and self._hand_over(runs[0])

    def _hand_over(self, documents: list[Document]) -> bool:
        uid = _uid(documents)
        if len(documents) <= self._given.get(uid, 0):
            return False
        self._given[uid] = len(documents)
        self._submit(documents, True)
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
