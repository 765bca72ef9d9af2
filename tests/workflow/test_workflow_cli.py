"""The subcommands around Tiled, as a person uses them."""

from __future__ import annotations

import io
import os
import time
import uuid

import numpy as np
import pytest
from rich.console import Console
from test_store import make_record
from tiled.client.array import ArrayClient
from typer.testing import CliRunner

from ptycho_bluesky.cli.main import build_app
from ptycho_bluesky.errors import InputError, StorageError, UnreachableError
from ptycho_bluesky.records import LabelSet, Measurement, ModelStage
from ptycho_bluesky.training.corpus import Corpus
from ptycho_bluesky.workflow.files import exclusive, read_json, write_bytes, write_json
from ptycho_bluesky.workflow.requests import requests
from ptycho_bluesky.workflow.run_state import RunState, run_folder
from ptycho_bluesky.workflow.status import ago, show_worker
from ptycho_bluesky.workflow.suggesting import show_suggestions, suggest_models


@pytest.fixture
def run(settings):
    """Runs a command line in this process."""
    settings.to_yaml(settings.data_dir / "c.yml")

    def call(*arguments: str) -> str:
        result = CliRunner().invoke(build_app(), [*arguments, "--config", str(settings.data_dir / "c.yml")])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.output

    return call


def test_models(run, store, settings):
    models = store.model_store
    contents = [os.urandom(100), os.urandom(200)]
    records = [
        make_record(content, created_s=time.time() + k, validation={"score": 0.25 + k})
        for k, content in enumerate(contents)
    ]
    for record, content in zip(records, contents, strict=True):
        models.put(record, content)
    first, second = (record.model_id for record in records)

    assert f"{first} is promoted; serving: {first}" in run("models", "promote", first[:8], "--reason", "by hand")
    assert f"serving: {second}" in run("models", "promote", second)
    shown = run("models", "list")
    assert "serves" in shown
    assert "0.250" in shown
    assert f"{second[:12]} promoted by hand" in shown.splitlines()
    assert any(line.split()[:3] == [first[:12], "—", "retired"] for line in shown.splitlines())
    shown = run("models", "show", second[:10])
    assert '"stage": "promoted"' in shown
    assert "promoted by hand" in shown
    assert f"{second} is retired; serving: {first}" in run("models", "rollback")
    with pytest.raises(InputError, match="no model is left"):
        run("models", "rollback")
    assert models.serving().model_id == first
    run("models", "promote", second)
    assert f"{second} is rejected; serving: {first}" in run("models", "reject", second[:8], "-r", "stripes")
    assert models.metadata()[second]["stage_log"][-1]["reason"] == "stripes"
    assert f"{first} is retired; serving: none" in run("models", "rollback", first[:8], "--force")
    assert f"{first} is rejected; serving: none" in run("models", "reject", first)
    with pytest.raises(InputError, match="no model serves"):
        run("models", "rollback")
    with pytest.raises(StorageError, match="must exist"):
        run("models", "export", first[:8], "--out", str(settings.data_dir / "nowhere" / "m.onnx"))
    assert not (settings.data_dir / "nowhere").exists()
    out = settings.data_dir / "model.onnx"
    run("models", "export", first[:8], "--out", str(out))
    assert out.read_bytes() == contents[0]
    assert models.get(first)[0].stage is ModelStage.REJECTED


def test_garbage_is_collected(run, store):
    models, contents = store.model_store, [os.urandom(50) for _ in range(4)]
    records = [make_record(content, created_s=time.time() - 1e6 + k) for k, content in enumerate(contents)]
    for record, content in zip(records, contents, strict=True):
        models.put(record, content)
        models.promote(record.model_id, "better")
    first, second, *_ = (record.model_id for record in records)
    assert "2 models would be removed" in run("models", "collect", "--keep", "1", "--dry-run")
    assert models.get(first)[1] == contents[0]
    shown = run("models", "collect", "--keep", "1")
    assert first in shown
    assert second in shown
    with pytest.raises(InputError, match="collected as garbage"):
        models.get(first)
    with pytest.raises(InputError, match="collected as garbage"):
        models.promote(first)
    assert models.get(records[3].model_id)[1] == contents[3]
    assert "0 models were removed" in run("models", "collect", "--keep", "1")
    assert len(models.records()) == 4
    assert f"serving: {records[2].model_id}" in run("models", "rollback")
    models.put(records[0], contents[0])
    assert models.get(first)[0].stage is ModelStage.RETIRED


