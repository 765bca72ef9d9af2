"""Which runs wait for the worker: those it was told of, and those that it finds when it looks."""

from __future__ import annotations

import queue
from collections.abc import Mapping
from typing import Any

from ptycho_bluesky.config import Settings
from ptycho_bluesky.workflow.run_state import run_folder, run_states
from ptycho_bluesky.workflow.tiled_store import RunSummary, TiledStore

__all__ = ["RunQueue"]


class RunQueue:
    """Complete ptychographic runs that are not yet decided on, the oldest first.

    Parameters
    ----------
    settings : Settings
        ``worker_dir`` tells what was decided here.

    Notes
    -----
    `notice` may be called from any thread; everything else belongs to one. A run counts as decided with the stop
    document that it had then: one that was closed for a dead session and has grown since is a run anew.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._noticed: queue.SimpleQueue[RunSummary] = queue.SimpleQueue()
        self._waiting: dict[str, RunSummary] = {}
        self._settled: dict[str, str] = {}
        self._since_s: float | None = None

    def notice(self, uid: str, metadata: Mapping[str, Any]) -> None:
        """Take a notice of a run's metadata, for `ContainerWatch`."""
        start, stop = metadata.get("start"), metadata.get("stop")
        if start and stop and start.get("ptycho"):
            self._noticed.put(RunSummary(uid, float(start.get("time", 0.0)), start, stop))

    def next(self) -> RunSummary | None:
        """The oldest run that waits; it stays in the queue until `settle` or `withdraw`."""
        return min(self._waiting.values(), key=lambda run: run.time_s, default=None)

    def take_notices(self, store: TiledStore) -> None:
        """Queue the runs that `notice` was told of.

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
            if self._is_open(told):
                # A notice may be an old one, repeated by a new subscription: what counts is what stands there now.
                now = store.summary(told.uid)
                if now is not None:
                    self._consider(now)

    def waiting(self) -> list[str]:
        """Uids of the runs that wait, oldest first."""
        return [run.uid for run in sorted(self._waiting.values(), key=lambda run: run.time_s)]

    def settle(self, uid: str, stop_uid: str) -> None:
        """A run is decided on."""
        self._settled[uid] = stop_uid
        self._waiting.pop(uid, None)

    def withdraw(self, uid: str) -> None:
        """A run is not to be worked on now; its next stop document brings it back."""
        self._waiting.pop(uid, None)

    def catch_up(self, store: TiledStore) -> None:
        """Look for complete runs in Tiled.

        Raises
        ------
        UnreachableError
            Tiled does not answer.
        """
        if self._since_s is None:
            # What another worker, or this one in another folder, has decided on.
            decided = store.read_decisions()
            self._settled |= {uid: str(decision.get("stop_uid", "")) for uid, decision in decided.items()}
        runs = store.runs(self._since_s)
        for run in runs:
            self._consider(run)
        for state in run_states(self._settings):
            if not state.outcome and state.uid not in self._waiting:
                # Interrupted, or to be tried again: whatever was decided before no longer counts.
                summary = store.summary(state.uid)
                if summary is not None and summary.stop:
                    self._waiting[state.uid] = summary
        unfinished = [run.time_s for run in runs if run.stop is None]
        newest = max((run.time_s for run in runs), default=self._since_s or 0.0)
        self._since_s = min([*unfinished, newest])

    def _consider(self, run: RunSummary) -> None:
        if self._is_open(run):
            self._waiting[run.uid] = run

    def _is_open(self, run: RunSummary) -> bool:
        """Whether a run is complete, ours, not yet queued, and not yet decided on with this stop document."""
        if run.stop is None or not run.is_ptycho or run.uid in self._waiting:
            return False
        stop_uid = str(run.stop.get("uid", ""))
        if self._settled.get(run.uid) == stop_uid:
            return False
        state = run_folder(self._settings, run.uid).load()
        if state is not None and state.outcome and state.stop_uid == stop_uid:
            self._settled[run.uid] = stop_uid
            return False
        return True
