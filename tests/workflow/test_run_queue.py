"""Which runs the worker finds by looking, without any notice of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ptycho_bluesky.config import Settings
from ptycho_bluesky.errors import UnreachableError
from ptycho_bluesky.workflow import run_queue
from ptycho_bluesky.workflow.run_book import RunBook
from ptycho_bluesky.workflow.run_queue import RunQueue
from ptycho_bluesky.workflow.tiled_store import RunSummary


class Catalogue:
    """Stands for Tiled: runs in the order in which they were written; how many were looked at is counted."""

    def __init__(self, *times_s: float) -> None:
        self.runs: list[RunSummary] = []
        self.looked_at = 0
        self.fail_after: int | None = None
        for time_s in times_s:
            self.write(time_s)

    def write(self, time_s: float) -> str:
        uid = f"run{len(self.runs)}"
        start = {"uid": uid, "time": time_s, "ptycho": {"purpose": "train"}}
        self.runs.append(RunSummary(uid, time_s, start, {"uid": f"stop of {uid}"}))
        return uid

    def run_summaries(self, since_s: float | None = None) -> Iterator[RunSummary]:
        for run in list(self.runs):
            if since_s is None or run.time_s >= since_s:
                if self.fail_after is not None and self.looked_at >= self.fail_after:
                    raise UnreachableError("Tiled does not answer")
                self.looked_at += 1
                yield run

    def num_decisions(self) -> int:
        return 0


@pytest.fixture
def runs(tmp_path) -> RunQueue:
    settings = Settings(data_dir=tmp_path)
    return RunQueue(settings, RunBook(settings))


def look(runs: RunQueue, catalogue: Any) -> list[str]:
    """Search, and decide on what was found."""
    runs.catch_up(catalogue)
    found = runs.waiting()
    for uid in found:
        runs.settle(uid, f"stop of {uid}")
    return found


def test_a_run_that_is_written_late_is_found(runs):
    catalogue = Catalogue(100.0, 200.0)
    assert look(runs, catalogue) == ["run0", "run1"]
    late = catalogue.write(50.0)
    assert look(runs, catalogue) == [late]
    assert look(runs, catalogue) == []


def test_a_run_of_a_dead_session_that_was_ended_late_is_found(runs):
    catalogue = Catalogue(100.0, 200.0)
    assert look(runs, catalogue) == ["run0", "run1"]
    run = catalogue.runs[0]
    catalogue.runs[0] = RunSummary(run.uid, run.time_s, run.start, {"uid": "another"})
    assert look(runs, catalogue) == ["run0"]


def test_a_long_catalogue_is_gone_through_in_parts(runs, monkeypatch):
    monkeypatch.setattr(run_queue, "OLDER_RUNS", 10)
    catalogue = Catalogue(*range(100))
    assert len(look(runs, catalogue)) == 100
    assert look(runs, catalogue) == []  # from the beginning
    late = catalogue.write(5.0)
    found, costs = [], []
    for _ in range(25):
        before = catalogue.looked_at
        found += look(runs, catalogue)
        costs.append(catalogue.looked_at - before)
        if found:
            break
    assert found == [late]
    # Once round, at the same small cost each time: the part, and the newest run.
    assert len(costs) <= 2 * 11
    assert max(costs) <= 11


def test_a_search_that_fails_begins_anew(runs, monkeypatch):
    monkeypatch.setattr(run_queue, "OLDER_RUNS", 10)
    catalogue = Catalogue(*range(30))
    look(runs, catalogue)
    look(runs, catalogue)
    catalogue.fail_after = catalogue.looked_at + 3
    with pytest.raises(UnreachableError):
        look(runs, catalogue)
    catalogue.fail_after = None
    late = catalogue.write(5.0)
    assert late in [uid for _ in range(8) for uid in look(runs, catalogue)]


def test_a_late_run_is_found_in_tiled(settings, store, runs):
    def write(uid: str, time_s: float) -> None:
        start = {"uid": uid, "time": time_s, "scan_id": 1, "plan_name": "x", "ptycho": {"purpose": "train"}}
        store.raw.create_container(key=uid, metadata={"start": start, "stop": {"uid": f"stop of {uid}"}})

    write("young", 200.0)
    assert look(runs, store) == ["young"]
    write("late", 100.0)
    assert look(runs, store) == ["late"]
    assert look(runs, store) == []
