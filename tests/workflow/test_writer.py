"""Journals come into Tiled once and whole, whatever dies meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid

import msgpack
import numpy as np
import pytest
from bluesky.callbacks.zmq import Publisher, RemoteDispatcher
from conftest_workflow import make_settings, wait_for
from workflow_scans import compose, journal, make_scan, write_file

from ptycho_bluesky.errors import InputError, UnreachableError
from ptycho_bluesky.workflow.journals import ABANDONED_REASON, Journal, merge_stream_datums
from ptycho_bluesky.workflow.proxy import DocumentProxy
from ptycho_bluesky.workflow.server import start_server
from ptycho_bluesky.workflow.tiled_store import TiledStore
from ptycho_bluesky.workflow.writer import JournalWriter, status_path


@pytest.fixture
def scan(raw_dir):
    made = make_scan()
    write_file(made, raw_dir / f"{uuid.uuid4().hex}.h5")
    compose(made)
    return made


@pytest.fixture
def writer(settings):
    made = JournalWriter(settings)
    yield made
    made.close()


def settle(writer):
    while writer.step():
        pass


def check_once(store, scan):
    """The run is there once, with every event once and every frame beside its position."""
    run = store.run(scan.uid)
    assert run.metadata["stop"]["uid"] == scan.documents[-1][1]["uid"]
    assert [summary.uid for summary in store.runs()].count(scan.uid) == 1
    for stream, column in (("segments", "segment_index"), ("segment_ends", "segment_index")):
        assert run[stream].base["internal"].read()[column].tolist() == list(range(len(scan.segments)))
    assert len(run["trajectory"].base["internal"].read()) == 1
    measurement = store.read_run(scan.uid)
    np.testing.assert_array_equal(measurement.image, scan.image)
    np.testing.assert_array_equal(measurement.position_m, scan.position_m)


class TestIngest:
    def test_whole_run(self, writer, store, settings, scan):
        assert writer.step() is False
        journal(scan, settings.journal_dir)
        settle(writer)
        check_once(store, scan)
        assert writer.status.runs_complete == 1
        assert writer.status.documents == len(scan.documents)

    def test_grows_document_by_document(self, writer, store, settings, scan):
        for k in range(len(scan.documents)):
            journal(scan, settings.journal_dir, start=k, count=k + 1)
            assert writer.step()
            if scan.documents[k][0] == "stream_datum":
                assert not store.run(scan.uid).metadata.get("stop")
        check_once(store, scan)
        assert writer.status.replays == 0

    def test_line_still_being_written(self, writer, store, settings, scan):
        path = journal(scan, settings.journal_dir)
        whole = path.read_bytes()
        path.write_bytes(whole[:-30])
        settle(writer)
        assert not store.run(scan.uid).metadata.get("stop")
        path.write_bytes(whole)
        settle(writer)
        check_once(store, scan)

    def test_second_writer_finds_it_complete(self, writer, store, settings, scan):
        journal(scan, settings.journal_dir)
        settle(writer)
        again = JournalWriter(settings)
        settle(again)
        assert again.status.documents == 0
        assert again.status.replays == 0
        again.close()
        check_once(store, scan)

    def test_writer_died_half_way(self, writer, store, settings, scan):
        half = len(scan.documents) // 2
        journal(scan, settings.journal_dir, count=half)
        settle(writer)
        again = JournalWriter(settings)
        journal(scan, settings.journal_dir, start=half)
        settle(again)
        again.close()
        assert again.status.replays == 1
        check_once(store, scan)
        assert scan.path.exists()

    def test_damaged_line_is_counted(self, writer, store, settings, scan):
        path = journal(scan, settings.journal_dir, count=2)
        with path.open("a") as file:
            file.write('{"name": "event", "doc\n')
        journal(scan, settings.journal_dir, start=2)
        settle(writer)
        check_once(store, scan)
        assert writer.status.documents_damaged == 1

    def test_one_bad_run_keeps_no_other_out(self, writer, store, settings, scan):
        bad = make_scan()
        bad.path = scan.path
        compose(bad)
        for name, doc in bad.documents:
            if name == "stream_resource":
                doc["mimetype"] = "application/x-nonsense"
        journal(bad, settings.journal_dir)
        journal(scan, settings.journal_dir)
        settle(writer)
        check_once(store, scan)
        writer._report()
        assert writer.status.runs_failed == 1
        assert list(writer.status.failures) == [bad.uid]
        assert json.loads(status_path(settings).read_text())["runs_failed"] == 1

    def test_several_runs_in_one_file(self, writer, store, settings, scan, raw_dir):
        other = make_scan(seed=1)
        write_file(other, raw_dir / f"{uuid.uuid4().hex}.h5")
        compose(other)
        path = settings.journal_dir / "many.jsonl"
        settings.journal_dir.mkdir()
        with path.open("w") as file:
            for made in (scan, other):
                for name, doc in made.documents:
                    file.write(json.dumps({"name": name, "doc": doc}) + "\n")
        settle(writer)
        check_once(store, scan)
        check_once(store, other)


class TestAbandoned:
    def test_superseded(self, writer, store, settings, scan, raw_dir):
        path = journal(scan, settings.journal_dir, count=-1)
        settle(writer)
        assert not store.run(scan.uid).metadata.get("stop")
        os.utime(path, (time.time() - 30, time.time() - 30))
        settle(writer)
        assert not store.run(scan.uid).metadata.get("stop")
        other = make_scan(seed=1)
        write_file(other, raw_dir / f"{uuid.uuid4().hex}.h5")
        compose(other)
        journal(other, settings.journal_dir)
        settle(writer)
        settle(writer)
        stop = store.run(scan.uid).metadata["stop"]
        assert stop["exit_status"] == "abort"
        assert stop["reason"] == ABANDONED_REASON
        assert stop["num_events"]["segments"] == 1
        assert len(store.read_run(scan.uid)) == 24
        assert writer.status.runs_abandoned == 1
        # Closed once and for all, also by the next writer.
        again = JournalWriter(settings)
        settle(again)
        again.close()
        assert again.status.replays == 0
        # Its session was only paused.
        journal(scan, settings.journal_dir, start=len(scan.documents) - 1)
        settle(writer)
        check_once(store, scan)

    def test_silent(self, settings, store, scan):
        path = journal(scan, settings.journal_dir, count=-1)
        os.utime(path, (time.time() - 30, time.time() - 30))
        writer = JournalWriter(settings, abandon_after_s=20.0)
        settle(writer)
        writer.close()
        assert store.run(scan.uid).metadata["stop"]["exit_status"] == "abort"


class TestOutage:
    def test_tiled_killed_mid_run(self, tmp_path):
        settings = make_settings(tmp_path)
        scans = []
        for k in range(2):
            made = make_scan(seed=k)
            settings.raw_dir.mkdir(exist_ok=True)
            write_file(made, settings.raw_dir / f"{k}.h5")
            compose(made)
            scans.append(made)
        stop = threading.Event()
        writer = JournalWriter(settings)
        with start_server(settings) as server:
            thread = threading.Thread(target=writer.run, args=(stop,))
            thread.start()
            half = len(scans[0].documents) // 2
            journal(scans[0], settings.journal_dir, count=half)
            wait_for(lambda: writer.status.documents >= half)
            server.kill()
            # The session goes on: a journal needs no server.
            journal(scans[0], settings.journal_dir, start=half)
            wait_for(lambda: not writer.status.tiled_reachable)
            journal(scans[1], settings.journal_dir)
            server.start()
            wait_for(lambda: writer.status.runs_complete == 2)
            stop.set()
            thread.join(timeout=20)
            assert not thread.is_alive()
            with TiledStore.connect(settings.tiled) as store:
                for made in scans:
                    check_once(store, made)
            assert writer.status.replays >= 1

    def test_unreachable_is_named(self, tmp_path, scan):
        settings = make_settings(tmp_path)
        journal(scan, settings.journal_dir)
        writer = JournalWriter(settings)
        with pytest.raises(UnreachableError, match=settings.tiled.uri):
            writer.step()
        assert not writer.status.tiled_reachable


class TestProcess:
    def start(self, settings):
        process = subprocess.Popen(
            [sys.executable, "-m", "ptycho_bluesky.cli.main", "writer", "--config", str(settings.data_dir / "c.yml")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("READY writer"), process.communicate()
        return process

    def test_killed_and_restarted_mid_run(self, settings, store, scan):
        settings.to_yaml(settings.data_dir / "c.yml")
        half = len(scan.documents) // 2
        process = self.start(settings)
        journal(scan, settings.journal_dir, count=half)
        wait_for(lambda: any(run.uid == scan.uid for run in store.runs()))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=10)
        journal(scan, settings.journal_dir, start=half)
        process = self.start(settings)
        wait_for(lambda: any(run.uid == scan.uid and run.stop for run in store.runs()))
        with pytest.raises(InputError, match="runs already"):
            JournalWriter(settings).run(threading.Event())
        process.terminate()
        process.communicate(timeout=20)
        assert process.returncode == 0
        check_once(store, scan)
        shown = subprocess.run(
            [sys.executable, "-m", "ptycho_bluesky.cli.main", "writer", "--status", "--config",
             str(settings.data_dir / "c.yml")],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert "runs complete" in shown.stdout


def test_merge_stream_datums():
    def datum(resource, start, stop, descriptor="d"):
        span = {"start": start, "stop": stop}
        return "stream_datum", {
            "uid": f"{resource}{start}",
            "stream_resource": resource,
            "descriptor": descriptor,
            "indices": span,
            "seq_nums": {"start": start + 1, "stop": stop + 1},
        }

    documents = [
        datum("a", 0, 2),
        datum("b", 0, 2),
        ("event", {}),
        datum("a", 2, 5),
        datum("b", 3, 4),
        datum("a", 5, 6),
    ]
    merged = merge_stream_datums(documents)
    assert [(doc.get("stream_resource"), doc.get("indices")) for _, doc in merged] == [
        ("a", {"start": 0, "stop": 6}),
        ("b", {"start": 0, "stop": 2}),
        (None, None),
        ("b", {"start": 3, "stop": 4}),
    ]
    assert merged[0][1]["seq_nums"] == {"start": 1, "stop": 7}


def test_journal_reads_no_further_than_given_out(tmp_path, scan):
    path = journal(scan, tmp_path, count=3)
    reader = Journal(path)
    assert len(reader.new_documents()) == 3
    journal(scan, tmp_path, start=3)
    assert len(reader.documents(scan.uid)) == 3
    assert len(reader.new_documents()) == len(scan.documents) - 3
    shutil.rmtree(tmp_path)


class TestProxy:
    def test_forwards(self, tmp_path):
        settings = make_settings(tmp_path).zmq
        received = []
        with DocumentProxy(settings) as proxy:
            dispatcher = RemoteDispatcher(settings.subscribe, deserializer=msgpack.unpackb)
            token = dispatcher.subscribe(lambda name, doc: received.append((name, doc)))
            thread = threading.Thread(target=run_dispatcher, args=(dispatcher,), daemon=True)
            thread.start()
            publisher = Publisher(settings.publish, serializer=msgpack.packb)
            deadline = time.monotonic() + 20
            while not received and time.monotonic() < deadline:
                publisher("start", {"uid": "a", "time": 1.0})
                time.sleep(0.1)
            publisher.close()
            dispatcher.unsubscribe(token)
            dispatcher.loop.call_soon_threadsafe(dispatcher._task.cancel)
            thread.join(timeout=5)
            assert not thread.is_alive()
            assert received[0] == ("start", {"uid": "a", "time": 1.0})
        assert not proxy.alive

    def test_taken_address(self, tmp_path):
        settings = make_settings(tmp_path).zmq
        with DocumentProxy(settings), pytest.raises(InputError, match="document proxy binds both"):
            DocumentProxy(settings)
        with DocumentProxy(settings) as again:
            assert again.alive


def run_dispatcher(dispatcher):
    with contextlib.suppress(asyncio.CancelledError):
        dispatcher.start()
    dispatcher.loop.close()
