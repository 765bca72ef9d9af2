"""One run through the stages of the worker, from its data to a decision."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ptycho_bluesky.errors import InputError, StorageError, UnreachableError
from ptycho_bluesky.records import Measurement, ModelRecord, ModelStage
from ptycho_bluesky.training.registry import promote, register
from ptycho_bluesky.training.update_policy import mismatch
from ptycho_bluesky.workflow.files import write_bytes
from ptycho_bluesky.workflow.learned_runs import corpus_runs, older_sets, reserved_labels
from ptycho_bluesky.workflow.measurement_file import write_measurement_file
from ptycho_bluesky.workflow.regimes import Regimes
from ptycho_bluesky.workflow.requests import is_cancelled
from ptycho_bluesky.workflow.run_state import RunState, run_folder
from ptycho_bluesky.workflow.shared import Shared
from ptycho_bluesky.workflow.stages import Job
from ptycho_bluesky.workflow.tiled_store import RunSummary
from ptycho_bluesky.workflow.updating import glances_at, looks_at, needs_training, note_mismatch, policy_of

__all__ = ["RunWork", "Stopping", "Withdrawn"]

logger = logging.getLogger(__name__)

FIRST_PAUSE_S, LAST_PAUSE_S = 1.0, 60.0
CHECK_S = 0.2


class Stopping(Exception):  # noqa: N818 it is no error
    """The worker was asked to end."""


class Withdrawn(Exception):  # noqa: N818 it is no error
    """A run is being written anew; its next stop document will be heard of."""


@dataclass
class _Finished(Exception):  # noqa: N818 it is no error
    """A run has come to its end before its last stage."""

    outcome: str
    reason: str


class RunWork:
    """Works on one run.

    Parameters
    ----------
    shared : Shared
    run : RunSummary

    Notes
    -----
    Up to its labels a run is worked on beside others; then it waits for the older ones, so that each is compared with
    the model that the runs before it led to, and learned from in the order of the experiment.
    """

    def __init__(self, shared: Shared, run: RunSummary) -> None:
        self.shared, self.settings = shared, shared.settings
        self.uid = run.uid
        self.folder = run_folder(shared.settings, run.uid)
        stop_uid = str((run.stop or {}).get("uid", ""))
        state = self.folder.load()
        if state is not None and state.stop_uid != stop_uid:
            # It was closed for a dead session that was alive after all: its data are others now.
            self.folder.clear()
            shared.book.forget(run.uid)
            state = None
        if state is None:
            scan_id, taken_s = run.start.get("scan_id"), time.time()
            state = RunState(run.uid, stop_uid, run.purpose, scan_id, run.time_s, taken_s=taken_s)
            # Older runs are asked whether they are under way, before this one has begun.
            shared.book.save(self.folder, state)
        self.state = state
        shared.lane.register(run.uid, run.time_s)

    def run(self) -> RunState:
        """Go through the stages; those that are done are passed over.

        Returns
        -------
        RunState
            With its outcome.

        Raises
        ------
        Withdrawn
            The run is being written anew.
        Stopping
            The worker ends.
        UnreachableError, StorageError
            Tiled is away or the disk is full: nothing is lost, run it again.
        """
        state = self.state
        logger.info("run %s (scan %s, %s) is taken up", state.uid, state.scan_id, state.purpose)
        try:
            try:
                outcome, reason = self._learn()
            except _Finished as end:
                outcome, reason = end.outcome, end.reason
            except (StorageError, UnreachableError) as error:
                self._take_back(f"{state.stage}: {error}")
                raise
            except (Stopping, Withdrawn):
                self._take_back()
                raise
            except InputError as error:
                outcome, reason = "failed", f"{state.stage}: {error}"
            state.stage, state.outcome, state.reason = "", outcome, reason
            self._save()
        finally:
            self.shared.lane.leave(state.uid)
        log = logger.error if outcome == "failed" else logger.info
        log("run %s: %s (%s)", state.uid, outcome, reason)
        return state

    # --- the stages in their order ------------------------------------------------------------------------------------

    def _learn(self) -> tuple[str, str]:
        self._give_up()
        self._read()
        self._decide("look", self._look, "left alone: ")
        job, stages, state = self._job(), self.shared.stages, self.state
        self._glance(job)
        self._compute("reconstruct", stages.reconstruct, job)
        reserved = self._reserved_labels()
        self._compute("label", stages.label, job, state.purpose, reserved is not None)
        self.shared.lane.prepared(state.uid)
        label = state.done["label"]
        if not label["accepted"]:
            raise _Finished("skipped", f"its labels are not used: {label['reason']}")
        with self.shared.lane.turn(state.uid, self._give_up):
            return self._learn_in_turn(job, reserved)

    def _glance(self, job: Job) -> None:
        """End the run's work where the model is expected to fit, and fits its middle.

        A run before it may still promote another model: then this one is compared with the older model, and where that
        does not fit the whole run is looked at in its turn.
        """
        state = self.state
        if "reconstruct" in state.done or not glances_at(self.settings, state):
            return
        serving = self._fetch("glanced", self._serving())
        if serving is None:
            return
        self._compute("glance", self.shared.stages.glance, job, serving)
        note_mismatch(state, "glance", "glanced", "glance_score")
        self._save()
        found = state.done["glance"]["figures"].get("mismatch")
        tolerance = self.settings.worker.mismatch_tolerance
        if found is not None and found < tolerance:
            frames = state.done["glance"]["figures"].get("glance_frames")
            raise _Finished(
                "skipped",
                f"the model fits {frames} frames in the middle: mismatch {found:.3f} is below the tolerance of "
                f"{tolerance:g}",
            )

    def _learn_in_turn(self, job: Job, reserved: str | None) -> tuple[str, str]:
        """What depends on the models and the findings of the runs before."""
        state, stages = self.state, self.shared.stages
        serving = self._fetch("parent", self._serving())
        self._compute("validate", stages.validate, job, serving)
        note_mismatch(state)
        self._assign_regime()
        if state.purpose != "train":
            raise _Finished("skipped", f"purpose '{state.purpose}': never trained on")
        self._decide("retrain", lambda: needs_training(self.settings, self.shared.book, state), "")
        self._switch(job)
        parent = self._training_parent(serving)
        self._compute("train", stages.train, job, corpus_runs(self.shared.book, state), parent, state.regime)
        rival = self._fetch("serving", self._serving())
        older, foreign = older_sets(self.settings, self.shared.book, state, reserved)
        job = replace(job, replaced=self._replaced())
        self._compute("gate", stages.gate, job, reserved, rival, older, foreign)
        return self._register()

    def _give_up(self) -> None:
        """Raise when the worker ends or the run was given up."""
        if self.shared.stop.is_set():
            raise Stopping
        if "register" in self.state.begun or "register" in self.state.done:
            # Too late: its model may serve already.
            return
        # Also the request itself: while Tiled is away the loop of the worker may not have come to it.
        if self.uid in self.shared.cancelled or is_cancelled(self.settings, self.uid):
            raise _Finished("cancelled", "cancelled by hand")

    def _look(self) -> dict[str, Any]:
        serving = None if policy_of(self.settings) is None else self._serving()()
        return looks_at(self.settings, self.shared.book, self.state, "" if serving is None else serving.model_id)

    def _decide(self, name: str, rule: Callable[[], dict[str, Any]], prefix: str) -> None:
        """Ask the policy once, keep its answer, and end the run's work where it says no."""
        if name not in self.state.done:
            self.state.done[name] = rule()
            self._save()
        if not self.state.done[name]["go_on"]:
            raise _Finished("skipped", f"{prefix}{self.state.done[name]['reason']}")

    def _read(self) -> None:
        state = self.state
        if "read" in state.done and self.folder.measurement.exists():
            return
        self._give_up()
        begun = self._begin("read")
        measurement = self._measurement()
        exit_status = measurement.metadata.get("exit_status")
        if len(measurement) < self.settings.worker.min_frames:
            raise _Finished(
                "skipped",
                f"{len(measurement)} frames are too few (at least {self.settings.worker.min_frames}); "
                f"the run ended with {exit_status}",
            )
        write_measurement_file(self.folder.measurement, measurement)
        shape = np.shape(measurement.image)[1:]
        state.regime = {
            "image_shape": [int(size) for size in shape],
            "pixel_size_m": float(f"{measurement.pixel_size_m:.4g}") if measurement.pixel_size_m else None,
        }
        self._end("read", begun, {"frames": len(measurement), "exit_status": exit_status})

    def _measurement(self) -> Measurement:
        """Read a run; one that the writer is replacing meanwhile is left alone."""
        store = self.shared.connections.store()
        try:
            return store.read_run(self.uid, object_pixel_m=self.settings.geometry.object_pixel_m)
        finally:
            # Also when it could not be read: a run that is half written may look like bad input.
            if store.stop_uid(self.uid) != self.state.stop_uid:
                raise Withdrawn

    def _job(self) -> Job:
        worker = self.settings.worker
        return Job(
            folder=str(self.folder.path),
            corpus_dir=str(self.settings.corpus_dir),
            reconstruct=self.settings.reconstruct.model_dump(),
            train=self.settings.train.model_dump(),
            one_budget=worker.update == "on_mismatch",
            look_fraction=worker.look_fraction,
            stop_file=str(self.settings.worker_dir / "stop"),
            gate={
                "tolerance": worker.gate_tolerance,
                "forget_tolerance": worker.forget_tolerance,
                "over_constant": worker.over_constant,
            },
        )

    def _reserved_labels(self) -> str | None:
        """Label set of the newest reserved run of the same geometry that began before this one, once it is there.

        A model that is retrained on a mismatch is tested on what did not fit: an area kept out of the run itself.
        """
        if self.settings.worker.update == "on_mismatch":
            return None
        if self.state.purpose == "train":
            self.shared.lane.wait_prepared(self.uid, self._is_reserved, self._give_up)
        return reserved_labels(self.settings, self.shared.book, self.state)

    def _is_reserved(self, uid: str) -> bool:
        note = self.shared.book.get(uid)
        return note is not None and note.purpose == "reserved"

    def _assign_regime(self) -> None:
        """Tell the regime by the probe of the labels."""
        state = self.state
        if "regime" not in state.done:
            match = Regimes(self.settings).assign(self.folder, state)
            state.done["regime"] = {} if match is None else match
            if match is not None:
                state.regime["probe"] = match["key"]
            self._save()

    # --- models -------------------------------------------------------------------------------------------------------

    def _serving(self) -> Callable[[], ModelRecord | None]:
        """The model that the edge uses for frames of this geometry."""
        geometry = {key: value for key, value in self.state.regime.items() if key != "probe"}
        return lambda: self.shared.connections.store().model_store.serving(geometry)

    def _fetch(self, name: str, which: Callable[[], ModelRecord | None]) -> str | None:
        """Keep a model's file beside the run and return its path; None where there is none."""
        path, state = self.folder.path / f"{name}.onnx", self.state
        known = state.done.get(name)
        if known is not None and (not known["model_id"] or path.exists()):
            return str(path) if known["model_id"] else None
        record = which()
        result: dict[str, Any] = {"model_id": "" if record is None else record.model_id}
        if record is not None:
            write_bytes(path, self._content(record.model_id))
            result["score_at_promotion"] = _reference(record)
        state.done[name] = result
        self._save()
        return None if record is None else str(path)

    def _content(self, model_id: str) -> bytes:
        """File of a model; the ones that the run was compared with lie beside it already."""
        for name in ("parent", "glanced", "serving", "regime_parent"):
            path = self.folder.path / f"{name}.onnx"
            if self.state.done.get(name, {}).get("model_id") == model_id and path.exists():
                return path.read_bytes()
        return self.shared.connections.store().model_store.content(model_id)

    def _rivals(self) -> list[ModelRecord]:
        """Promoted models of this geometry other than the one that was validated, newest first."""
        found = [
            record
            for record in self.shared.connections.store().model_store.promoted()
            if record.model_id != self.state.done["parent"]["model_id"]
            and record.regime.get("image_shape") == self.state.regime.get("image_shape")
            and record.regime.get("pixel_size_m") == self.state.regime.get("pixel_size_m")
        ]
        return sorted(found, key=lambda record: record.promoted_s, reverse=True)

    def _switch(self, job: Job) -> None:
        """Where the serving model does not fit but one that is promoted for another regime does, let that one serve."""
        state = self.state
        found = state.done["validate"].get("figures", {})
        does_not_fit = found.get("mismatch") is not None and (
            found["mismatch"] >= self.settings.worker.mismatch_tolerance
        )
        if not does_not_fit or "train" in state.done:
            return
        models = self.shared.connections.store().model_store
        best: tuple[float, ModelRecord] | None = None
        for record in self._rivals():
            path = self.folder.path / "rival.onnx"
            write_bytes(path, models.content(record.model_id))
            name = f"rival {record.model_id[:8]}"
            self._compute(name, self.shared.stages.score, job, str(path))
            path.unlink(missing_ok=True)
            score, promoted = state.done[name]["score"], _reference(record)
            fits = promoted and mismatch(score, promoted) < self.settings.worker.mismatch_tolerance
            if fits and score > found["score_serving"] and (best is None or score > best[0]):
                best = (score, record)
        if best is None:
            return
        self._give_up()
        score, record = best
        reason = f"reads run {self.uid} with {score:.4f}, the serving model with {found['score_serving']:.4f}"
        promote(models, record.model_id, reason)
        state.done["switch"] = {"model_id": record.model_id, "figures": {"switched_score": score}}
        raise _Finished("switched", f"model {record.model_id[:12]} of another regime {reason}")

    def _training_parent(self, serving: str | None) -> str | None:
        """Model to go on from: the one of this regime where there is one, else the one that serves."""
        record = self._own("parent")
        return serving if record is None else self._fetch("regime_parent", lambda: record)

    def _replaced(self) -> str | None:
        """Model that a promotion would retire, where it is not the one that serves."""
        return self._fetch("replaced", lambda: self._own("serving"))

    def _own(self, other_than: str) -> ModelRecord | None:
        """Promoted model of this very regime, where there is one and it is not the other one named."""
        if "probe" not in self.state.regime:
            return None
        record = self.shared.connections.store().model_store.serving(self.state.regime)
        if record is None or record.model_id == self.state.done[other_than]["model_id"]:
            return None
        return record if record.regime.get("probe") == self.state.regime["probe"] else None

    def _register(self) -> tuple[str, str]:
        """Put the candidate into the registry and promote or reject it."""
        gate = self.state.done["gate"]
        stage = ModelStage.PROMOTED if gate["promote"] else ModelStage.REJECTED
        if "register" not in self.state.done:
            self._give_up()
            begun = self._begin("register")
            models = self.shared.connections.store().model_store
            record = ModelRecord.from_dict(json.loads(self.folder.record.read_text()))
            register(models, record, self.folder.model.read_bytes(), stage, gate["reason"])
            self._end("register", begun, {"model_id": record.model_id})
        return str(stage), gate["reason"]

    # --- bookkeeping --------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        self.shared.book.save(self.folder, self.state)

    def _begin(self, stage: str) -> float:
        state, worker = self.state, self.settings.worker
        state.stage = stage
        state.begun[stage] = state.begun.get(stage, 0) + 1
        if state.begun[stage] > worker.retries + 1 + worker.max_crashes:
            last = f"; last {state.reason}" if state.reason else ""
            raise _Finished("failed", f"{stage} was begun {state.begun[stage] - 1} times and never ended{last}")
        self._save()
        return time.monotonic()

    def _end(self, stage: str, begun: float, result: dict[str, Any]) -> None:
        state = self.state
        state.stage_seconds[stage] = state.stage_seconds.get(stage, 0.0) + time.monotonic() - begun
        state.begun.pop(stage, None)
        state.done[stage] = result
        state.reason = ""
        self._save()

    def _take_back(self, error: str = "") -> None:
        """The stage under way did not end for no fault of its own: that does not count as a crash."""
        state = self.state
        if state.begun.get(state.stage):
            state.begun[state.stage] -= 1
        state.reason = error or state.reason
        # On a full disk the count on the disk stays one too high, at worst.
        with contextlib.suppress(StorageError):
            self._save()

    def _rest(self, pause_s: float) -> None:
        """Wait, unless the worker ends or the run is given up."""
        deadline = time.monotonic() + pause_s
        while (left_s := deadline - time.monotonic()) > 0:
            self.shared.stop.wait(min(left_s, CHECK_S))
            self._give_up()

    def _compute(self, stage: str, function: Callable[..., dict[str, Any]], *arguments: Any) -> None:
        """Have a stage computed unless it is done; repeat it when it fails for no fault of the data."""
        if stage in self.state.done:
            return
        compute, state, pause_s = self.shared.compute, self.state, FIRST_PAUSE_S
        for attempt in range(self.settings.worker.retries + 1):
            self._give_up()
            begun = self._begin(stage)
            try:
                result = compute.result(compute.submit(function, *arguments), self._give_up)
            except (InputError, Stopping, _Finished):
                raise
            except Exception as error:
                self._give_up()
                logger.warning("run %s: stage %s failed", state.uid, stage, exc_info=error)
                state.stage_seconds[stage] = state.stage_seconds.get(stage, 0.0) + time.monotonic() - begun
                detail = f"{type(error).__name__}: {error}".rstrip(": ")
                if attempt == self.settings.worker.retries:
                    raise _Finished("failed", f"{stage} failed {attempt + 1} times, last with {detail}") from error
                state.reason = f"{stage}: {detail}"
                self._rest(pause_s)
                pause_s = min(4 * pause_s, LAST_PAUSE_S)
                continue
            self._end(stage, begun, result)
            return


def _reference(record: ModelRecord) -> float | None:
    """Score at a model's promotion that a later run is measured against."""
    return record.validation.get("reference", record.validation.get("score"))
