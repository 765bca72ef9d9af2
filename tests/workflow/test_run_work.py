"""Runs through their stages without Tiled: what is given up, tried again, learned from and compared."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from quick_stages import QuickStages, curved_probe
from workflow_scans import GEOMETRY, make_scan

from ptycho_bluesky.config import Settings
from ptycho_bluesky.errors import StorageError, UnreachableError
from ptycho_bluesky.records import LabelSet, Measurement
from ptycho_bluesky.training.corpus import write_label_set
from ptycho_bluesky.training.registry import LocalModelStore, content_id, promote, rollback
from ptycho_bluesky.workflow import run_work
from ptycho_bluesky.workflow.compute import Compute
from ptycho_bluesky.workflow.executors import InlineExecutor
from ptycho_bluesky.workflow.files import write_bytes, write_json
from ptycho_bluesky.workflow.lane import Lane
from ptycho_bluesky.workflow.pauses import Pauses
from ptycho_bluesky.workflow.publishing import clean, decision_of
from ptycho_bluesky.workflow.requests import ask_cancel, ask_retry
from ptycho_bluesky.workflow.run_book import RunBook
from ptycho_bluesky.workflow.run_state import RunState, run_folder
from ptycho_bluesky.workflow.run_work import RunWork, Stopping
from ptycho_bluesky.workflow.shared import Shared
from ptycho_bluesky.workflow.stages import Job, LearningStages
from ptycho_bluesky.workflow.tiled_store import RunSummary
from ptycho_bluesky.workflow.worker import Worker


class Learner:
    """Works on simulated runs, one after the other, with a folder of models."""

    def __init__(self, settings: Settings, stages: QuickStages) -> None:
        self.settings, self.stages = settings, stages
        self.model_store = LocalModelStore(settings.models_dir)
        self.book, self.stop = RunBook(settings), threading.Event()
        self.reads, self.fail_read = 0, None
        self.shared = Shared(settings, stages, Compute(InlineExecutor), self, self.book, Lane(), self.stop, set())
        self.times: dict[str, float] = {}

    def store(self) -> Learner:
        return self

    def read_run(self, uid: str, *, object_pixel_m: float | None = None) -> Measurement:
        self.reads += 1
        if self.fail_read is not None:
            raise self.fail_read
        scan = make_scan(seed=1)
        n = len(scan.image)
        index = np.arange(n)
        none = np.full(n, np.nan)
        return Measurement(
            scan.image, scan.position_m, index, index, none, none, GEOMETRY, GEOMETRY.object_pixel_m, run_uid=uid
        )

    def stop_uid(self, uid: str) -> str:
        return f"stop-{uid}"

    def take(self, uid: str, purpose: str = "train") -> RunState:
        time_s = self.times.setdefault(uid, float(1000 + len(self.times)))
        start = {"uid": uid, "time": time_s, "ptycho": {"purpose": purpose}}
        state = RunWork(self.shared, RunSummary(uid, time_s, start, {"uid": f"stop-{uid}"})).run()
        clean(run_folder(self.settings, uid), state)
        return state

    def retry(self, uid: str) -> RunState:
        ask_retry(self.settings, uid)
        self.book.reread(uid)
        return self.take(uid)


@pytest.fixture
def stages(tmp_path):
    return QuickStages(tmp_path / "calls.txt")


@pytest.fixture
def learner(tmp_path, stages, monkeypatch):
    monkeypatch.setattr(run_work, "FIRST_PAUSE_S", 0.01)
    settings = Settings(data_dir=tmp_path)
    settings.worker.min_frames = 10
    return Learner(settings, stages)


def cancel_in(learner: Learner, stage: str, uid: str) -> None:
    """Have a run cancelled while a stage computes; whatever that does, it comes to its end."""
    true_stage = getattr(learner.stages, stage)

    def cancelled(*arguments):
        setattr(learner.stages, stage, true_stage)
        result = true_stage(*arguments)
        ask_cancel(learner.settings, uid)
        return result

    setattr(learner.stages, stage, cancelled)


class TestCancelled:
    @pytest.mark.parametrize("stage", ["reconstruct", "label", "validate", "train", "gate"])
    def test_between_stages_and_then_taken_up_again(self, learner, stages, stage):
        """The worker's loop has not heard of it, as while Tiled is away."""
        cancel_in(learner, stage, "a")
        assert learner.take("a").outcome == "cancelled"
        assert stages.calls("a")[-1] == stage
        assert learner.model_store.records() == []
        state = learner.retry("a")
        assert (state.outcome, state.reason) == ("promoted", "scores 1.0")
        assert state.regime["probe"] == "a"
        assert all(stages.calls("a").count(name) == 1 for name in ("reconstruct", "label", "validate", "train", "gate"))

    def test_while_a_stage_that_failed_waits(self, learner, stages, monkeypatch):
        monkeypatch.setattr(run_work, "FIRST_PAUSE_S", 60.0)
        stages.fail = {"reconstruct": 1}
        threading.Timer(0.5, ask_cancel, (learner.settings, "a" * 36)).start()
        began = time.monotonic()
        assert learner.take("a" * 36).outcome == "cancelled"
        assert time.monotonic() - began < 30

    def test_with_its_products_gone(self, learner, stages):
        """As after an older version, which removed them."""
        cancel_in(learner, "validate", "a")
        learner.take("a")
        folder = run_folder(learner.settings, "a")
        folder.labels.unlink()
        folder.measurement.unlink()
        assert learner.retry("a").outcome == "promoted"
        assert [stages.calls("a").count(name) for name in ("reconstruct", "label", "validate")] == [1, 2, 2]
        learner.take("b")
        assert learner.book.get("b").regime["probe"] == "a"

    def test_too_late_once_the_model_may_serve(self, learner):
        """A promotion that may have been done is brought to its end, whatever is asked meanwhile."""
        true_put = learner.model_store.put

        def put(*arguments):
            true_put(*arguments)
            learner.model_store.put = true_put
            raise UnreachableError("Tiled", "it went away after the promotion", "wait")

        learner.model_store.put = put
        with pytest.raises(UnreachableError):
            learner.take("a")
        ask_cancel(learner.settings, "a")
        assert learner.take("a").outcome == "promoted"

    @pytest.mark.parametrize("stage", ["label", "train"])
    def test_is_not_learned_from(self, learner, stage):
        cancel_in(learner, stage, "a")
        assert learner.take("a").outcome == "cancelled"
        learner.take("b")
        third = learner.take("c")
        assert [record.training_runs for record in learner.model_store.records()] == [("b",), ("b", "c")]
        assert (third.figures["older"], third.figures["foreign"]) == (["b"], [])

    def test_reserved_run_validates_nothing(self, learner):
        cancel_in(learner, "label", "r")
        learner.take("r", purpose="reserved")
        assert learner.take("a").figures["validated_on"] is None


