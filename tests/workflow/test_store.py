"""What goes into Tiled comes out the same; runs are read aligned by unique id."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from bluesky_tiled_plugins import TiledWriter
from conftest_workflow import make_settings
from workflow_scans import GEOMETRY, compose, make_scan, write_file

from ptycho_bluesky.errors import InputError, UnreachableError
from ptycho_bluesky.geometry import Geometry, ObjectFrame
from ptycho_bluesky.records import (
    FrameCounts,
    LabelSet,
    ModelRecord,
    ModelStage,
    Mosaic,
    Reconstruction,
    Segment,
)
from ptycho_bluesky.training.registry import register
from ptycho_bluesky.workflow.client import jsonable
from ptycho_bluesky.workflow.run_reading import frame_indices
from ptycho_bluesky.workflow.server import start_server
from ptycho_bluesky.workflow.tiled_store import TiledStore


def ingest(store, scan, path, **options):
    write_file(scan, path)
    writer = TiledWriter(store.raw)
    for name, doc in compose(scan, **options):
        writer(name, doc)


def check(scan, measurement):
    """Each frame stands beside its own position and id."""
    np.testing.assert_array_equal(measurement.image[:, 0, 0], measurement.frame_index)
    np.testing.assert_array_equal(measurement.image, scan.image[measurement.frame_index])
    np.testing.assert_array_equal(measurement.position_m, scan.position_m[measurement.frame_index])


class TestReadRun:
    def test_aligned(self, store, raw_dir):
        scan = make_scan()
        ingest(store, scan, raw_dir / "a.h5")
        measurement = store.read_run(scan.uid)
        check(scan, measurement)
        np.testing.assert_array_equal(measurement.frame_index, np.arange(24))
        np.testing.assert_array_equal(measurement.unique_id, 101 + np.arange(24))
        assert measurement.geometry == GEOMETRY
        assert measurement.pixel_size_m == pytest.approx(GEOMETRY.object_pixel_m)
        assert measurement.metadata["source"] == "tiled"
        assert measurement.metadata["sample"] == "letters"
        assert measurement.run_uid == scan.uid
        assert np.all(measurement.i0 == 1e5)
        assert len(store.read_run(scan.uid, limit=5)) == 5

    def test_rows_dropped_and_foreign(self, store, raw_dir):
        rows = [(90, 3)] + [(101 + k, k) for k in range(24) if k not in (4, 17)]
        scan = make_scan(rows=rows)
        ingest(store, scan, raw_dir / "drop.h5")
        measurement = store.read_run(scan.uid)
        check(scan, measurement)
        assert measurement.frame_index.tolist() == [k for k in range(24) if k not in (4, 17)]
        assert measurement.metadata["rows_foreign"] == 1

    @pytest.mark.parametrize("second_id", [1, 111, 500], ids=["reset", "continued", "gap"])
    def test_two_segments_in_one_file(self, store, raw_dir, second_id):
        # Paused after 10 of 24; re-armed for the remaining 14.
        rows = [(101 + k, k) for k in range(10)] + [(second_id + k, 10 + k) for k in range(14)]
        scan = make_scan(rows=rows, segments=[(101, 0, 24, 10), (second_id, 10, 14, 14)])
        ingest(store, scan, raw_dir / f"segments{second_id}.h5")
        measurement = store.read_run(scan.uid)
        check(scan, measurement)
        assert len(measurement) == 24

    def test_step_scan(self, store, raw_dir):
        scan = make_scan(n=6)
        ingest(store, scan, raw_dir / "step.h5", step_points=True)
        measurement = store.read_run(scan.uid)
        check(scan, measurement)
        assert len(measurement) == 6

    def test_step_scan_without_segments(self, store, raw_dir):
        scan = make_scan(n=6, segments=())
        ingest(store, scan, raw_dir / "step_plain.h5", step_points=True)
        check(scan, store.read_run(scan.uid))

    def test_writer_killed(self, store, raw_dir):
        """The file's writer is killed; the documents announced more rows than it had flushed."""
        path = raw_dir / "killed.h5"
        child = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sys, time; from pathlib import Path; from workflow_scans import *;"
                "scan = make_scan(rows=[(101 + k, k) for k in range(18)]);"
                "file = write_file(scan, Path(sys.argv[1]), close=False); print('written', flush=True); time.sleep(60)",
                str(path),
            ],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"written\n"
        child.send_signal(signal.SIGKILL)
        child.wait(timeout=10)
        child.stdout.close()
        scan = make_scan(exit_status="abort")
        scan.path = path
        writer = TiledWriter(store.raw, batch_size=1)
        for name, doc in compose(scan):
            writer(name, doc)
        for prefer_file in (None, False):
            measurement = store.read_run(scan.uid, prefer_file=prefer_file)
            check(scan, measurement)
            assert len(measurement) == 18
            assert measurement.metadata["cut_at_frame"] == 18
            assert measurement.metadata["exit_status"] == "abort"

    def test_unknown_pixel(self, store, raw_dir):
        scan = make_scan(geometry=None)
        ingest(store, scan, raw_dir / "unknown.h5")
        with pytest.raises(InputError, match="--object-pixel-m"):
            store.read_run(scan.uid)
        measurement = store.read_run(scan.uid, object_pixel_m=1e-8)
        assert measurement.geometry is None
        assert measurement.pixel_size_m == 1e-8

    def test_no_such_run(self, store):
        with pytest.raises(InputError, match="no single one"):
            store.read_run("00000000-0000-0000-0000-000000000000")

    def test_catalogue(self, store, raw_dir):
        """The catalogue behaves as databroker's users know it, beside results and models."""
        client = pytest.importorskip("databroker.client")
        assert isinstance(store.raw, client.CatalogOfBlueskyRuns)
        scan = make_scan()
        ingest(store, scan, raw_dir / "catalogue.h5")
        run = store.raw[-1]
        assert run.metadata["start"]["uid"] == scan.uid
        dataset = run["primary"].read(["det_image", "det_position_y_m", "det_unique_id"])
        np.testing.assert_array_equal(dataset["det_image"].values, scan.image)
        np.testing.assert_array_equal(dataset["det_position_y_m"].values, scan.position_m[:, 0])
        names = [name for name, _ in run.documents()]
        assert names[0] == "start"
        assert names[-1] == "stop"
        assert "stream_resource" in names
        (summary,) = store.runs()
        assert summary.is_ptycho
        assert summary.purpose == "train"
        assert summary.stop is not None
        assert store.runs(since_s=time.time() + 100) == []


