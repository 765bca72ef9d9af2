"""The worker: every finished run becomes labels, a candidate, and a decision.

Notes
-----
It hears of stop documents over Tiled's websocket and searches for what it missed after every reconnection and every
`catch_up_period_s`. Runs are taken in the order in which they began, one at a time.

The stages of a run (read, reconstruct, label, validate, train, gate, register) are idempotent. What is finished stands
in ``worker_dir/<uid>/state.json``, its products beside it, so a worker that is killed at any moment goes on from the
stage that it was in, a training from its checkpoint. Results go to Tiled from those files; while Tiled is away they
wait there.

A stage that fails is repeated `retries` times with growing pauses; bad input is not repeated. A run that cannot be
worked on gets the outcome ``failed`` with the reason, and the next run is taken.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import numpy as np

from ptycho_bluesky.config import Settings
from ptycho_bluesky.errors import InputError, StorageError, UnreachableError
from ptycho_bluesky.records import Measurement, ModelRecord, ModelStage
from ptycho_bluesky.workflow.executors import make_executor, stop_executor
from ptycho_bluesky.workflow.files import exclusive, write_bytes, write_json
from ptycho_bluesky.workflow.measurement_file import write_measurement_file
from ptycho_bluesky.workflow.publishing import publish
from ptycho_bluesky.workflow.run_queue import RunQueue
from ptycho_bluesky.workflow.run_state import RunFolder, RunState, read_stage, run_folder, run_states
from ptycho_bluesky.workflow.stages import Job, LearningStages, Stages
from ptycho_bluesky.workflow.tiled_store import RunSummary, TiledStore
from ptycho_bluesky.workflow.updating import looks_at, needs_training, note_mismatch
from ptycho_bluesky.workflow.watch import ContainerWatch

__all__ = ["Worker", "read_stage"]

logger = logging.getLogger(__name__)

POLL_S = 0.2
FIRST_PAUSE_S, LAST_PAUSE_S = 1.0, 60.0
STOP_WAIT_S = 8.0


class _Stopping(Exception):  # noqa: N818 it is no error
    """The worker was asked to end."""


class _Withdrawn(Exception):  # noqa: N818 it is no error
    """A run is being written anew; its next stop document will be heard of."""


@dataclass
class _Finished(Exception):  # noqa: N818 it is no error
    """A run has come to its end before its last stage."""

    outcome: str
    reason: str


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

    Notes
    -----
    One worker for a ``worker_dir``; a lock sees to it.
    """

    def __init__(
        self,
        settings: Settings,
        stages: Stages | None = None,
        executor: Callable[[], Executor] | None = None,
    ) -> None:
        self.settings = settings
        self._stages = stages or LearningStages()
        self._make_executor = executor or (lambda: make_executor(settings.worker))
        self._executor: Executor | None = None
        self._store: TiledStore | None = None
        self._stop = threading.Event()
        self._search = threading.Event()
        self._runs = RunQueue(settings)
        self._unpublished: set[str] = set()
        self._current = ""
        self._stop_file = settings.worker_dir / "stop"
        self._reported: dict[str, Any] = {}

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
            self._executor = self._make_executor()
            self._executor.submit(_warm_up)
            uids = [state.uid for state in run_states(self.settings)]
            self._unpublished = {uid for uid in uids if not self._is_published(uid)}
            watch = ContainerWatch(
                self.settings.tiled, self.settings.tiled.raw, self._runs.notice, self._search.set
            ).start()
            self._search.set()
            try:
                if ready is not None:
                    ready()
                self._loop(once)
            except _Stopping:
                logger.info("the worker ends; unfinished runs go on when it is started again")
            finally:
                watch.stop()
                self._write_stop_file()
                stop_executor(self._executor, STOP_WAIT_S)
                self._stop_file.unlink(missing_ok=True)
                self._disconnect()

    def _loop(self, once: bool) -> None:
        pause_s, told, searched_s = FIRST_PAUSE_S, False, -np.inf
        while not self._stop.is_set():
            try:
                overdue = time.monotonic() - searched_s > self.settings.worker.catch_up_period_s
                if self._search.is_set() or overdue:
                    self._search.clear()
                    self._runs.catch_up(self._connected())
                    searched_s = time.monotonic()
                self._runs.take_notices(self._connected())
                self._publish_all()
                if (run := self._runs.next()) is not None:
                    self._process(run)
                elif once and not self._unpublished:
                    return
                pause_s, told = FIRST_PAUSE_S, False
            except (UnreachableError, StorageError) as error:
                if not told:
                    logger.warning("%s Runs and results wait in %s.", error, self.settings.worker_dir)
                told = True
                self._disconnect()
                self._search.set()
                self._report(reachable=False)
                self._stop.wait(pause_s)
                pause_s = min(2 * pause_s, LAST_PAUSE_S)
                continue
            self._report(reachable=True)
            if self._runs.next() is None:
                self._stop.wait(POLL_S)

    def _connected(self) -> TiledStore:
        if self._store is None:
            self._store = TiledStore.connect(self.settings.tiled)
        return self._store

    def _disconnect(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None

    # --- one run ------------------------------------------------------------------------------------------------------

    def _process(self, run: RunSummary) -> None:
        folder, stop = run_folder(self.settings, run.uid), run.stop or {}
        state = folder.load()
        if state is not None and state.stop_uid != stop.get("uid", ""):
            # It was closed for a dead session that was alive after all: its data are others now.
            folder.clear()
            state = None
        if state is None:
            state = RunState(run.uid, str(stop.get("uid", "")), run.purpose, run.start.get("scan_id"), run.time_s)
        self._current = run.uid
        self._unpublished.add(run.uid)
        logger.info("run %s (scan %s, %s) is taken up", run.uid, state.scan_id, state.purpose)
        try:
            outcome, reason = self._learn(folder, state)
        except _Withdrawn:
            logger.info("run %s is being written anew in Tiled; it is left for now", run.uid)
            self._runs.withdraw(run.uid)
            self._current = ""
            return
        except _Finished as end:
            outcome, reason = end.outcome, end.reason
        except (StorageError, UnreachableError):
            raise
        except InputError as error:
            outcome, reason = "failed", f"{state.stage}: {error}"
        state.stage, state.outcome, state.reason = "", outcome, reason
        folder.save(state)
        self._runs.settle(run.uid, state.stop_uid)
        self._current = ""
        log = logger.error if outcome == "failed" else logger.info
        log("run %s: %s (%s)", run.uid, outcome, reason)
        self._publish_all()

    def _learn(self, folder: RunFolder, state: RunState) -> tuple[str, str]:
        """Go through the stages; those that are done are passed over."""
        self._read(folder, state)
        self._decide(folder, state, "look", looks_at, "left alone: ")
        job = self._job(folder)
        self._compute(folder, state, "reconstruct", self._stages.reconstruct, job)
        reserved = self._reserved_labels(state)
        self._compute(folder, state, "label", self._stages.label, job, state.purpose, reserved is not None)
        label = state.done["label"]
        if not label["accepted"]:
            raise _Finished("skipped", f"its labels are not used: {label['reason']}")
        parent = self._fetch_serving(folder, state, "parent")
        self._compute(folder, state, "validate", self._stages.validate, job, parent)
        note_mismatch(state)
        if state.purpose != "train":
            raise _Finished("skipped", f"purpose '{state.purpose}': never trained on")
        self._decide(folder, state, "retrain", needs_training, "")
        runs = self._corpus_runs(state)
        self._compute(folder, state, "train", self._stages.train, job, runs, parent, state.regime)
        serving = self._fetch_serving(folder, state, "serving")
        self._compute(folder, state, "gate", self._stages.gate, job, reserved, serving)
        return self._register(folder, state)

    def _decide(
        self,
        folder: RunFolder,
        state: RunState,
        name: str,
        rule: Callable[[Settings, RunState], tuple[bool, str]],
        prefix: str,
    ) -> None:
        """Ask the policy once, keep its answer, and end the run's work where it says no."""
        if name not in state.done:
            go_on, reason = rule(self.settings, state)
            state.done[name] = {"go_on": go_on, "reason": reason}
            folder.save(state)
        if not state.done[name]["go_on"]:
            raise _Finished("skipped", f"{prefix}{state.done[name]['reason']}")

    def _read(self, folder: RunFolder, state: RunState) -> None:
        if "read" in state.done and folder.measurement.exists():
            return
        begun = self._begin(folder, state, "read")
        measurement = self._measurement(state)
        exit_status = measurement.metadata.get("exit_status")
        if len(measurement) < self.settings.worker.min_frames:
            raise _Finished(
                "skipped",
                f"{len(measurement)} frames are too few (at least {self.settings.worker.min_frames}); "
                f"the run ended with {exit_status}",
            )
        write_measurement_file(folder.measurement, measurement)
        shape = np.shape(measurement.image)[1:]
        state.regime = {
            "image_shape": [int(size) for size in shape],
            "pixel_size_m": float(f"{measurement.pixel_size_m:.4g}") if measurement.pixel_size_m else None,
        }
        self._end(folder, state, "read", begun, {"frames": len(measurement), "exit_status": exit_status})

    def _measurement(self, state: RunState) -> Measurement:
        """Read a run; one that the writer is replacing meanwhile is left alone."""
        store = self._connected()
        try:
            return store.read_run(state.uid, object_pixel_m=self.settings.geometry.object_pixel_m)
        finally:
            # Also when it could not be read: a run that is half written may look like bad input.
            if store.stop_uid(state.uid) != state.stop_uid:
                raise _Withdrawn

    def _job(self, folder: RunFolder) -> Job:
        return Job(
            folder=str(folder.path),
            corpus_dir=str(self.settings.corpus_dir),
            reconstruct=self.settings.reconstruct.model_dump(),
            train=self.settings.train.model_dump(),
            stop_file=str(self._stop_file),
        )

    def _reserved_labels(self, state: RunState) -> str | None:
        """Label set of the newest reserved run of the same regime."""
        newest = None
        for other in run_states(self.settings):
            usable = other.purpose == "reserved" and other.regime == state.regime and other.uid != state.uid
            if usable and other.done.get("label", {}).get("accepted"):
                newest = run_folder(self.settings, other.uid).labels
        return None if newest is None or not newest.exists() else str(newest)

    def _corpus_runs(self, state: RunState) -> list[str]:
        """Runs of the corpus that are of this run's regime, oldest first."""
        return [
            other.uid
            for other in run_states(self.settings)
            if other.purpose == "train" and other.regime == state.regime and other.done.get("label", {}).get("accepted")
        ]

    def _fetch_serving(self, folder: RunFolder, state: RunState, name: str) -> str | None:
        """Keep the serving model's file beside the run and return its path; None where none is served."""
        path = folder.path / f"{name}.onnx"
        known = state.done.get(name)
        if known is not None and (not known["model_id"] or path.exists()):
            return str(path) if known["model_id"] else None
        models = self._connected().model_store
        record = models.serving(state.regime)
        result: dict[str, Any] = {"model_id": "" if record is None else record.model_id}
        if record is not None:
            write_bytes(path, models.get(record.model_id)[1])
            result["score_at_promotion"] = record.validation.get("score")
        state.done[name] = result
        folder.save(state)
        return None if record is None else str(path)

    def _register(self, folder: RunFolder, state: RunState) -> tuple[str, str]:
        """Put the candidate into the registry and promote or reject it."""
        gate = state.done["gate"]
        stage = ModelStage.PROMOTED if gate["promote"] else ModelStage.REJECTED
        if "register" not in state.done:
            begun = self._begin(folder, state, "register")
            models = self._connected().model_store
            record = ModelRecord.from_dict(json.loads(folder.record.read_text()))
            models.put(record, folder.model.read_bytes())
            if models.get(record.model_id)[0].stage is ModelStage.CANDIDATE:
                # Otherwise it was moved before a crash, or by a person.
                models.set_stage(record.model_id, stage, gate["reason"])
            self._end(folder, state, "register", begun, {"model_id": record.model_id})
        return str(stage), gate["reason"]

    # --- stages -------------------------------------------------------------------------------------------------------

    def _begin(self, folder: RunFolder, state: RunState, stage: str) -> float:
        state.stage = stage
        folder.save(state)
        return time.monotonic()

    def _end(self, folder: RunFolder, state: RunState, stage: str, begun: float, result: dict[str, Any]) -> None:
        state.stage_seconds[stage] = state.stage_seconds.get(stage, 0.0) + time.monotonic() - begun
        state.done[stage] = result
        folder.save(state)

    def _compute(
        self, folder: RunFolder, state: RunState, stage: str, function: Callable[..., dict[str, Any]], *arguments: Any
    ) -> None:
        """Have a stage computed unless it is done; repeat it when it fails for no fault of the data."""
        if stage in state.done:
            return
        pause_s = FIRST_PAUSE_S
        for attempt in range(self.settings.worker.retries + 1):
            begun = self._begin(folder, state, stage)
            try:
                result = self._result(self._submit(function, *arguments))
            except (InputError, _Stopping):
                raise
            except Exception as error:
                if self._stop.is_set():
                    raise _Stopping from error
                logger.warning("run %s: stage %s failed", state.uid, stage, exc_info=error)
                state.stage_seconds[stage] = state.stage_seconds.get(stage, 0.0) + time.monotonic() - begun
                if attempt == self.settings.worker.retries:
                    detail = f"{type(error).__name__}: {error}".rstrip(": ")
                    raise _Finished("failed", f"{stage} failed {attempt + 1} times, last with {detail}") from error
                if self._stop.wait(pause_s):
                    raise _Stopping from error
                pause_s = min(4 * pause_s, LAST_PAUSE_S)
                continue
            self._end(folder, state, stage, begun, result)
            return

    def _submit(self, function: Callable[..., dict[str, Any]], *arguments: Any) -> Future[dict[str, Any]]:
        assert self._executor is not None
        try:
            return self._executor.submit(function, *arguments)
        except BrokenProcessPool:
            # A process was killed, for want of memory perhaps.
            stop_executor(self._executor, 0.0)
            self._executor = self._make_executor()
            return self._executor.submit(function, *arguments)

    def _result(self, future: Future[dict[str, Any]]) -> dict[str, Any]:
        """Wait for a result; meanwhile bring finished products to Tiled."""
        while True:
            try:
                return future.result(timeout=POLL_S)
            except TimeoutError:
                if future.done():
                    raise
            if self._stop.is_set():
                self._write_stop_file()
                raise _Stopping
            try:
                self._publish_all()
            except UnreachableError as error:
                logger.debug("results wait: %s", error)
                self._disconnect()
                self._search.set()
            self._report(reachable=self._store is not None)

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
            publish(self._connected, folder, state)
            if self._is_published(uid):
                self._unpublished.discard(uid)

    def _is_published(self, uid: str) -> bool:
        return "decision" in run_folder(self.settings, uid).published()

    # --- status -------------------------------------------------------------------------------------------------------

    def _report(self, *, reachable: bool) -> None:
        content = {
            "process": os.getpid(),
            "tiled_reachable": reachable,
            "current": self._current,
            "waiting": [uid for uid in self._runs.waiting() if uid != self._current],
            "unpublished": sorted(self._unpublished),
        }
        if content != self._reported:
            write_json(self.settings.worker_dir / "status.json", content | {"time_s": time.time()})
            self._reported = content


def _warm_up() -> None:
    """Import what the stages need, so that the first run does not wait for it."""
    import ptycho_bluesky.reconstruction
    import ptycho_bluesky.training.trainer  # noqa: F401