class TestErrorsOfOthers:
    @pytest.mark.parametrize("error", [StorageError, UnreachableError])
    def test_are_no_dead_letter(self, learner, error):
        learner.fail_read = error("the disk", "it is full", "free space")
        for _ in range(20):
            with pytest.raises(error):
                learner.take("a")
        state = run_folder(learner.settings, "a").load()
        assert state.begun == {"read": 0}
        assert state.reason == "read: the disk. it is full. Remedy: free space."
        learner.fail_read = None
        assert learner.take("a").outcome == "promoted"

    def test_nor_are_orderly_stops(self, learner, stages):
        def stopped(job):
            learner.stop.set()
            raise RuntimeError("interrupted")

        true_reconstruct, stages.reconstruct = stages.reconstruct, stopped
        for _ in range(20):
            learner.stop.clear()
            with pytest.raises(Stopping):
                learner.take("a")
        learner.stop.clear()
        stages.reconstruct = true_reconstruct
        assert learner.take("a").outcome == "promoted"

    def test_the_last_error_is_in_the_reason(self, learner):
        folder = run_folder(learner.settings, "a")
        state = RunState("a", "stop-a", reason="read: no memory", begun={"read": 14})
        folder.save(state)
        assert learner.take("a").reason == "read was begun 14 times and never ended; last read: no memory"

    def test_a_full_index_says_so(self, learner):
        learner.settings.worker_dir.mkdir(parents=True)
        (learner.settings.worker_dir / "index.jsonl").mkdir()
        with pytest.raises(StorageError, match=r"index\.jsonl"):
            learner.book.forget("a")


