"""The worker: every finished run becomes labels, a candidate, and a decision.

Notes
-----
It hears of stop documents over Tiled's websocket and searches for what it missed after every reconnection and every
`catch_up_period_s`. Runs are taken in the order in which they began, `max_in_flight` of them at once: while one is
trained on, the next is reconstructed and labelled; what depends on the models is done one run after the other
(`ptycho_bluesky.workflow.lane`).

The stages of a run (read, reconstruct, label, validate, train, gate, register) are idempotent. What is finished stands
in ``worker_dir/<uid>/state.json``, its products beside it, so a worker that is killed at any moment goes on from the
stage that it was in, a training from its checkpoint. Results go to Tiled from those files; while Tiled is away they
wait there.

A stage that fails is repeated `retries` times with growing pauses; bad input is not repeated. A run that cannot be
worked on gets the outcome ``failed`` with the reason, and the next run is taken.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from ptycho_bluesky.config import Settings
from ptycho_bluesky.errors import StorageError, UnreachableError
from ptycho_bluesky.workflow.compute import Compute
from ptycho_bluesky.workflow.connections import Connections
from ptycho_bluesky.workflow.executors import make_executor
from ptycho_bluesky.workflow.files import exclusive, read_json, write_json
from ptycho_bluesky.workflow.lane import Lane
from ptycho_bluesky.workflow.pauses import Pauses
from ptycho_bluesky.workflow.publishing import publish
from ptycho_bluesky.workflow.requests import clear_cancel, clear_retry, requests
from ptycho_bluesky.workflow.run_book import RunBook
from ptycho_bluesky.workflow.run_queue import RunQueue
from ptycho_bluesky.workflow.run_state import RunState, read_stage, run_folder
from ptycho_bluesky.workflow.run_work import RunWork, Stopping, Withdrawn
from ptycho_bluesky.workflow.shared import Shared
from ptycho_bluesky.workflow.stages import LearningStages, Stages
from ptycho_bluesky.workflow.watch import ContainerWatch

__all__ = ["Listener", "Worker", "read_stage"]

logger = logging.getLogger(__name__)

POLL_S = 0.2
FIRST_PAUSE_S, LAST_PAUSE_S = 1.0, 60.0
STOP_WAIT_S = 8.0

Listener = Callable[[dict[str, Any], RunState | None], None]
"""Called with the worker's status whenever that changes, and with a run's state when it has got its outcome; at the
start with that of the last run that had."""


class Worker:
    """Follows the runs of one Tiled server.

    Parameters
    ----------
    settings : Settings
        Tiled, directories, and sections ``worker``, ``reconstruct`` and ``train``.
    stages : Stages, optional
        What is computed.
    executor : callable, optional
        Makes the executor that computes it; by default as ``settings.worker`` says.
    listener : callable, optional
        Told of the status and of every decision; see `Listener`.

    Notes
    -----
    One worker for a ``worker_dir``; a lock sees to it.
    """

    def __init__(
        self,
        settings: Settings,
        stages: Stages | None = None,
        executor: Callable[[], Executor] | None = None,
        listener: Listener | None = None,
    ) -> None:
        self.settings = settings
        self._stages = stages or LearningStages()
        self._make_executor = executor or (lambda: make_executor(settings.worker))
        self._listener = listener
        self._connections = Connections(settings.tiled)
        self._stop = threading.Event()
        self._search, self._wake = threading.Event(), threading.Event()
        self._book = RunBook(settings)
        self._runs = RunQueue(settings, self._book)
        self._under_way: dict[str, Future[RunState]] = {}
        self._unpublished: set[str] = set()
        self._cancelled: set[str] = set()
        self._pauses = Pauses(FIRST_PAUSE_S, LAST_PAUSE_S)
        self._stop_file, self._status_file = settings.worker_dir / "stop", settings.worker_dir / "status.json"
        self._reported: dict[str, Any] = {}
        self._decided = ""

    # --- running ------------------------------------------------------------------------------------------------------

    def run(self, stop: threading.Event, ready: Callable[[], None] | None = None, *, once: bool = False) -> None:
        """Work until the event is set.

        Parameters
        ----------
        stop : Event
        ready : callable, optional
            Called once when runs are listened for.
        once : bool
            End when every run that is complete now is decided on and published.

        Raises
        ------
        InputError
            Another worker works on this directory, or Tiled refuses the key.
        StorageError
            The directory cannot be written.
        """
        self._stop = stop
        with exclusive(self.settings.worker_dir, "worker"):
            self._stop_file.unlink(missing_ok=True)
            self._book.load()
            self._unpublished = {uid for uid in self._book.unpublished() if not self._is_published(uid)}
            self._recall()
            compute = Compute(self._make_executor)
            compute.submit(_warm_up)
            shared = Shared(
                self.settings, self._stages, compute, self._connections, self._book, Lane(), stop, self._cancelled
            )
            watch = ContainerWatch(self.settings.tiled, self.settings.tiled.raw, self._noticed, self._reconnected)
            watch.start()
            self._search.set()
            threads = ThreadPoolExecutor(self.settings.worker.max_in_flight, thread_name_prefix="run")
            try:
                if ready is not None:
                    ready()
                self._loop(shared, threads, once)
            finally:
                # Also the runs of a loop that failed end: they look at this event.
                stop.set()
                watch.stop()
                self._write_stop_file()
                threads.shutdown(wait=True, cancel_futures=True)
                compute.stop(STOP_WAIT_S)
                self._stop_file.unlink(missing_ok=True)
                self._connections.close()
            logger.info("the worker ends; unfinished runs go on when it is started again")

    def _recall(self) -> None:
        """Tell the listener of the decision that was the last before the worker was started."""
        self._decided = str(read_json(self._status_file, {}).get("decided", ""))
        state = run_folder(self.settings, self._decided).load() if self._decided else None
        if state is not None and state.outcome and self._listener is not None:
            self._listener(self._status(reachable=False), state)

    def _noticed(self, uid: str, metadata: Any) -> None:
        self._runs.notice(uid, metadata)
        self._wake.set()

    def _reconnected(self) -> None:
        self._pauses.hurry()
        self._search.set()
        self._wake.set()

    def _loop(self, shared: Shared, threads: ThreadPoolExecutor, once: bool) -> None:
        pause_s, told, searched_s = FIRST_PAUSE_S, False, -np.inf
        while not self._stop.is_set():
            try:
                self._collect()
                self._take_requests()
                overdue = time.monotonic() - searched_s > self.settings.worker.catch_up_period_s
                if self._search.is_set() or overdue:
                    self._search.clear()
                    self._runs.catch_up(self._connections.store())
                    searched_s = time.monotonic()
                self._runs.take_notices(self._connections.store)
                self._take_up(shared, threads)
                self._publish_all()
                if once and not (self._under_way or self._unpublished or self._runs.waiting()):
                    return
                pause_s, told = FIRST_PAUSE_S, False
            except (UnreachableError, StorageError) as error:
                if not told:
                    logger.warning("%s Runs and results wait in %s.", error, self.settings.worker_dir)
                told = True
                self._connections.drop()
                self._search.set()
                self._report(reachable=False)
                self._pause(pause_s)
                pause_s = min(2 * pause_s, LAST_PAUSE_S)
                continue
            self._report(reachable=True)
            self._wake.wait(POLL_S)
            self._wake.clear()

    def _pause(self, seconds: float) -> None:
        """Wait, but no longer than until the websocket stands again or the worker is to end."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self._stop.is_set():
            if self._wake.wait(POLL_S):
                self._wake.clear()
                return

    # --- runs ---------------------------------------------------------------------------------------------------------

    def _take_up(self, shared: Shared, threads: ThreadPoolExecutor) -> None:
        """Begin the oldest runs that wait, as long as there is room."""
        while len(self._under_way) < self.settings.worker.max_in_flight:
            run = self._runs.next({*self._under_way, *self._pauses.waiting()})
            if run is None:
                return
            # In this thread: the next run is told of this one before either is worked on.
            work = RunWork(shared, run)
            self._unpublished.add(run.uid)
            future = threads.submit(work.run)
            future.add_done_callback(lambda _: self._wake.set())
            self._under_way[run.uid] = future

    def _collect(self) -> None:
        """See to the runs that have come to an end.

        Raises
        ------
        UnreachableError, StorageError
            A run could not go on for that; it is taken up again after a pause that grows each time.
        """
        for uid in [uid for uid, future in self._under_way.items() if future.done()]:
            future = self._under_way.pop(uid)
            try:
                state = future.result()
            except Withdrawn:
                logger.info("run %s is being written anew in Tiled; it is left for now", uid)
                self._runs.withdraw(uid)
                continue
            except Stopping:
                continue
            except (UnreachableError, StorageError):
                self._pauses.add(uid)
                raise
            self._pauses.forget(uid)
            self._decided = uid
            self._runs.settle(uid, state.stop_uid)
            if uid in self._cancelled or state.outcome == "cancelled":
                self._clear_cancel(uid, state.outcome)
            if self._listener is not None:
                self._listener(self._status(reachable=True), state)

    def _take_requests(self) -> None:
        """Do what a person has asked for from another process."""
        cancel, again = requests(self.settings)
        for uid in cancel:
            note = self._book.get(uid)
            if note is not None and note.outcome and uid not in self._under_way:
                self._clear_cancel(uid, note.outcome)
            elif uid not in self._cancelled:
                logger.info("run %s is cancelled", uid)
                self._cancelled.add(uid)
        for uid in again:
            self._book.reread(uid)
            self._runs.reopen(uid)
            self._cancelled.discard(uid)
            self._pauses.forget(uid)
            clear_retry(self.settings, uid)
            self._search.set()

    def _clear_cancel(self, uid: str, outcome: str) -> None:
        if outcome != "cancelled":
            logger.warning("run %s was asked to be cancelled too late: it is %s", uid, outcome)
        self._cancelled.discard(uid)
        clear_cancel(self.settings, uid)

    def _write_stop_file(self) -> None:
        try:
            self._stop_file.touch()
        except OSError as error:
            logger.debug("no stop file: %s", error)

    def _publish_all(self) -> None:
        """Bring to Tiled what is finished and not yet there."""
        for uid in sorted(self._unpublished):
            folder = run_folder(self.settings, uid)
            state = folder.load()
            if state is None:
                self._unpublished.discard(uid)
                continue
            publish(self._connections.store, folder, state)
            if self._is_published(uid):
                self._unpublished.discard(uid)
                self._book.mark_published(uid)

    def _is_published(self, uid: str) -> bool:
        return "decision" in run_folder(self.settings, uid).published()

    # --- status -------------------------------------------------------------------------------------------------------

    def _status(self, *, reachable: bool) -> dict[str, Any]:
        return {
            "process": os.getpid(),
            "tiled_reachable": reachable,
            "under_way": sorted(self._under_way),
            "waiting": [uid for uid in self._runs.waiting() if uid not in self._under_way],
            "unpublished": sorted(self._unpublished),
            "outcomes": self._book.outcomes(),
            "decided": self._decided,
        }

    def _report(self, *, reachable: bool) -> None:
        content = self._status(reachable=reachable)
        if content != self._reported:
            try:
                write_json(self._status_file, content | {"time_s": time.time()})
                self._reported = content
            except StorageError as error:
                # A full disk does not end the worker.
                logger.debug("%s", error)
            if self._listener is not None:
                self._listener(content, None)


def _warm_up() -> None:
    """Import what the stages need, so that the first run does not wait for it."""
    import ptycho_bluesky.reconstruction
    import ptycho_bluesky.training.trainer  # noqa: F401