def test_frame_indices_of_rows():
    segments = [Segment(0, 1, 0, 4), Segment(1, 1, 4, 6)]
    ids = np.array([7, 1, 2, 4, 1, 3, 3, 6, 99])
    assert frame_indices(ids, segments).tolist() == [-1, 0, 1, 3, 4, 6, -1, 9, -1]
    assert frame_indices(np.array([], dtype=np.int64), segments).tolist() == []


def make_mosaic(uid="r", shape=(20, 30), maps=("bright_field", "com_y_px"), n=5) -> Mosaic:
    rng = np.random.default_rng(1)
    return Mosaic(
        phase_rad=rng.normal(size=shape).astype(np.float32),
        weight=rng.random(shape).astype(np.float32),
        coverage=rng.integers(0, 9, shape).astype(np.int32),
        variance=rng.random(shape).astype(np.float32),
        frame=ObjectFrame((1e-6, -2e-6), 1e-8, shape),
        run_uid=uid,
        frame_log={"frame_index": np.arange(n), "position_y_m": rng.random(n), "late": np.zeros(n, dtype=bool)},
        model_ids=("a" * 64,),
        maps={name: rng.random(shape).astype(np.float32) for name in maps},
    )


class TestMosaic:
    def test_round_trip(self, store):
        counts = FrameCounts(generated=5, received=4, missed=1, recovered=1, inferred=5)
        mosaic = make_mosaic()
        store.write_mosaic(mosaic, FrameCounts(generated=2), complete=False)
        assert not store.has_final_mosaic("r")
        assert not store.read_mosaic("r").complete
        grown = make_mosaic(shape=(25, 33))
        store.write_mosaic(grown, counts, complete=True, geometry=GEOMETRY, metadata={"note": 1})
        store.write_mosaic(grown, counts, complete=True, geometry=GEOMETRY, metadata={"note": 1})
        assert store.has_final_mosaic("r")
        stored = store.read_mosaic("r")
        assert stored.complete
        assert stored.counts == counts
        assert stored.metadata["note"] == 1
        assert stored.mosaic.frame == grown.frame
        assert stored.mosaic.model_ids == grown.model_ids
        for name in ("phase_rad", "weight", "coverage", "variance"):
            np.testing.assert_array_equal(getattr(stored.mosaic, name), getattr(grown, name))
        for name, column in grown.frame_log.items():
            np.testing.assert_array_equal(stored.mosaic.frame_log[name], column)
        for name, image in grown.maps.items():
            np.testing.assert_array_equal(stored.mosaic.maps[name], image)

    def test_missing(self, store):
        with pytest.raises(InputError, match="not in Tiled"):
            store.read_mosaic("nobody")

    def test_picture(self, store):
        """The web pages ask for a PNG of an array."""
        mosaic = make_mosaic(uid="png")
        store.write_mosaic(mosaic, FrameCounts(), complete=True)
        node = store.results["png"]["live"]["phase_rad"]
        reply = node.context.http_client.get(node.item["links"]["full"], params={"format": "image/png"})
        assert reply.status_code == 200
        assert reply.content.startswith(b"\x89PNG")