class TestGate:
    def test_a_regime_that_comes_back_is_tested_against_its_own_model_too(self, learner, stages):
        learner.settings.worker.update = "on_mismatch"
        stages.probes = {"b": 0.05}
        # The own model is better than the one that serves, but has drifted too: no switch, a candidate is trained.
        stages.serving_scores, stages.rival_scores = [0.2, 0.3], [0.6]
        jobs, true_gate = [], stages.gate

        def gate(job, *arguments):
            files = [None if path is None else Path(path).read_bytes() for path in (arguments[1], job.replaced)]
            jobs.append([None if content is None else content.decode() for content in files])
            return true_gate(job, *arguments)

        stages.gate = gate
        assert [learner.take(uid).outcome for uid in "abc"] == ["promoted"] * 3
        own, other = "model of ['a']", "model of ['b']"
        assert jobs == [[None, None], [own, None], [other, own]]
        assert not list(run_folder(learner.settings, "c").path.glob("*.onnx"))

    def test_stage_compares_and_records_all_three(self, tmp_path, monkeypatch):
        """The own model of the regime reads the old run well; the serving one, of another regime, reads neither."""
        job = self.job(tmp_path)
        scores = {
            ("candidate", "new"): 0.7,
            ("serving", "new"): 0.2,
            ("own", "new"): 0.6,
            ("candidate", "old"): 0.4,
            ("serving", "old"): 0.1,
            ("own", "old"): 0.6,
        }

        def evaluate(model, labels, **_):
            score = scores[model.decode(), labels.run_uid]
            return {"score": score, "pearson": 0.0, "l1_rad": 0.0, "constant": 0.05}

        monkeypatch.setattr("ptycho_bluesky.training.evaluate.evaluate", evaluate)
        old = {"old": str(tmp_path / "old.h5")}
        found = LearningStages().gate(job, None, str(tmp_path / "serving.onnx"), old, {})
        assert not found["promote"]
        assert "0.2000 worse on older data" in found["reason"]
        figures = found["figures"]
        assert (figures["serving_score"], figures["replaced_score"]) == (0.2, 0.6)
        assert figures["old_scores"] == {"old": [0.4, 0.1, 0.6]}
        # The true difference is kept; to the policy a rejected candidate has gained nothing.
        assert figures["gain"] == pytest.approx((0.1 - 0.2) / 2)
        assert found["gain"] == pytest.approx(-0.05)
        scores["candidate", "new"] = 0.95
        found = LearningStages().gate(job, None, str(tmp_path / "serving.onnx"), old, {})
        assert (found["promote"], found["gain"]) == (False, 0.0)
        assert found["figures"]["gain"] == pytest.approx((0.35 - 0.2) / 2)
        # Without it, the comparison with the serving model alone would have promoted it.
        found = LearningStages().gate(replace(job, replaced=None), None, str(tmp_path / "serving.onnx"), old, {})
        assert found["promote"]

    @staticmethod
    def job(folder: Path) -> Job:
        job = Job(str(folder / "run"), str(folder / "corpus"), {}, {}, "", replaced=str(folder / "own.onnx"))
        for name, path in (
            ("candidate", job.files.model),
            ("serving", folder / "serving.onnx"),
            ("own", folder / "own.onnx"),
        ):
            write_bytes(path, name.encode())
        write_json(job.files.record, {})
        n = 4
        labels = LabelSet(
            image=np.ones((n, 32, 32), dtype=np.uint16),
            phase_rad=np.zeros((n, 32, 32), dtype=np.float32),
            amplitude=np.ones((n, 32, 32), dtype=np.float32),
            position_m=np.zeros((n, 2)),
            frame_index=np.arange(n),
            probe=curved_probe(0.0),
            weight=np.ones((32, 32), dtype=np.float32),
            pixel_size_m=GEOMETRY.object_pixel_m,
            geometry=GEOMETRY,
            run_uid="new",
        )
        write_label_set(job.files.held_out, labels)
        write_label_set(folder / "old.h5", replace(labels, run_uid="old"))
        return job


