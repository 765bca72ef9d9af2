"""Parts of `bench workflow` that can be told without a server."""

from __future__ import annotations

import multiprocessing
import os
import random
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import event_model
import numpy as np
import pytest

from ptycho_bluesky.bench import workflow_catalogue, workflow_kills
from ptycho_bluesky.bench.workflow import WorkflowBench, _kill_rows, settings_in
from ptycho_bluesky.bench.workflow_kills import TARGETS, KillReport, _wait
from ptycho_bluesky.bench.workflow_makespan import PAPER_STAGES_S, SleepingStages
from ptycho_bluesky.bench.workflow_runs import Run, journal, make_runs
from ptycho_bluesky.errors import UnreachableError
from ptycho_bluesky.io.area_detector import read_rows
from ptycho_bluesky.workflow.journals import Journal
from ptycho_bluesky.workflow.run_state import RunFolder, RunState, run_folder
from ptycho_bluesky.workflow.stages import Job, LearningStages, Stages


def test_runs_are_valid_and_their_files_hold_the_frames(tmp_path):
    first, second = make_runs(tmp_path / "raw", 2, 9)
    assert first.uid != second.uid
    for name, doc in first.documents:
        event_model.schema_validators[event_model.DocumentNames[name]].validate(doc)
    rows = read_rows(tmp_path / "raw" / "scan-0000.h5")
    assert rows["image"].shape == (9, 64, 64)
    assert rows["image"].max() > 0
    journal(first, tmp_path)
    found = Journal(tmp_path / f"{first.uid}.jsonl").new_documents()
    assert [name for _, (name, _) in found] == [name for name, _ in first.documents]


def test_the_sleeping_stages_are_stages(tmp_path):
    def takes(stages: Stages) -> Stages:
        return stages

    stages = takes(SleepingStages(0.0))
    takes(LearningStages())
    job = Job(str(tmp_path), str(tmp_path), {}, {}, str(tmp_path / "stop"))
    assert stages.label(job, "train", False)["accepted"]
    result = stages.train(job, ["a"], None, {})
    assert job.files.model.exists()
    assert len(result["model_id"]) == 64
    assert sum(PAPER_STAGES_S.values()) > 70


def test_every_installation_is_its_own(tmp_path):
    one, two = settings_in(tmp_path / "a"), settings_in(tmp_path / "b")
    assert one.data_dir != two.data_dir
    assert one.tiled.uri.startswith("http://127.0.0.1:")
    assert set(TARGETS) == {"worker", "executor", "writer", "tiled", "trainer"}
    assert KillReport().lost == []
    assert not _wait(lambda: False, 0.05)


class FakeFacility:
    """Processes that are always killed at once, until one does not come back."""

    def __init__(self, settings, after: int, error: BaseException | None) -> None:
        self.settings, self._after, self._error, self.killed = settings, after, error, 0

    def kill(self, target: str) -> bool:
        if self.killed == self._after and self._error is not None:
            raise self._error
        self.killed += 1
        return True


@pytest.mark.parametrize(
    ("error", "ended"),
    [(None, ""), (KeyboardInterrupt(), "interrupted"), (UnreachableError("the worker ended"), "the worker ended.")],
)
def test_kills_take_turns_and_end_when_they_must(tmp_path, monkeypatch, error, ended):
    monkeypatch.setattr(workflow_kills, "PAUSE_S", (0.0, 0.001))
    monkeypatch.setattr(workflow_kills, "STAGE_WAIT_S", 0.0)
    monkeypatch.setattr(workflow_kills, "_feed", lambda settings, runs: None)
    facility, report = FakeFacility(settings_in(tmp_path), 3, error), KillReport()
    found = list(workflow_kills._kill_at_random(facility, 7, random.Random(0), [], report))
    assert report.ended == ended
    assert len(found) == (7 if error is None else 3)
    if error is None:
        assert {kill["target"] for kill in found[:5]} == set(TARGETS)
    rows = {row.metric: row for row in _kill_rows(WorkflowBench(kills=7), replace(report, kills=found))}
    assert rows["kills"].passed is (error is None)
    # nothing is claimed of runs that were not counted
    assert "runs_lost" not in rows
    counted = _kill_rows(WorkflowBench(kills=7), replace(report, kills=found, lost=["a"], counted=True))
    assert {row.metric: row.passed for row in counted}["runs_lost"] is False


