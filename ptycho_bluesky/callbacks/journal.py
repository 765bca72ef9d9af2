"""The journal: every document of a run on local disk before anything else sees it."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from bluesky import Msg
from bluesky.callbacks.json_writer import JSONLinesWriter
from bluesky.preprocessors import plan_mutator

from ptycho_bluesky.callbacks.plain import plain_document
from ptycho_bluesky.errors import StorageError

__all__ = ["RunJournal"]

logger = logging.getLogger(__name__)

LOW_WATER_BYTES = 32 * 2**20
"""A run is ended while this much is left: room for its last documents and for what else writes to the disk."""


class RunJournal:
    """One file a run, ``<uid>.jsonl``, a document a line, handed to the operating system before the scan goes on.

    Subscribe it first, and add `preprocessor` to the RunEngine's preprocessors. A run is refused at its start document
    when the folder cannot be written: nothing has moved then. When the disk runs low later, the plan gets a
    `StorageError` at its next checkpoint, cleans up, and ends with every document written, *before* data are lost.
    Only a write that fails in spite of that is raised out of the callback at once. Each is raised once a run: the
    clean-up emits documents too, and those are still written while there is room.

    Parameters
    ----------
    directory : path
        Made when missing.
    low_water_bytes : int
        Free space below which a run is ended.
    free_bytes : callable, optional
        Free space of a folder; for tests.

    Notes
    -----
    Documents are written as bluesky's `JSONLinesWriter` writes them, NumPy values turned into plain ones. A line that
    the disk cut is removed, so that a reader never finds two documents in one line.
    """

    def __init__(
        self,
        directory: Path,
        *,
        low_water_bytes: int = LOW_WATER_BYTES,
        free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free,
    ) -> None:
        self.directory = Path(directory)
        self.low_water_bytes = low_water_bytes
        self._free_bytes = free_bytes
        self._writers: dict[str, JSONLinesWriter] = {}
        self._run_of: dict[str, str] = {}
        self._failed: set[str] = set()
        self._pending: StorageError | None = None
        self._has_preprocessor = False

    def check(self) -> None:
        """Refuse a folder that cannot take a run.

        Raises
        ------
        StorageError
            It cannot be made or written, or the disk is full.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"journal folder {self.directory}: {error}", "it must be writable", "set data_dir"
            ) from error
        if not os.access(self.directory, os.W_OK | os.X_OK):
            raise StorageError(f"journal folder {self.directory}", "it must be writable", "set data_dir")
        self._check_room()

    def _check_room(self) -> None:
        free = self._free_bytes(self.directory)
        if free < self.low_water_bytes:
            raise StorageError(
                f"the disk of {self.directory} has {free / 1e6:.0f} MB left",
                f"a run is ended below {self.low_water_bytes / 1e6:.0f} MB, before data are lost",
                "free some space or set data_dir to another disk",
            )

    def __call__(self, name: str, doc: dict[str, Any]) -> None:
        """Write a document.

        Raises
        ------
        StorageError
            It cannot be written, or the disk is nearly full; once a run.
        """
        run = self._route(name, doc)
        try:
            if name == "start":
                self._pending = None
                self.check()
            self._write(run, name, doc)
            if name != "stop":
                self._look_ahead(run)
        except StorageError as error:
            self._fail(run, error)
        except OSError as error:
            self._fail(run, StorageError(f"journal of run {run}: {error}", "it must be writable", "free some space"))
        finally:
            if name == "stop":
                self._forget(run)

    def _look_ahead(self, run: str) -> None:
        """End the run while there is room for its last documents."""
        try:
            self._check_room()
        except StorageError as error:
            if not self._has_preprocessor:
                raise
            if run not in self._failed:
                # not out of the callback: an exception between two documents of one collect would split it
                self._failed.add(run)
                self._pending = error

    def preprocessor(self, plan: Generator[Msg, Any, Any]) -> Generator[Msg, Any, Any]:
        """Raise in the plan, at its next checkpoint, that the disk runs low; for ``RE.preprocessors``."""
        self._has_preprocessor = True

        def raise_pending() -> Generator[Msg, Any, None]:
            pending, self._pending = self._pending, None
            if pending is not None:
                raise pending
            yield from ()

        def at_checkpoint(message: Msg) -> tuple[Any, None]:
            wanted = message.command == "checkpoint" and self._pending is not None
            return (_then(raise_pending(), message), None) if wanted else (None, None)

        return (yield from plan_mutator(plan, at_checkpoint))

    def _route(self, name: str, doc: dict[str, Any]) -> str:
        """Uid of the run that the document belongs to."""
        if name == "start":
            return str(doc["uid"])
        if name in ("stop", "descriptor", "stream_resource", "resource"):
            run = str(doc["run_start"])
            self._run_of[str(doc["uid"])] = run
            return run
        parent = doc.get("descriptor") or doc.get("stream_resource") or doc.get("resource") or ""
        return self._run_of.get(str(parent), "unknown")

    def _write(self, run: str, name: str, doc: dict[str, Any]) -> None:
        writer = self._writers.get(run)
        if writer is None:
            writer = self._writers[run] = JSONLinesWriter(str(self.directory), f"{run}.jsonl")
        path = self.directory / f"{run}.jsonl"
        size = path.stat().st_size if path.exists() else 0
        try:
            writer(name, plain_document(doc))
        except OSError:
            if path.exists():
                os.truncate(path, size)
            raise
        if name in ("start", "stop"):
            with path.open("ab") as file:
                os.fsync(file.fileno())

    def _fail(self, run: str, error: StorageError) -> None:
        if run in self._failed:
            logger.error("journal: %s", error)
            return
        self._failed.add(run)
        raise error

    def _forget(self, run: str) -> None:
        self._writers.pop(run, None)
        self._failed.discard(run)
        self._run_of = {uid: owner for uid, owner in self._run_of.items() if owner != run}


def _then(before: Generator[Msg, Any, None], message: Msg) -> Generator[Msg, Any, Any]:
    yield from before
    return (yield message)
