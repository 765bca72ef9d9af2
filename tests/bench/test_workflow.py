"""Parts of `bench workflow` that can be told without a server."""

from __future__ import annotations

import event_model

from ptycho_bluesky.bench.workflow import settings_in
from ptycho_bluesky.bench.workflow_kills import TARGETS, KillReport, _wait
from ptycho_bluesky.bench.workflow_makespan import PAPER_STAGES_S, SleepingStages
from ptycho_bluesky.bench.workflow_runs import journal, make_runs
from ptycho_bluesky.io.area_detector import read_rows
from ptycho_bluesky.workflow.journals import Journal
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