def test_kills_end_when_there_is_nothing_to_kill(tmp_path, monkeypatch):
    monkeypatch.setattr(workflow_kills, "PAUSE_S", (0.0, 0.001))
    monkeypatch.setattr(workflow_kills, "STAGE_WAIT_S", 0.0)
    monkeypatch.setattr(workflow_kills, "NOTHING_TO_KILL_S", 0.05)
    monkeypatch.setattr(workflow_kills, "_feed", lambda settings, runs: None)
    facility, report = FakeFacility(settings_in(tmp_path), 0, None), KillReport()
    monkeypatch.setattr(facility, "kill", lambda target: False)
    assert list(workflow_kills._kill_at_random(facility, 5, random.Random(0), [], report)) == []
    assert "to kill" in report.ended


def test_processes_of_every_thread_are_found():
    context, made = multiprocessing.get_context("spawn"), []

    def spawn() -> None:
        process = context.Process(target=time.sleep, args=(60.0,))
        process.start()
        made.append(process)

    spawn()
    keep = threading.Event()
    thread = threading.Thread(target=lambda: (spawn(), keep.wait(60.0)))
    thread.start()
    try:
        assert workflow_kills._wait(lambda: len(made) == 2, 30.0)
        assert {process.pid for process in made} <= set(workflow_kills.spawned_by(os.getpid()))
    finally:
        keep.set()
        thread.join()
        for process in made:
            process.kill()
            process.join()
            process.close()


@pytest.mark.parametrize("resettable", [True, False])
def test_memory_is_the_growth_within_the_block(monkeypatch, resettable):
    if not resettable:

        def refuse(self, content):
            raise PermissionError(str(self))

        monkeypatch.setattr(Path, "write_text", refuse)
    np.ones(300_000_000, np.uint8)  # an earlier peak, of this process or of one that it was started by
    with workflow_catalogue.peak_growth() as growth:
        array = np.ones(80_000_000, np.uint8)
        time.sleep(0.1)
        del array
    assert 75e6 < growth[0] < 130e6


def report_progress(path, stage) -> None:
    folder = RunFolder(path)
    while True:
        folder.report(stage, 0.5)
        time.sleep(0.1)


def test_the_process_that_trains_is_killed(tmp_path, monkeypatch):
    settings, context = settings_in(tmp_path), multiprocessing.get_context("spawn")
    made = {}
    for stage in ("reconstruct", "train"):
        run_folder(settings, stage).save(RunState(stage, stage=stage))
        path = run_folder(settings, stage).path
        made[stage] = context.Process(target=report_progress, args=(path, stage), daemon=True)
    facility = workflow_kills.Facility(settings, random.Random(0))
    monkeypatch.setattr(facility.children["worker"], "_process", SimpleNamespace(pid=os.getpid(), poll=lambda: None))
    assert not facility.kill("executor")
    monkeypatch.setattr(workflow_kills, "TRAINER_WAIT_S", 0.05)
    assert not facility.kill("trainer")
    monkeypatch.setattr(workflow_kills, "TRAINER_WAIT_S", 20.0)
    try:
        for process in made.values():
            process.start()
        assert workflow_kills._wait(
            lambda: all((settings.worker_dir / stage / "progress.json").exists() for stage in made), 60
        )
        assert facility.kill("trainer")
        made["train"].join(10.0)
        assert [process.is_alive() for process in made.values()] == [True, False]
        assert not workflow_kills._kill(made["train"].pid)
        # the seed decides which other is killed, as which targets are
        chosen = []
        monkeypatch.setattr(facility, "_executor_pids", lambda: [3, 1, 2])
        monkeypatch.setattr(workflow_kills, "_kill", lambda pid: chosen.append(pid) or False)
        assert not any(facility.kill("executor") for _ in range(9))
        rng = random.Random(0)
        assert chosen == [rng.choice([1, 2, 3]) for _ in range(9)]
    finally:
        for process in made.values():
            process.kill()
            process.join()
            process.close()


class FakeStore:
    """Two decided runs of five frames, and three candidates."""

    def __init__(self) -> None:
        trained = [("a",), ("a", "b"), ("b", "a")]
        records = [SimpleNamespace(model_id=str(k) * 64, training_runs=runs) for k, runs in enumerate(trained)]
        self.model_store = SimpleNamespace(records=lambda: records)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def decision(self, uid):
        return {"outcome": "promoted"}

    def read_run(self, uid):
        return SimpleNamespace(frame_index=np.arange(5))

    read = read_run

    def runs(self):
        return ("a", "b", "c")


def test_a_run_that_was_trained_twice_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(workflow_kills.TiledStore, "connect", lambda *_, **__: FakeStore())
    monkeypatch.setattr(workflow_kills, "Corpus", lambda *_: FakeStore())
    report, runs = KillReport(), [Run(uid, 5, []) for uid in ("a", "b", "c")]
    workflow_kills._count(settings_in(tmp_path), runs, report)
    assert report.duplicated == ["a: 2 candidates in the registry"]
    assert report.lost == ["c: no candidate in the registry"]
