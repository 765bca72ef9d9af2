"""The journal: every document on disk, and a scan that ends before data are lost."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from bluesky import RunEngine
from bluesky import plan_stubs as bps
from bluesky import preprocessors as bpp
from bluesky.plans import count
from ophyd.sim import SynSignal

from ptycho_bluesky.callbacks.journal import RunJournal
from ptycho_bluesky.errors import StorageError


@pytest.fixture
def signal() -> SynSignal:
    return SynSignal(func=lambda: np.float64(np.pi), name="detector")


def lines(path: Path) -> list[tuple[str, dict]]:
    return [(entry["name"], entry["doc"]) for entry in map(json.loads, path.read_text().splitlines())]


def test_every_document_is_in_the_file_of_its_run(tmp_path, signal):
    seen = []
    run_engine = RunEngine({})
    run_engine.subscribe(RunJournal(tmp_path / "journal"))
    run_engine.subscribe(lambda name, doc: seen.append((name, doc)))
    (first,) = run_engine(count([signal], 3))
    (second,) = run_engine(count([signal], 1))
    written = lines(tmp_path / "journal" / f"{first}.jsonl")
    assert [name for name, _ in written] == ["start", "descriptor", "event", "event", "event", "stop"]
    assert written[0][1]["uid"] == first
    assert written[2][1]["data"]["detector"] == pytest.approx(np.pi)
    assert [doc["uid"] for _, doc in written] == [doc["uid"] for _, doc in seen[:6]]
    assert sorted(path.name for path in (tmp_path / "journal").iterdir()) == sorted(
        [f"{first}.jsonl", f"{second}.jsonl"]
    )


def test_documents_are_on_disk_before_the_scan_goes_on(tmp_path, signal):
    journal = RunJournal(tmp_path)
    sizes = []
    run_engine = RunEngine({})
    run_engine.subscribe(journal)
    run_engine.subscribe(lambda name, doc: sizes.append(len(next(tmp_path.glob("*.jsonl")).read_text().splitlines())))
    run_engine(count([signal], 2))
    assert sizes == [1, 2, 3, 4, 5]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_folder_refuses_the_scan_as_a_user(tmp_path, signal):
    (tmp_path / "journal").mkdir(mode=0o500)
    run_engine = RunEngine({})
    run_engine.subscribe(RunJournal(tmp_path / "journal"))
    with pytest.raises(StorageError, match="writable"):
        run_engine(count([signal], 1))


def test_folder_that_cannot_be_made_refuses_the_scan(tmp_path, signal):
    (tmp_path / "file").write_text("in the way")
    run_engine = RunEngine({})
    run_engine.subscribe(RunJournal(tmp_path / "file" / "journal"))
    triggered = []
    signal.trigger = lambda: triggered.append(1)
    with pytest.raises(StorageError, match="journal folder"):
        run_engine(count([signal], 1))
    assert not triggered


def test_full_disk_refuses_the_scan(tmp_path, signal):
    run_engine = RunEngine({})
    run_engine.subscribe(RunJournal(tmp_path, free_bytes=lambda path: 1000))
    with pytest.raises(StorageError, match="MB left"):
        run_engine(count([signal], 1))


@pytest.mark.parametrize("preprocessed", [False, True])
def test_disk_that_fills_ends_the_scan_and_keeps_its_documents(tmp_path, signal, preprocessed):
    free = [10**9]
    run_engine = RunEngine({})
    journal = RunJournal(tmp_path, free_bytes=lambda path: free[0])
    run_engine.subscribe(journal)
    if preprocessed:
        run_engine.preprocessors.append(journal.preprocessor)
    cleaned = []

    def clean_up():
        cleaned.append(True)
        yield from bps.null()

    @bpp.run_decorator()
    def plan():
        def points():
            for number in range(5):
                if number == 2:
                    free[0] = 1000
                yield from bps.checkpoint()
                yield from bps.trigger_and_read([signal])

        yield from bpp.finalize_wrapper(points(), clean_up)

    with pytest.raises(StorageError, match="MB left"):
        run_engine(plan())
    assert cleaned
    (path,) = tmp_path.glob("*.jsonl")
    written = lines(path)
    assert [name for name, _ in written] == ["start", "descriptor", "event", "event", "event", "stop"]
    assert written[-1][1]["exit_status"] == "fail"


def test_cut_line_is_removed_and_the_failure_raised_once(tmp_path, signal, monkeypatch):
    journal = RunJournal(tmp_path)
    real_write = RunJournal._write
    broken = []

    def half_a_line(self, run, name, doc):
        if name == "event" and not broken:
            broken.append(True)

            def cut(name, doc):
                with (self.directory / f"{run}.jsonl").open("a") as file:
                    file.write('{"name": "ev')
                raise OSError(28, "No space left on device")

            whole, self._writers[run] = self._writers[run], cut
            try:
                real_write(self, run, name, doc)
            finally:
                self._writers[run] = whole
        else:
            real_write(self, run, name, doc)

    monkeypatch.setattr(RunJournal, "_write", half_a_line)
    run_engine = RunEngine({})
    run_engine.subscribe(journal)
    with pytest.raises(StorageError, match="No space left"):
        run_engine(count([signal], 3))
    (path,) = tmp_path.glob("*.jsonl")
    assert [name for name, _ in lines(path)] == ["start", "descriptor", "stop"]
