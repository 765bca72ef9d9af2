"""Notes of runs are read from one file, and from a state only where that file does not tell."""

from __future__ import annotations

import json

from ptycho_bluesky.config import Settings
from ptycho_bluesky.workflow.run_book import INDEX, RunBook, RunNote
from ptycho_bluesky.workflow.run_state import RunFolder, RunState, run_folder

GEOMETRY = {"image_shape": [32, 32], "pixel_size_m": 1e-8}


def state(uid: str, time_s: float = 0.0, **options) -> RunState:
    return RunState(uid, f"stop-{uid}", time_s=time_s, regime=dict(GEOMETRY), **options)


def filled(settings: Settings) -> RunBook:
    book = RunBook(settings)
    done = {
        "look": {"go_on": True},
        "label": {"accepted": True, "held_out_frames": 20},
        "validate": {"figures": {"mismatch": 0.2}},
        "gate": {"gain": 0.05},
    }
    book.save(run_folder(settings, "a"), state("a", 1.0, done=done, outcome="promoted"))
    book.save(run_folder(settings, "b"), state("b", 2.0))
    return book


def test_finished_runs_are_not_opened_again(tmp_path, monkeypatch):
    settings = Settings(data_dir=tmp_path)
    filled(settings)
    opened = []
    true_load = RunFolder.load
    monkeypatch.setattr(RunFolder, "load", lambda self: opened.append(self.path.name) or true_load(self))
    book = RunBook(settings)
    book.load()
    assert opened == ["b"]
    assert [note.uid for note in book.notes()] == ["a", "b"]
    assert book.get("a") == RunNote(
        "a", "stop-a", "train", "promoted", 1.0, GEOMETRY, True, True, True, 0.2, 0.05, 20, False
    )
    assert len(book) == 2


def test_a_run_taken_up_again_is_open_after_a_restart(tmp_path):
    settings = Settings(data_dir=tmp_path)
    book = filled(settings)
    book.save(run_folder(settings, "a"), state("a", 1.0))
    again = RunBook(settings)
    again.load()
    assert again.get("a").outcome == ""


def test_a_damaged_or_missing_index_costs_reading_the_states(tmp_path):
    settings = Settings(data_dir=tmp_path)
    filled(settings)
    index = settings.worker_dir / INDEX
    index.write_text('{"uid": "a", "outc\n' + json.dumps({"uid": "gone", "outcome": "failed"}) + "\n")
    book = RunBook(settings)
    book.load()
    assert [note.uid for note in book.notes()] == ["a", "b"]
    assert book.get("a").mismatch == 0.2
    index.unlink()
    book.load()
    assert book.get("a").outcome == "promoted"


def test_only_runs_of_the_same_geometry_and_regime_are_alike(tmp_path):
    settings = Settings(data_dir=tmp_path)
    book = filled(settings)
    book.save(run_folder(settings, "c"), RunState("c", time_s=0.0, regime={**GEOMETRY, "image_shape": [64, 64]}))
    other = state("d", 0.5)
    other.regime["probe"] = "x"
    book.save(run_folder(settings, "d"), other)
    mine = state("e", 3.0)
    assert [note.uid for note in book.like(mine)] == ["d", "a", "b"]
    assert [note.uid for note in book.like(mine, probe=True)] == ["a", "b"]
    mine.regime["probe"] = "x"
    assert [note.uid for note in book.like(mine, probe=True)] == ["d"]