class TestPolicy:
    def test_after_a_rollback_the_next_run_is_looked_at(self, learner, stages):
        learner.settings.worker.update = "on_mismatch"
        stages.serving_scores = [0.6, 0.79]
        assert [learner.take(uid).outcome for uid in "abcd"] == ["promoted", "promoted", "skipped", "skipped"]
        assert "left alone" in learner.take("e").reason
        rollback(learner.model_store, reason="stripes")
        stages.serving_scores = [0.79]
        state = learner.take("f")
        assert "fits" in state.reason
        assert stages.calls("f") == ["reconstruct", "label", "validate"]
        # What was found about the model that serves again counts, and it is suspended once more.
        assert "the model fitted 1 s before" in learner.take("g").reason

    def test_decisions_hold_the_numbers_of_the_policy(self, learner, stages):
        learner.settings.worker.update = "on_mismatch"
        stages.serving_scores = [0.6, 0.79]
        first, drifted, fits, alone = (decision_of(learner.take(uid))["decisions"] for uid in "abcd")
        numbers = {"mismatch_tolerance": 0.1, "probe_interval_s": 3600.0, "settle_gain": 0.02, "patience": 3}
        for decision in (first["look"], first["retrain"], alone["look"]):
            assert numbers.items() <= decision.items()
        assert (first["look"]["state"], first["look"]["model_id"]) == ("following", "")
        assert (first["retrain"]["mismatch"], first["retrain"]["reason"]) == (None, "no model was served")
        assert drifted["retrain"]["mismatch"] == pytest.approx(0.25)
        assert drifted["retrain"]["go_on"] is True
        assert fits["retrain"]["state"] == "following"
        assert fits["retrain"]["mismatch"] == pytest.approx(1 - 0.79 / 0.8)
        assert fits["retrain"]["go_on"] is False
        assert alone["look"]["state"] == "suspended"
        assert alone["look"]["last_mismatch"] == pytest.approx(1 - 0.79 / 0.8)
        assert alone["look"]["model_id"] == learner.model_store.serving().model_id

    def test_the_model_of_a_finding_is_kept(self, learner, stages):
        learner.settings.worker.update = "on_mismatch"
        stages.serving_scores = [0.6]
        for uid in "ab":
            learner.take(uid)
        again = RunBook(learner.settings)
        again.load()
        models = [record.model_id for record in learner.model_store.records()]
        assert [again.get(uid).model_id for uid in "ab"] == ["", models[0]]
        assert [again.get(uid).promoted_id for uid in "ab"] == models

    def test_a_mismatch_stays_about_the_model_that_was_validated(self, learner, stages):
        learner.take("a")
        cancel_in(learner, "train", "b")
        before = learner.take("b").figures["mismatch"]
        run_folder(learner.settings, "b").parent.unlink()
        record = learner.model_store.serving()
        other = replace(record, model_id=content_id(b"other"), validation={"score": 0.5})
        learner.model_store.put(other, b"other")
        promote(learner.model_store, other.model_id)
        assert learner.retry("b").figures["mismatch"] == before
        assert learner.book.get("b").model_id == record.model_id


def test_the_last_decision_is_shown_after_a_restart(tmp_path):
    settings = Settings(data_dir=tmp_path)
    settings.worker.executor = "inline"
    state = RunState("a", "stop-a", outcome="promoted", reason="better")
    run_folder(settings, "a").save(state)
    write_json(settings.worker_dir / "status.json", {"decided": "a"})
    told, stop = [], threading.Event()
    stop.set()
    worker = Worker(settings, listener=lambda status, state: told.append((status, state)))
    worker.run(stop)
    assert [each.reason for _, each in told if each is not None] == ["better"]
    assert told[0][0]["decided"] == "a"


def test_pauses_grow_for_each_run_by_itself(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("ptycho_bluesky.workflow.pauses.time.monotonic", lambda: now[0])
    pauses = Pauses(1.0, 5.0)
    assert [pauses.add("a") for _ in range(4)] == [1.0, 2.0, 4.0, 5.0]
    assert pauses.add("b") == 1.0
    assert pauses.waiting() == {"a", "b"}
    now[0] = 2.0
    assert pauses.waiting() == {"a"}
    pauses.hurry()
    assert pauses.waiting() == set()
    assert pauses.add("a") == 5.0
    pauses.forget("a")
    assert pauses.add("a") == 1.0