def test_reconstruction_round_trip(store):
    rng = np.random.default_rng(2)
    obj = np.exp(1j * rng.normal(size=(12, 14))).astype(np.complex64)
    reconstruction = Reconstruction(
        object=obj,
        probe=rng.normal(size=(1, 8, 8)).astype(np.complex64),
        position_m=rng.random((3, 2)),
        frame=ObjectFrame((0.0, 0.0), 1e-8, (12, 14)),
        error=np.array([0.3, 0.1]),
        geometry=None,
        engine="epie",
        options={"iterations": 2},
        run_uid="rec",
        provenance={"frames": (1, 2)},
    )
    store.write_reconstruction(reconstruction)
    back = store.read_reconstruction("rec")
    np.testing.assert_array_equal(back.object, obj)
    np.testing.assert_array_equal(back.probe, reconstruction.probe)
    np.testing.assert_array_equal(back.position_m, reconstruction.position_m)
    assert back.geometry is None
    assert store.results["rec"]["reconstruction"].metadata["geometry"] == "unknown"
    assert back.options == {"iterations": 2}


def test_labels_round_trip(store, raw_dir):
    scan = make_scan(n=8)
    ingest(store, scan, raw_dir / "labels.h5")
    rng = np.random.default_rng(3)
    labels = LabelSet(
        image=scan.image[2:6],
        phase_rad=rng.normal(size=(4, 32, 32)).astype(np.float32),
        amplitude=np.ones((4, 32, 32), dtype=np.float32),
        position_m=scan.position_m[2:6],
        frame_index=np.arange(2, 6),
        probe=np.ones((1, 32, 32), dtype=np.complex64),
        weight=np.ones((32, 32), dtype=np.float32),
        pixel_size_m=1e-8,
        geometry=GEOMETRY,
        run_uid=scan.uid,
        provenance={"engine": "epie"},
    )
    store.write_labels(labels)
    back = store.read_labels(scan.uid)
    np.testing.assert_array_equal(back.image, labels.image)
    np.testing.assert_array_equal(back.phase_rad, labels.phase_rad)
    assert back.geometry == GEOMETRY
    with pytest.raises(InputError, match="there are none"):
        store.read_labels("nobody")


def test_decisions(store):
    store.write_decision("one", {"outcome": "failed", "reason": "x", "figures": {"ssim": np.float32(0.5)}})
    store.write_decision("two", {"outcome": "rejected", "figures": {"ssim": float("nan")}})
    store.write_decision("one", {"outcome": "promoted", "stage_seconds": {"train": 1.5}})
    assert store.decision("one")["outcome"] == "promoted"
    assert "reason" not in store.decision("one")
    assert store.decision("two")["figures"]["ssim"] is None
    assert store.decision("three") is None
    assert list(store.read_decisions()) == ["two", "one"]


