"""The edge as its own process: started, killed, restarted, given models, without Tiled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from ptycho_bluesky.config import ZmqSettings
from ptycho_bluesky.streaming.spool import Spool

N = 600
pytestmark = pytest.mark.slow


class EdgeProcess:
    """The edge as a user starts it."""

    def __init__(self, config: Path, log: Path, *arguments: str) -> None:
        self.log = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ptycho_bluesky.cli.main", "edge", "--config", str(config), *arguments],
                stdout=subprocess.PIPE,
                stderr=out,
                text=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )

    def wait_ready(self) -> str:
        line = self.process.stdout.readline()
        assert line.startswith("READY edge"), self.log.read_text()
        return line

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)
        self.process.stdout.close()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(30)
        self.process.stdout.close()
        return code


@pytest.fixture(scope="module")
def _proxied(_one_session, free_ports_once):
    """The session publishes to a proxy of this module."""
    from ptycho_bluesky.callbacks.publisher import DocumentPublisher
    from ptycho_bluesky.workflow.proxy import DocumentProxy

    publish, subscribe = (f"127.0.0.1:{port}" for port in free_ports_once)
    zmq = ZmqSettings(publish=publish, subscribe=subscribe)
    with DocumentProxy(zmq):
        publisher = DocumentPublisher(publish)
        token = _one_session.RE.subscribe(publisher)
        yield zmq
        _one_session.RE.unsubscribe(token)
        publisher.close()


@pytest.fixture(scope="module")
def free_ports_once():
    from ptycho_bluesky.demo.processes import free_ports

    return free_ports(2)


@pytest.fixture
def edge_settings(session, _proxied, tmp_path):
    """Settings of an edge with a folder of its own beside the session's journals."""
    settings = session.settings.model_copy(deep=True)
    settings.zmq = _proxied
    settings.edge.prefix = f"{settings.epics.prefix}E{time.monotonic_ns()}:"
    settings.edge.catch_up_runs = 1
    settings.data_dir = tmp_path
    # the session's journals are where they are; the edge finds them through a link
    settings.journal_dir.symlink_to(session.settings.journal_dir, target_is_directory=True)
    return settings


@pytest.fixture
def start_edge(edge_settings, tmp_path):
    config = tmp_path / "edge.yml"
    edge_settings.to_yaml(config)
    started: list[EdgeProcess] = []

    def start(*arguments: str) -> EdgeProcess:
        edge = EdgeProcess(config, tmp_path / "edge.log", "--no-tiled", *arguments)
        started.append(edge)
        edge.wait_ready()
        return edge

    yield start
    for edge in started:
        if edge.process.poll() is None:
            edge.kill()


def wait_for(condition, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.05)
    return found


def value(settings, name):
    channel = import_module("pvaccess").Channel(settings.edge.prefix + name)
    channel.setTimeout(5.0)
    return channel.get("field(value)")["value"]


def result_of(settings, uid):
    spool = Spool(settings.edge_dir)
    wait_for(lambda: uid in spool.uids())
    return spool.read(uid)


def assert_all_there(result, n=N):
    counts = result.counts
    assert (counts.generated, counts.inferred, counts.lost, counts.unaccounted) == (n, n, 0, 0)
    np.testing.assert_array_equal(result.mosaic.frame_log["frame_index"], np.arange(n))
    assert result.complete


def fly(session, n=N):
    return session.fly_spiral(num_points=n, step_m=50e-9, exposure_s=0.8e-3, period_s=2e-3)


def test_a_scan_with_a_model_that_comes_on_the_way(session, documents, edge_settings, start_edge, tmp_path):
    from ptycho_bluesky.records import ModelStage
    from ptycho_bluesky.training.registry import LocalModelStore

    store = LocalModelStore(tmp_path / "models")
    edge = start_edge("--models", str(store.directory))
    wait_for(lambda: value(edge_settings, "State") == "ready")
    assert value(edge_settings, "Model:Id") == ""
    (uid,) = session.RE(fly(session))
    first = result_of(edge_settings, uid)
    assert_all_there(first)
    assert first.counts.received == N
    assert first.mosaic.model_ids == ()
    wait_for(lambda: value(edge_settings, "State") == "ready")
    assert value(edge_settings, "Counts:Inferred") == N
    assert value(edge_settings, "Run:Uid") == uid

    record, content = small_model()
    store.put(record, content)
    store.set_stage(record.model_id, ModelStage.PROMOTED, "test")
    wait_for(lambda: value(edge_settings, "Model:Id") == record.model_id)
    documents.clear()
    (uid,) = session.RE(fly(session))
    second = result_of(edge_settings, uid)
    assert_all_there(second)
    assert second.mosaic.model_ids == (record.model_id,)
    assert second.mosaic.coverage.max() > 0
    assert edge.stop() == 0


def test_killed_and_restarted_in_the_middle_of_a_scan(session, documents, edge_settings, start_edge):
    first = start_edge()
    restarted = []

    def kill(name, doc):
        if name == "stream_datum" and not restarted:
            first.kill()
            restarted.append(threading.Thread(target=start_edge))
            restarted[0].start()

    documents.hooks.append(kill)
    (uid,) = session.RE(fly(session, 3000))
    restarted[0].join(60)
    result = result_of(edge_settings, uid)
    assert_all_there(result, 3000)
    assert result.counts.recovered > 0


def test_a_run_that_ended_without_edge_is_caught_up(session, documents, edge_settings, start_edge):
    (uid,) = session.RE(fly(session))
    edge = start_edge()
    result = result_of(edge_settings, uid)
    assert_all_there(result)
    assert result.counts.recovered == N
    assert value(edge_settings, "State") == "ready"
    assert edge.stop() == 0


def small_model():
    import hashlib

    import torch

    from ptycho_bluesky.models import build
    from ptycho_bluesky.models.export import to_onnx
    from ptycho_bluesky.records import ModelRecord, ModelStage

    torch.manual_seed(0)
    content = to_onnx(build("ptychonn2"), (32, 32), 1.0, {"sqrt": True, "scale": 0.1}, {})
    record = ModelRecord(
        model_id=hashlib.sha256(content).hexdigest(),
        parent_id="",
        stage=ModelStage.CANDIDATE,
        architecture="ptychonn2",
        image_shape=(32, 32),
        patch_shape=(32, 32),
        pixel_size_m=float("nan"),
        count_scale=1.0,
        training_runs=(),
        recipe={},
        validation={},
        geometry=None,
        regime={},
        created_s=time.time(),
    )
    return record, content