def stored_bytes(settings, model_id):
    (folder,) = [path for path in settings.tiled_dir.rglob(model_id) if path.is_dir()]
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.suffix != ".json")


@pytest.mark.parametrize("crash", ["replace_metadata", "write"])
def test_a_crash_while_a_model_is_discarded_loses_no_record(store, served, monkeypatch, crash):
    models, content = store.model_store, os.urandom(5000)
    record = make_record(content, validation={"score": 0.5}, parent_id="b" * 64)
    models.put(record, content)
    models.set_stage(record.model_id, ModelStage.RETIRED, "worse")
    assert stored_bytes(served[0], record.model_id) >= 5000

    def die(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ArrayClient, crash, die)
        with pytest.raises(KeyboardInterrupt):
            models.discard(record.model_id, "no longer needed")
    (left,) = models.records()
    assert (left.parent_id, left.stage, left.validation) == ("b" * 64, ModelStage.RETIRED, {"score": 0.5})
    assert models.is_discarded(record.model_id) is (crash == "write")
    models.discard(record.model_id, "no longer needed")
    assert [entry["reason"] for entry in models.history(record.model_id)][-2:] == ["worse", "no longer needed"]
    assert stored_bytes(served[0], record.model_id) == 0
    # what happens to the record afterwards does not make the content seem to be there
    models.set_stage(record.model_id, ModelStage.REJECTED, "stripes")
    for read in (models.get, models.content):
        with pytest.raises(InputError, match="collected as garbage"):
            read(record.model_id)
    models.put(record, content)
    assert models.get(record.model_id)[1] == content


def test_models_are_suggested(run, store, settings):
    image = np.random.default_rng(0).poisson(np.linspace(5, 50, 64).reshape(8, 8), (40, 8, 8))
    labels = LabelSet(
        image=image.astype(np.uint16),
        phase_rad=np.zeros((40, 8, 8), np.float32),
        amplitude=np.ones((40, 8, 8), np.float32),
        position_m=np.zeros((40, 2)),
        frame_index=np.arange(40),
        probe=np.ones((1, 8, 8), np.complex64),
        weight=np.ones((8, 8), np.float32),
        pixel_size_m=1e-8,
        geometry=None,
        run_uid="first",
    )
    Corpus(settings.corpus_dir).add(labels)
    content = os.urandom(50)
    record = make_record(content, training_runs=("first", "gone"))
    store.model_store.put(record, content)
    store.model_store.promote(record.model_id)
    measured = Measurement(image[:30], *[np.zeros(30)] * 5, geometry=None, pixel_size_m=1e-8)
    found = suggest_models(settings, store.model_store, measured)
    assert [each.model_id for each in found] == [record.model_id, ""]
    assert found[0].similarity.probe > 0.99
    assert found[0].run_uid == "first"
    show_suggestions(found)


def test_unreachable(run, settings, free_ports):
    (port,) = free_ports(1)
    settings.tiled.uri = f"http://127.0.0.1:{port}"
    settings.to_yaml(settings.data_dir / "c.yml")
    with pytest.raises(UnreachableError, match=str(port)):
        run("models", "list")


def test_taken_port(run, settings):
    with pytest.raises(InputError, match=r"tiled\.uri"):
        run("tiled")


def test_worker_status_and_retry(run, settings):
    with pytest.raises(InputError, match="no worker has run"):
        run("worker", "--status")
    write_json(
        settings.worker_dir / "status.json",
        {"waiting": ["b"], "unpublished": [], "tiled_reachable": False, "time_s": time.time()},
    )
    folder = run_folder(settings, "abcdef-1")
    folder.save(RunState("abcdef-1", scan_id=7, stage="train", outcome="failed", reason="no luck"))
    folder.mark_published("decision")
    shown = run("worker", "--status")
    assert "no luck" in shown
    assert "does not answer; 1 runs wait" in shown
    assert "abcdef-1 will be taken up again" in run("worker", "--retry", "abcdef")
    assert folder.load().outcome == ""
    assert folder.published() == []