def make_record(content: bytes, created_s: float = 1.0, **options) -> ModelRecord:
    values = {
        "model_id": hashlib.sha256(content).hexdigest(),
        "parent_id": "",
        "stage": ModelStage.CANDIDATE,
        "architecture": "ptychonn2",
        "image_shape": (32, 32),
        "patch_shape": (32, 32),
        "pixel_size_m": float("nan"),
        "count_scale": 1.0,
        "training_runs": ("r",),
        "recipe": {"epochs": 1},
        "validation": {"ssim": 0.5},
        "geometry": None,
        "regime": {"name": "a"},
        "created_s": created_s,
    }
    return ModelRecord(**values | options)


def metadata_of(record):
    return jsonable(record.as_dict() | {"stage_log": []})


@contextlib.contextmanager
def requests_of(store):
    """Method and path of the requests that are made inside the block."""
    sent, hooks = [], store.root.context.http_client.event_hooks
    note = [lambda request: sent.append((request.method, request.url.path))]
    store.root.context.http_client.event_hooks = {**hooks, "request": [*hooks.get("request", []), *note]}
    yield sent
    store.root.context.http_client.event_hooks = hooks


class TestModelStore:
    def test_life(self, store):
        models = store.model_store
        assert models.serving() is None
        first, second = os.urandom(5000), os.urandom(4000)
        for number, content in enumerate((first, second)):
            models.put(make_record(content, created_s=number), content)
        models.put(make_record(first), first)
        ids = [record.model_id for record in models.records()]
        assert ids == [hashlib.sha256(content).hexdigest() for content in (first, second)]
        record, content = models.get(ids[0])
        assert content == first
        assert record.training_runs == ("r",)
        models.set_stage(ids[0], ModelStage.PROMOTED, "better")
        models.set_stage(ids[1], ModelStage.PROMOTED, "better still")
        assert models.serving().model_id == ids[1]
        assert models.serving({"name": "a"}).model_id == ids[1]
        assert models.serving({"name": "b"}) is None
        models.set_stage(ids[1], ModelStage.RETIRED, "taken back")
        assert models.serving().model_id == ids[0]
        log = models.metadata()[ids[1]]["stage_log"]
        assert [entry["stage"] for entry in log] == ["candidate", "promoted", "retired"]
        assert models.get(ids[1][:8])[1] == second

    def test_wrong_id(self, store):
        with pytest.raises(InputError, match="SHA-256"):
            store.model_store.put(make_record(b"one"), b"two")
        with pytest.raises(InputError, match="no model has this id"):
            store.model_store.get("0" * 64)

    def test_damaged_content_is_refused_and_repaired(self, store):
        models, content = store.model_store, os.urandom(1000)
        record = make_record(content)
        models.put(record, content)
        store.models[record.model_id].write(np.zeros(1000, dtype=np.uint8))
        with pytest.raises(InputError, match="hash"):
            models.get(record.model_id)
        models.put(record, content)
        assert models.get(record.model_id)[1] == content

    def test_register_costs_few_requests_and_goes_on_after_a_crash(self, store):
        models = store.model_store
        old, new = os.urandom(1000), os.urandom(1000)
        first = register(models, make_record(old), old, ModelStage.PROMOTED, "first")
        with requests_of(store) as sent:
            stored = models.put(make_record(new), new, ModelStage.PROMOTED, "better")
        assert [method for method, _ in sent] == ["POST", "PUT", "PUT"]
        assert stored.as_dict() == models.get(stored.model_id)[0].as_dict()
        with requests_of(store) as sent:
            assert models.content(stored.model_id) == new
            assert models.serving().model_id == stored.model_id
        assert len(sent) == 2
        # it died before the one before was retired
        assert {record.model_id for record in models.promoted()} == {first.model_id, stored.model_id}
        register(models, make_record(new), new, ModelStage.PROMOTED, "better")
        assert [record.model_id for record in models.promoted()] == [stored.model_id]
        assert [entry["stage"] for entry in models.history(first.model_id)] == ["candidate", "promoted", "retired"]

    def test_a_node_without_content_is_not_served_and_is_completed(self, store):
        """What a crash between the node and its content leaves."""
        models, content = store.model_store, os.urandom(1000)
        record = make_record(content)
        store.models.write_array(np.zeros(1000, dtype=np.uint8), key=record.model_id, metadata=metadata_of(record))
        assert models.serving() is None
        with pytest.raises(InputError, match="hash"):
            models.content(record.model_id)
        assert register(models, record, content, ModelStage.PROMOTED).stage is ModelStage.PROMOTED
        assert models.content(record.model_id) == content
        with pytest.raises(InputError, match="no model has this id"):
            models.content("0" * 64)


