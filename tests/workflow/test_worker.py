"""The worker's bookkeeping with quick stages: every run is decided on once, whatever is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from bluesky_tiled_plugins import TiledWriter
from conftest_workflow import make_settings, wait_for
from quick_stages import QuickStages
from workflow_scans import compose, make_scan, write_file

from ptycho_bluesky.errors import InputError, StorageError, UnreachableError
from ptycho_bluesky.records import ModelStage
from ptycho_bluesky.workflow import run_work
from ptycho_bluesky.workflow.executors import InlineExecutor, make_executor, stop_executor
from ptycho_bluesky.workflow.files import read_json
from ptycho_bluesky.workflow.requests import ask_cancel, ask_retry
from ptycho_bluesky.workflow.run_state import RunState, read_stage, run_folder, run_states
from ptycho_bluesky.workflow.server import start_server
from ptycho_bluesky.workflow.status import show_worker
from ptycho_bluesky.workflow.tiled_store import TiledStore
from ptycho_bluesky.workflow.watch import ContainerWatch
from ptycho_bluesky.workflow.worker import Worker

pytestmark = pytest.mark.slow  # together: each test talks to Tiled for seconds


def put_run(store, raw_dir, **options):
    scan = make_scan(**options)
    write_file(scan, raw_dir / f"{uuid.uuid4().hex}.h5")
    writer = TiledWriter(store.raw)
    for name, doc in compose(scan):
        writer(name, doc)
    return scan


@pytest.fixture
def stages(tmp_path):
    return QuickStages(tmp_path / "calls.txt")


@pytest.fixture
def quick(settings):
    settings.worker.executor = "inline"
    settings.worker.min_frames = 10
    settings.worker.catch_up_period_s = 2.0
    return settings


def work_once(settings, stages):
    Worker(settings, stages).run(threading.Event(), once=True)


class Running:
    """A worker on a thread."""

    def __init__(self, settings, stages, **options):
        self.stop, self.ready = threading.Event(), threading.Event()
        worker = Worker(settings, stages, **options)
        self.thread = threading.Thread(target=worker.run, args=(self.stop, self.ready.set))

    def __enter__(self):
        self.thread.start()
        assert self.ready.wait(30)
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join(timeout=30)
        assert not self.thread.is_alive()


class TestRuns:
    def test_catches_up(self, quick, store, raw_dir, stages):
        reserved = put_run(store, raw_dir, purpose="reserved")
        first = put_run(store, raw_dir, seed=1)
        few = put_run(store, raw_dir, n=5, exit_status="abort")
        second = put_run(store, raw_dir, seed=2)
        stages.scores = [0.9, 0.2]
        work_once(quick, stages)

        decision = store.decision(first.uid)
        assert decision["outcome"] == "promoted"
        assert decision["reason"] == "scores 0.9"
        assert decision["figures"]["reserved"] is True
        assert decision["figures"]["validated_on"].endswith(f"{reserved.uid}/labels.h5")
        assert set(decision["stage_seconds"]) == {
            "read",
            "reconstruct",
            "label",
            "validate",
            "train",
            "gate",
            "register",
        }
        models = store.model_store
        assert models.serving().model_id == decision["model_id"]
        assert models.serving().training_runs == (first.uid,)

        decision = store.decision(second.uid)
        assert decision["outcome"] == "rejected"
        assert decision["parent_id"] == models.serving().model_id
        assert decision["figures"]["ssim_serving"] == 0.4
        assert decision["figures"]["mismatch"] == pytest.approx(0.5)
        assert models.get(decision["model_id"])[0].stage is ModelStage.REJECTED
        assert models.get(decision["model_id"])[0].training_runs == (first.uid, second.uid)

        assert store.decision(reserved.uid)["outcome"] == "skipped"
        assert "never trained on" in store.decision(reserved.uid)["reason"]
        assert stages.calls(reserved.uid) == ["reconstruct", "label", "validate"]
        assert store.decision(few.uid)["outcome"] == "skipped"
        assert "5 frames are too few" in store.decision(few.uid)["reason"]
        assert "abort" in store.decision(few.uid)["reason"]
        assert stages.calls(few.uid) == []

        for scan in (reserved, first, second):
            assert store.read_reconstruction(scan.uid).engine == "epie"
        assert len(store.read_labels(first.uid)) == 24
        with pytest.raises(InputError, match="there are none"):
            store.read_labels(reserved.uid)
        assert read_stage(quick, first.uid) == "promoted"
        assert not run_folder(quick, first.uid).measurement.exists()
        show_worker(quick)

        work_once(quick, stages)
        assert len(stages.calls(first.uid)) == 5
        # A worker in another folder sees the decisions and does nothing.
        other = quick.model_copy(deep=True)
        other.data_dir = quick.data_dir / "other"
        work_once(other, stages)
        assert len(stages.calls(first.uid)) == 5
        assert list(run_states(other)) == []

    def test_follows_runs_only_while_the_model_does_not_fit(self, quick, store, raw_dir, stages):
        quick.worker.update, quick.worker.max_in_flight = "on_mismatch", 1
        runs = [put_run(store, raw_dir, seed=seed) for seed in range(4)]
        # The first run has no model to be compared with; 0.8 is the score at its model's promotion.
        stages.serving_scores = [0.6, 0.79]
        work_once(quick, stages)
        first, drifted, fits, left_alone = (store.decision(run.uid) for run in runs)
        assert first["outcome"] == "promoted"
        assert drifted["outcome"] == "promoted"
        assert drifted["figures"]["mismatch"] == pytest.approx(0.25)
        assert drifted["figures"]["serving_score_at_promotion"] == 0.8
        assert fits["outcome"] == "skipped"
        assert "mismatch 0.012 is below the tolerance of 0.1" in fits["reason"]
        assert stages.calls(runs[2].uid) == ["reconstruct", "label", "validate"]
        assert left_alone["outcome"] == "skipped"
        assert "left alone" in left_alone["reason"]
        assert stages.calls(runs[3].uid) == []

    def test_looks_again_after_the_interval(self, quick, store, raw_dir, stages):
        quick.worker.update, quick.worker.probe_interval_s = "on_mismatch", 0.0
        quick.worker.look_fraction = 1.0
        runs = [put_run(store, raw_dir, seed=seed) for seed in range(3)]
        stages.serving_scores = [0.8, 0.5]
        work_once(quick, stages)
        assert [store.decision(run.uid)["outcome"] for run in runs] == ["promoted", "skipped", "promoted"]

    def test_looks_at_the_middle_first_where_the_model_is_expected_to_fit(self, quick, store, raw_dir, stages):
        quick.worker.update, quick.worker.probe_interval_s = "on_mismatch", 0.0
        quick.worker.look_fraction, quick.worker.max_in_flight = 0.5, 1
        runs = [put_run(store, raw_dir, seed=seed) for seed in range(4)]
        stages.serving_scores, stages.glance_scores = [0.78, 0.5], [0.79, 0.5]
        work_once(quick, stages)
        first, whole, middle, drifted = (store.decision(run.uid) for run in runs)
        # Until the model is known to fit, whole runs are looked at.
        assert "glance" not in stages.calls(runs[0].uid) + stages.calls(runs[1].uid)
        assert [each["outcome"] for each in (first, whole, middle)] == ["promoted", "skipped", "skipped"]
        assert stages.calls(runs[2].uid) == ["glance"]
        assert "64 frames in the middle" in middle["reason"]
        assert middle["figures"]["mismatch"] == pytest.approx(1 - 0.79 / 0.8)
        # Where the middle does not fit, the whole run is looked at and decides.
        assert stages.calls(runs[3].uid)[:4] == ["glance", "reconstruct", "label", "validate"]
        assert drifted["outcome"] == "promoted"
        assert drifted["figures"]["mismatch"] == pytest.approx(1 - 0.5 / 0.8)

    def test_follows_while_retraining_gains(self, quick, store, raw_dir, stages):
        quick.worker.update, quick.worker.max_in_flight, quick.worker.settle_gain = "on_mismatch", 1, 0.05
        runs = [put_run(store, raw_dir, seed=seed) for seed in range(5)]
        stages.serving_scores, stages.gains = [0.79, 0.79, 0.79], [0.3, 0.06, 0.01]
        work_once(quick, stages)
        decisions = [store.decision(run.uid) for run in runs]
        assert [each["outcome"] for each in decisions] == ["promoted"] * 3 + ["skipped"] * 2
        assert "the last retraining still gained much" in decisions[1]["decisions"]["retrain"]["reason"]
        assert "left alone" in decisions[3]["reason"]

    def test_gives_up_on_what_training_does_not_help(self, quick, store, raw_dir, stages):
        quick.worker.update, quick.worker.max_in_flight, quick.worker.patience = "on_mismatch", 1, 2
        runs = [put_run(store, raw_dir, seed=seed) for seed in range(4)]
        stages.serving_scores, stages.scores, stages.gains = [0.4, 0.4, 0.4], [0.9, 0.1, 0.1], [0.01, 0.0, 0.0]
        work_once(quick, stages)
        outcomes = [store.decision(run.uid)["outcome"] for run in runs]
        assert outcomes == ["promoted", "rejected", "rejected", "skipped"]

    def test_a_regime_has_its_own_model(self, quick, store, raw_dir, stages):
        """Another probe founds a regime; when the first one comes back, its model serves again, untrained."""
        quick.worker.update, quick.worker.max_in_flight = "on_mismatch", 1
        flat, curved, back = [put_run(store, raw_dir, seed=seed) for seed in range(3)]
        stages.probes = {curved.uid: 0.05}
        stages.serving_scores, stages.rival_scores = [0.2, 0.3], [0.78]
        work_once(quick, stages)
        first, second, third = (store.decision(run.uid) for run in (flat, curved, back))
        assert (first["outcome"], second["outcome"], third["outcome"]) == ("promoted", "promoted", "switched")
        assert first["regime"]["probe"] == third["regime"]["probe"] == flat.uid
        assert second["regime"]["probe"] == curved.uid
        assert second["figures"]["probe_similarities"][flat.uid] < 0.5
        # Data of another regime are shown to the gate as such.
        assert (second["figures"]["older"], second["figures"]["foreign"]) == ([], [flat.uid])
        records = {record.regime["probe"]: record for record in store.model_store.records()}
        assert all(record.stage is ModelStage.PROMOTED for record in records.values())
        assert records[curved.uid].training_runs == (curved.uid,)
        assert store.model_store.serving().model_id == records[flat.uid].model_id
        assert "train" not in stages.calls(back.uid)

    def test_runs_overlap_and_are_learned_from_in_order(self, quick, store, raw_dir, stages, monkeypatch):
        """The second run is labelled while the first is trained on; the corpus of the first does not hold it."""
        quick.worker.max_in_flight = 2
        first, second = (put_run(store, raw_dir, seed=seed) for seed in range(2))
        labelled, true_label, true_train = threading.Event(), stages.label, stages.train

        def label(job, *arguments):
            result = true_label(job, *arguments)
            if job.folder.endswith(second.uid):
                labelled.set()
            return result

        def train(job, *arguments):
            if job.folder.endswith(first.uid):
                assert labelled.wait(120)
            return true_train(job, *arguments)

        stages.label, stages.train = label, train
        work_once(quick, stages)
        decisions = [store.decision(run.uid) for run in (first, second)]
        assert [each["outcome"] for each in decisions] == ["promoted"] * 2
        records = [store.model_store.get(each["model_id"])[0] for each in decisions]
        assert records[0].training_runs == (first.uid,)
        assert records[1].training_runs == (first.uid, second.uid)
        assert records[0].stage is ModelStage.RETIRED
        assert decisions[1]["parent_id"] == decisions[0]["model_id"]

    def test_cancelled(self, quick, store, raw_dir, stages):
        working, waiting, third = (put_run(store, raw_dir, seed=seed) for seed in range(3))
        quick.worker.max_in_flight = 1
        begun, true_train = threading.Event(), stages.train

        def train(job, *arguments):
            begun.set()
            wait_for(lambda: (Path(job.folder) / "cancel").exists())
            raise RuntimeError("stopped")

        stages.train = train
        with Running(quick, stages):
            assert begun.wait(30)
            stages.train = true_train
            assert ask_cancel(quick, working.uid[:8]) == working.uid
            ask_cancel(quick, waiting.uid)
            wait_for(lambda: store.decision(third.uid))
        assert [store.decision(run.uid)["outcome"] for run in (working, waiting, third)] == [
            "cancelled",
            "cancelled",
            "promoted",
        ]
        assert stages.calls(waiting.uid) == []
        with pytest.raises(InputError, match="cancelled already"):
            ask_cancel(quick, working.uid)
        assert ask_retry(quick, working.uid[:8]) == working.uid
        work_once(quick, stages)
        assert store.decision(working.uid)["outcome"] == "promoted"

    def test_ignores_other_runs(self, quick, store, raw_dir, stages):
        scan = make_scan()
        write_file(scan, raw_dir / f"{uuid.uuid4().hex}.h5")
        compose(scan)
        del scan.documents[0][1]["ptycho"]
        writer = TiledWriter(store.raw, batch_size=1)
        for name, doc in scan.documents:
            writer(name, doc)
        work_once(quick, stages)
        assert store.read_decisions() == {}

    def test_hears_of_a_run(self, quick, store, raw_dir, stages):
        quick.worker.catch_up_period_s = 600.0
        with Running(quick, stages):
            time.sleep(1.0)
            scan = put_run(store, raw_dir)
            wait_for(lambda: store.decision(scan.uid))
        assert store.decision(scan.uid)["outcome"] == "promoted"

    def test_run_written_anew(self, quick, store, raw_dir, stages):
        """A run that was closed for a dead session and has grown since is worked on again."""
        scan = put_run(store, raw_dir, exit_status="abort")
        work_once(quick, stages)
        assert store.decision(scan.uid)["outcome"] == "promoted"
        store.raw[scan.uid].update_metadata({"stop": {"uid": "another", "exit_status": "success"}})
        work_once(quick, stages)
        assert stages.calls(scan.uid).count("reconstruct") == 2
        assert store.decision(scan.uid)["stop_uid"] == "another"

    def test_run_replaced_while_it_is_read(self, quick, store, raw_dir, stages, monkeypatch):
        scan = put_run(store, raw_dir)
        true_read, reads = TiledStore.read_run, []

        def read(self, uid, **options):
            reads.append(uid)
            if len(reads) == 1:
                self.raw[uid].update_metadata({"stop": {"uid": "another", "exit_status": "success"}})
                raise InputError("half a run", "it is being written")
            return true_read(self, uid, **options)

        monkeypatch.setattr(TiledStore, "read_run", read)
        work_once(quick, stages)
        work_once(quick, stages)
        decision = store.decision(scan.uid)
        assert decision["outcome"] == "promoted"
        assert decision["stop_uid"] == "another"
        assert len(reads) == 2


class TestFailures:
    def test_repeats_a_stage(self, quick, store, raw_dir, stages, monkeypatch):
        monkeypatch.setattr("ptycho_bluesky.workflow.run_work.FIRST_PAUSE_S", 0.01)
        stages.fail = {"reconstruct": 2}
        scan = put_run(store, raw_dir)
        work_once(quick, stages)
        assert store.decision(scan.uid)["outcome"] == "promoted"
        assert stages.calls(scan.uid).count("reconstruct") == 3

    def test_gives_up_with_a_reason(self, quick, store, raw_dir, stages, monkeypatch):
        monkeypatch.setattr("ptycho_bluesky.workflow.run_work.FIRST_PAUSE_S", 0.01)
        stages.fail = {"label": 100}
        bad = put_run(store, raw_dir)
        work_once(quick, stages)
        decision = store.decision(bad.uid)
        assert decision["outcome"] == "failed"
        assert decision["reason"] == "label failed 4 times, last with RuntimeError: label trips"
        stages.fail = {}
        good = put_run(store, raw_dir, seed=1)
        work_once(quick, stages)
        assert store.decision(good.uid)["outcome"] == "promoted"
        assert store.decision(bad.uid)["outcome"] == "failed"
        assert ask_retry(quick, bad.uid[:8]) == bad.uid
        work_once(quick, stages)
        assert store.decision(bad.uid)["outcome"] == "promoted"
        assert stages.calls(bad.uid).count("reconstruct") == 1
        with pytest.raises(InputError, match="begin so"):
            ask_retry(quick, "nothing")

    def test_a_full_disk_is_tried_again_ever_more_rarely(self, quick, store, raw_dir, stages, monkeypatch):
        """Other runs go on meanwhile, and do not shorten its pauses."""
        monkeypatch.setattr("ptycho_bluesky.workflow.worker.FIRST_PAUSE_S", 0.1)
        bad, good = (put_run(store, raw_dir, seed=seed) for seed in range(2))
        true_write, tries, full = run_work.write_measurement_file, [], threading.Event()
        full.set()

        def write(path, measurement):
            if full.is_set() and path.parent.name == bad.uid:
                tries.append(time.monotonic())
                raise StorageError(f"{path}: No space left on device", "it must be writable", "free disk space")
            true_write(path, measurement)

        monkeypatch.setattr(run_work, "write_measurement_file", write)
        with Running(quick, stages):
            wait_for(lambda: store.decision(good.uid))
            wait_for(lambda: len(tries) >= 7)
            assert "No space left" in run_folder(quick, bad.uid).load().reason
            full.clear()
            wait_for(lambda: store.decision(bad.uid))
        assert tries[6] - tries[5] > 2.5
        assert store.decision(bad.uid)["outcome"] == "promoted"

    def test_bad_input_is_not_repeated(self, quick, store, raw_dir, stages):
        def refuse(job):
            raise InputError("negative counts", "counts are never negative")

        stages.reconstruct = refuse
        scan = put_run(store, raw_dir)
        work_once(quick, stages)
        decision = store.decision(scan.uid)
        assert decision["outcome"] == "failed"
        assert decision["reason"] == "reconstruct: negative counts. counts are never negative."

    def test_gives_up_on_a_run_that_kills_the_worker(self, quick, store, raw_dir, stages):
        scan = put_run(store, raw_dir)
        folder = run_folder(quick, scan.uid)
        stop = store.summary(scan.uid).stop["uid"]
        folder.save(RunState(scan.uid, stop, begun={"reconstruct": 14}))
        work_once(quick, stages)
        assert store.decision(scan.uid)["outcome"] == "failed"
        assert store.decision(scan.uid)["reason"] == "reconstruct was begun 14 times and never ended"

    def test_goes_on_after_any_stage(self, quick, store, raw_dir, stages, monkeypatch):
        """Killed at each step in turn: every stage is computed once, or twice where it was cut."""
        scan = put_run(store, raw_dir)

        class KilledError(BaseException):
            pass

        saves = {"left": 0}
        from ptycho_bluesky.workflow.run_state import RunFolder

        true_save = RunFolder.save

        def save(self, state: RunState) -> None:
            if saves["left"] == 0:
                raise KilledError
            saves["left"] -= 1
            true_save(self, state)

        monkeypatch.setattr(RunFolder, "save", save)
        deaths = 0
        while True:
            saves["left"] = 2
            try:
                work_once(quick, stages)
                break
            except KilledError:
                deaths += 1
                assert deaths < 40
        assert deaths >= 6
        assert store.decision(scan.uid)["outcome"] == "promoted"
        assert all(stages.calls(scan.uid).count(name) <= 2 for name in ("reconstruct", "label", "train", "gate"))
        assert len(store.model_store.records()) == 1

    def test_two_workers(self, quick, stages):
        with Running(quick, stages), pytest.raises(InputError, match=r"worker for .* runs already"):
            work_once(quick, stages)


class TestOutage:
    def test_tiled_dies_and_comes_back(self, tmp_path, stages):
        settings = make_settings(tmp_path)
        settings.worker.executor = "inline"
        settings.worker.min_frames = 10
        settings.worker.catch_up_period_s = 600.0
        settings.raw_dir.mkdir()
        gate = threading.Event()
        true_train = stages.train

        def slow_train(*arguments):
            gate.wait(60)
            return true_train(*arguments)

        stages.train = slow_train
        with start_server(settings) as server, Running(settings, stages):
            with TiledStore.connect(settings.tiled) as store:
                first = put_run(store, settings.raw_dir)
            wait_for(lambda: (read_stage(settings, first.uid) or "").startswith("train"))
            server.kill()
            gate.set()
            wait_for(lambda: "train" in run_folder(settings, first.uid).load().done)
            wait_for(lambda: read_json(settings.worker_dir / "status.json")["tiled_reachable"] is False)
            server.start()
            with TiledStore.connect(settings.tiled) as store:
                wait_for(lambda: store.decision(first.uid))
                assert store.decision(first.uid)["outcome"] == "promoted"
                # The subscription is a new one, and works.
                second = put_run(store, settings.raw_dir, seed=1)
                wait_for(lambda: store.decision(second.uid))
                assert store.decision(second.uid)["outcome"] == "promoted"

    def test_watch(self, tmp_path):
        settings = make_settings(tmp_path)
        seen, connects = [], []
        with ContainerWatch(
            settings.tiled, "models", lambda *found: seen.append(found), lambda: connects.append(1)
        ) as watch:
            with start_server(settings) as server:
                with TiledStore.connect(settings.tiled) as store:
                    wait_for(lambda: watch.connected)
                    node = store.models.create_container(key="one", metadata={"a": 1})
                    node.update_metadata({"a": 2})
                    wait_for(lambda: ("one", {"a": 2}) in seen)
                    assert ("one", {"a": 1}) in seen
                # An orderly end closes a subscription of Tiled's own for good.
                server.stop()
                wait_for(lambda: not watch.connected)
                server.start()
                wait_for(lambda: watch.connected)
                with TiledStore.connect(settings.tiled) as store:
                    store.models.create_container(key="two", metadata={"b": "x" * 2_000_000})
                    wait_for(lambda: any(key == "two" for key, _ in seen))
            assert watch.connections == 2
            assert len(connects) == 2
        assert not watch.connected


class TestExecutors:
    def test_inline(self):
        future = InlineExecutor().submit(divmod, 7, 2)
        assert future.result() == (3, 1)
        with pytest.raises(ZeroDivisionError):
            InlineExecutor().submit(divmod, 7, 0).result()

    def test_processes(self, settings):
        executor = make_executor(settings.worker)
        assert isinstance(executor, ProcessPoolExecutor)
        pids = {executor.submit(os.getpid).result(timeout=60) for _ in range(3)}
        assert len(pids) == 1
        assert os.getpid() not in pids
        executor.submit(time.sleep, 60)
        time.sleep(0.5)
        began = time.monotonic()
        stop_executor(executor, 0.5)
        assert time.monotonic() - began < 10
        assert not Path(f"/proc/{pids.pop()}").exists()


class TestProcess:
    def start(self, settings):
        process = subprocess.Popen(
            [sys.executable, "-m", "ptycho_bluesky.cli.main", "worker", "--config", str(settings.data_dir / "c.yml")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("READY worker"), process.communicate()
        return process

    def test_starts_and_ends(self, settings, store):
        settings.to_yaml(settings.data_dir / "c.yml")
        process = self.start(settings)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        wait_for(lambda: children.read_text().split())
        pids = children.read_text().split()
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=10)
        # What it had started ends by itself.
        wait_for(lambda: not any(is_running(pid) for pid in pids))
        process = self.start(settings)
        process.terminate()
        process.communicate(timeout=30)
        assert process.returncode == 0

    def test_unreachable(self, tmp_path):
        settings = make_settings(tmp_path)
        with pytest.raises(UnreachableError, match="ptycho-bluesky tiled"):
            Worker(settings)._connections.store()


def is_running(pid: str) -> bool:
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_state_survives(settings):
    folder = run_folder(settings, "a")
    assert folder.load() is None
    assert read_stage(settings, "a") is None
    folder.save(RunState("a", stage="train", done={"read": {"figures": {"x": np.float32(1.0)}}}))
    folder.report("train", 0.25, "loss 1 rad")
    assert folder.load().figures == {"x": 1.0}
    assert read_stage(settings, "a") == "train 25 % loss 1 rad"
    (folder.path / "state.json").write_text("{")
    with pytest.raises(InputError, match=r"state\.json"):
        folder.load()
    (folder.path / "state.json").write_text(json.dumps({"stage": "read"}))
    with pytest.raises(InputError, match="no state of a run"):
        folder.load()