def test_worker_status_fits_a_terminal(settings):
    write_json(
        settings.worker_dir / "status.json",
        {"waiting": [], "unpublished": [], "tiled_reachable": True, "time_s": time.time()},
    )
    reason = "its labels are not used: " + "the half-scans do not agree [0.3 of 0.5], " * 6 + "\nand so on"
    seconds = {"train": 12345.0}
    done = {"train": {"model_id": "0123456789", "figures": {"ssim_serving": 0.5}}}
    for uid in ("abcdef-1", "123456-2"):
        run_folder(settings, uid).save(
            RunState(uid, "", "reserved", 123, 1.0, {}, "", done, seconds, outcome="cancelled", reason=reason)
        )
    folder = run_folder(settings, "fedcba-3")
    folder.save(RunState("fedcba-3", purpose="reserved", scan_id=123, stage="reconstruct"))
    folder.report("reconstruct", 0.5, "error 0.0123")
    console = Console(width=80, file=io.StringIO())
    show_worker(settings, console)
    lines = console.file.getvalue().splitlines()
    assert f"abcdef-1 {' '.join(reason.split())}" in lines
    assert len([line for line in lines if "cancelled" in line and "12345" in line and "01234567" in line]) == 2
    assert len([line for line in lines if "fedcba-3" in line and "reconstruct 50 %" in line]) == 1
    assert len(lines) <= 14


def test_only_a_run_that_there_is_can_be_cancelled(run, store, settings, free_ports):
    mistyped, known, waits = str(uuid.uuid4()), str(uuid.uuid4()), str(uuid.uuid4())
    with pytest.raises(InputError, match=f"{mistyped}.*neither the worker nor Tiled"):
        run("worker", "--cancel", mistyped)
    assert requests(settings) == (set(), set())
    store.raw.create_container(key=known, metadata={"start": {"uid": known, "time": 1.0}})
    assert f"run {known} will be given up" in run("worker", "--cancel", known)
    (port,) = free_ports(1)
    settings.tiled.uri = f"http://127.0.0.1:{port}"
    settings.to_yaml(settings.data_dir / "c.yml")
    assert f"run {mistyped} is not known to the worker, and Tiled" in run("worker", "--cancel", mistyped)
    write_json(settings.worker_dir / "status.json", {"waiting": [waits]})
    assert f"run {waits} will be given up" in run("worker", "--cancel", waits)
    assert requests(settings)[0] == {known, mistyped, waits}
    with pytest.raises(InputError, match="whole uid"):
        run("worker", "--cancel", "abc")


def test_writer_status(run, settings):
    with pytest.raises(InputError, match="no writer has run"):
        run("writer", "--status")


def test_ago():
    assert ago(None) == "—"
    now = time.time()
    assert [ago(now - seconds) for seconds in (5, 600, 8000, 400_000)] == [
        "5 s ago",
        "10 min ago",
        "2 h ago",
        "5 d ago",
    ]


class TestFiles:
    def test_whole_or_not_at_all(self, tmp_path):
        path = tmp_path / "deep" / "file.json"
        assert read_json(path, {}) == {}
        write_json(path, {"a": 1})
        assert read_json(path) == {"a": 1}
        assert [each.name for each in path.parent.iterdir()] == ["file.json"]
        path.write_text("{")
        with pytest.raises(InputError, match="must be JSON"):
            read_json(path)

    def test_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match="writable"):
            write_bytes(tmp_path / "file" / "below", b"")
        with pytest.raises(InputError, match="writable"), exclusive(tmp_path / "file" / "below", "worker"):
            pass

    def test_one_at_a_time(self, tmp_path):
        refused = pytest.raises(InputError, match=rf"process {os.getpid()}")
        with exclusive(tmp_path, "worker"), refused, exclusive(tmp_path, "worker"):
            pass
        with exclusive(tmp_path, "worker"):
            pass
