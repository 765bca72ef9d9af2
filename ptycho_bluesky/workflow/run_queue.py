"""Which runs wait for the worker: those it was told of, and those that it finds when it looks."""

from __future__ import annotations

import queue
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np

from ptycho_bluesky.config import Settings
from ptycho_bluesky.workflow.run_book import RunBook
from ptycho_bluesky.workflow.tiled_store import RunSummary, TiledStore

__all__ = ["RunQueue"]

OLDER_RUNS = 1500
"""Runs of any age that a search looks at beside the new ones: five requests, about half a second on idle cores."""


class RunQueue:
    """Complete ptychographic runs that are not yet decided on, the oldest first.

    Parameters
    ----------
    settings : Settings
    book : RunBook
        What was decided here.

    Notes
    -----
    `notice` may be called from any thread; everything else belongs to one. A run counts as decided with the stop
    document that it had then: one that was closed for a dead session and has grown since is a run anew.

    A run may be written long after it began, from a replayed journal or by another session, and after younger ones were
    seen. So a search also goes on through all runs, a part each time: tens of thousands take Tiled many seconds.
    """

    def __init__(self, settings: Settings, book: RunBook) -> None:
        self._settings, self._book = settings, book
        self._noticed: queue.SimpleQueue[RunSummary] = queue.SimpleQueue()
        self._waiting: dict[str, RunSummary] = {}
        self._settled: dict[str, str] = {}
        self._since_s: float | None = None
        self._sweep: tuple[TiledStore, Iterator[RunSummary]] | None = None

    def notice(self, uid: str, metadata: Mapping[str, Any]) -> None:
        """Take a notice of a run's metadata, for `ContainerWatch`."""
        start, stop = metadata.get("start"), metadata.get("stop")
        if start and stop and start.get("ptycho"):
            self._noticed.put(RunSummary(uid, float(start.get("time", 0.0)), start, stop).brief())

    def next(self, under_way: Collection[str] = ()) -> RunSummary | None:
        """The oldest run that waits and is not under way; it stays in the queue until `settle` or `withdraw`."""
        waiting = (run for run in self._waiting.values() if run.uid not in under_way)
        return min(waiting, key=lambda run: run.time_s, default=None)

    def take_notices(self, store: Callable[[], TiledStore]) -> None:
        """Queue the runs that `notice` was told of; ``store`` gives the connection, if any is needed.

        Raises
        ------
        UnreachableError
            Tiled does not answer; the notice that could not be followed is found by `catch_up`.
        """
        while True:
            try:
                told = self._noticed.get_nowait()
            except queue.Empty:
                return
            if not self._is_open(told):
                continue
            if self._book.get(told.uid) is None:
                # Never seen before, so the notice is as good as a look, and sooner; reading the run checks it again.
                self._consider(told)
                continue
            # A notice may be an old one, repeated by a new subscription: what counts is what stands there now.
            now = store().summary(told.uid)
            if now is not None:
                self._consider(now)

    def waiting(self) -> list[str]:
        """Uids of the runs that wait, oldest first."""
        return [run.uid for run in sorted(self._waiting.values(), key=lambda run: run.time_s)]

    def settle(self, uid: str, stop_uid: str) -> None:
        """A run is decided on."""
        self._settled[uid] = stop_uid
        self._waiting.pop(uid, None)

    def reopen(self, uid: str) -> None:
        """A run that was decided on is to be worked on again."""
        self._settled.pop(uid, None)

    def withdraw(self, uid: str) -> None:
        """A run is not to be worked on now; its next stop document brings it back."""
        self._waiting.pop(uid, None)

    def catch_up(self, store: TiledStore) -> None:
        """Look for complete runs in Tiled: all of them the first time, then the new ones and a part of the others.

        Raises
        ------
        UnreachableError
            Tiled does not answer.
        """
        if self._since_s is None and store.num_decisions() != self._book.num_published():
            # What another worker, or this one in another folder, has decided on. Where Tiled has as many decisions as
            # this worker has put there, they are known: the list of tens of thousands takes seconds.
            self._settled |= {uid: stop for uid, stop in store.decided_runs() if uid not in self._settled}
        unfinished_s, newest_s = np.inf, self._since_s or 0.0
        for run in store.run_summaries(self._since_s):
            self._consider(run)
            newest_s = max(newest_s, run.time_s)
            if run.stop is None:
                unfinished_s = min(unfinished_s, run.time_s)
        if self._since_s is not None:
            self._look_at_older(store)
        for note in self._book.notes():
            if not note.outcome and note.uid not in self._waiting:
                # Interrupted, or to be tried again: whatever was decided before no longer counts.
                summary = store.summary(note.uid)
                if summary is not None and summary.stop:
                    self._waiting[note.uid] = summary.brief()
        self._since_s = min(unfinished_s, newest_s)

    def _look_at_older(self, store: TiledStore) -> None:
        """Go on through the runs of any age, from the beginning after the last one and on a new connection."""
        if self._sweep is None or self._sweep[0] is not store:
            self._sweep = store, iter(store.run_summaries())
        seen = 0
        for run in islice(self._sweep[1], OLDER_RUNS):
            self._consider(run)
            seen += 1
        if seen < OLDER_RUNS:
            self._sweep = None

    def _consider(self, run: RunSummary) -> None:
        if self._is_open(run):
            self._waiting[run.uid] = run.brief()

    def _is_open(self, run: RunSummary) -> bool:
        """Whether a run is complete, ours, not yet queued, and not yet decided on with this stop document."""
        if run.stop is None or not run.is_ptycho or run.uid in self._waiting:
            return False
        stop_uid = str(run.stop.get("uid", ""))
        if self._settled.get(run.uid) == stop_uid:
            return False
        note = self._book.get(run.uid)
        if note is not None and note.outcome and note.stop_uid == stop_uid:
            self._settled[run.uid] = stop_uid
            return False
        return True