class TestConnection:
    def test_nothing_there(self, settings, free_ports):
        (port,) = free_ports(1)
        settings.tiled.uri = f"http://127.0.0.1:{port}"
        started = time.monotonic()
        with pytest.raises(UnreachableError, match=rf"127.0.0.1:{port}.*ptycho-bluesky tiled"):
            TiledStore.connect(settings.tiled)
        assert time.monotonic() - started < 5

    def test_no_answer(self, settings):
        """A server that accepts and says nothing."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            settings.tiled.uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
            settings.tiled.timeout_s = 0.5
            started = time.monotonic()
            with pytest.raises(UnreachableError, match=r"does not answer.*tiled\.uri"):
                TiledStore.connect(settings.tiled)
            assert time.monotonic() - started < 5

    def test_dies_while_connected(self, tmp_path):
        settings = make_settings(tmp_path)
        with start_server(settings) as server, TiledStore.connect(settings.tiled) as store:
            assert server.kill() == -signal.SIGKILL
            started = time.monotonic()
            with pytest.raises(UnreachableError, match=settings.tiled.uri):
                store.runs()
            assert time.monotonic() - started < 30
            server.start()
            assert store.runs() == []
            assert server.stop() == 0

    def test_wrong_key(self, settings):
        from pydantic import SecretStr

        settings.tiled.api_key = SecretStr("wrong")
        with pytest.raises(InputError, match=r"tiled\.api_key"):
            TiledStore.connect(settings.tiled)

    def test_bad_address(self, settings):
        settings.tiled.uri = "nonsense"
        with pytest.raises(InputError, match=r"tiled\.uri"):
            TiledStore.connect(settings.tiled)


def test_geometry_survives():
    assert Geometry.from_dict(GEOMETRY.as_dict()) == GEOMETRY


class TestLongCatalogues:
    def test_runs_and_decisions_with_no_more_than_is_needed(self, store, monkeypatch):
        monkeypatch.setattr("ptycho_bluesky.workflow.catalogue.PAGE", 2)
        for number in range(5):
            start = {"uid": f"run{number}", "time": float(number), "scan_id": number, "plan_name": "x"}
            if number != 1:
                start["ptycho"] = {"purpose": "reserved"} if number == 2 else {"trajectory": [0.0] * 100}
            stop = None if number == 4 else {"uid": f"stop{number}", "exit_status": "success"}
            store.raw.create_container(key=f"run{number}", metadata={"start": start, "stop": stop})
            if number < 3:
                store.write_decision(f"run{number}", {"stop_uid": f"stop{number}", "outcome": "skipped"})
        found = {run.uid: run for run in store.run_summaries()}
        assert list(found) == [f"run{number}" for number in range(5)]
        assert [run.purpose for run in found.values()] == ["train", "", "reserved", "train", "train"]
        assert found["run0"].start == {"uid": "run0", "time": 0.0, "scan_id": 0, "ptycho": {"purpose": "train"}}
        assert found["run0"].stop == {"uid": "stop0"}
        assert found["run4"].stop is None
        assert store.summary("run0").brief() == found["run0"]
        assert [run.uid for run in store.run_summaries(2.0)] == ["run2", "run3", "run4"]
        assert dict(store.decided_runs()) == {f"run{k}": f"stop{k}" for k in range(3)}
