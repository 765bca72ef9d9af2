"""Documents over 0MQ and out of journals."""

from __future__ import annotations

import json
import pickle
import time

import msgpack
import numpy as np
import pytest
import zmq

from ptycho_bluesky.callbacks.publisher import DocumentPublisher
from ptycho_bluesky.config import ZmqSettings
from ptycho_bluesky.demo.processes import free_ports
from ptycho_bluesky.errors import UnreachableError
from ptycho_bluesky.streaming.recovery import DocumentRecovery, JournalFollower, JournalSource, TiledSource
from ptycho_bluesky.streaming.sources_documents import DocumentSubscriber, unpack_document
from ptycho_bluesky.workflow.proxy import DocumentProxy


def wait_for(condition, timeout_s=10.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def zmq_settings():
    publish, subscribe = (f"127.0.0.1:{port}" for port in free_ports(2))
    return ZmqSettings(publish=publish, subscribe=subscribe)


def write(directory, run, stop=True, lines=None):
    documents = run.all_documents()
    documents = documents if stop else documents[:-1]
    path = directory / f"{run.uid}.jsonl"
    text = "".join(json.dumps({"name": name, "doc": doc}) + "\n" for name, doc in documents[:lines])
    path.write_text(text)
    return path


def test_documents_pass_the_proxy_and_nonsense_costs_only_itself(zmq_settings):
    taken = []
    with DocumentProxy(zmq_settings):
        subscriber = DocumentSubscriber(zmq_settings.subscribe, lambda name, doc: taken.append((name, doc))).start(5.0)
        assert subscriber.connected.is_set()
        publisher = DocumentPublisher(zmq_settings.publish)
        raw = zmq.Context()
        socket = raw.socket(zmq.PUB)
        socket.connect(f"tcp://{zmq_settings.publish}")
        time.sleep(0.3)
        socket.send(b" start " + pickle.dumps({"uid": "evil"}))
        socket.send(b"nothing")
        socket.send(b" start " + msgpack.packb([1, 2]))
        wait_for(lambda: subscriber.undecodable == 3)
        publisher("start", {"uid": "a", "numbers": np.arange(3)})
        wait_for(lambda: taken)
        socket.close(0)
        raw.term()
        publisher.close()
        subscriber.close()
    assert taken == [("start", {"uid": "a", "numbers": [0, 1, 2]})]
    assert subscriber.received == 1


def test_a_proxy_that_comes_back_is_heard_again(zmq_settings):
    taken = []
    subscriber = DocumentSubscriber(zmq_settings.subscribe, lambda name, doc: taken.append(doc["uid"])).start(0.1)
    assert not subscriber.connected.is_set()
    for uid in ("one", "two"):
        with DocumentProxy(zmq_settings):
            assert subscriber.connected.wait(10)
            publisher = DocumentPublisher(zmq_settings.publish)
            time.sleep(0.5)
            publisher("start", {"uid": uid})
            wait_for(lambda uid=uid: uid in taken)
            publisher.close()
        wait_for(lambda: not subscriber.connected.is_set())
    subscriber.close()


def test_unpacking():
    assert unpack_document(b" stop " + msgpack.packb({"a": 1})) == ("stop", {"a": 1})
    with pytest.raises(ValueError, match="no document"):
        unpack_document(b"abc")


def test_journals_newest_first(fake_run, tmp_path):
    journals = tmp_path / "journal"
    assert JournalSource(journals).recent_runs(3) == []
    journals.mkdir()
    for run in (fake_run(), fake_run()):
        write(journals, run)
        time.sleep(0.02)
    runs = JournalSource(journals).recent_runs(3)
    assert [documents[0][1]["uid"] for documents in runs] == ["run-1", "run-0"]
    assert runs[0][-1][0] == "stop"


def test_follower_tells_only_what_is_new(fake_run, tmp_path):
    old, new = fake_run(), fake_run()
    write(tmp_path, old)
    follower = JournalFollower(tmp_path)
    assert follower.new_documents() == []
    write(tmp_path, new, lines=4)
    assert [name for name, _ in follower.new_documents()] == [name for name, _ in new.all_documents()[:4]]
    write(tmp_path, new)
    assert len(follower.new_documents()) == len(new.all_documents()) - 4
    assert follower.new_documents() == []


class Submitted(list):
    def __call__(self, documents, live):
        self.append((documents[0][1].get("uid"), live, len(documents)))


def test_recovery_takes_up_the_open_run_and_catches_up_the_finished(fake_run, tmp_path):
    done, without, going_on = fake_run(), fake_run(), fake_run()
    for run in (done, without):
        write(tmp_path, run)
        time.sleep(0.02)
    write(tmp_path, going_on, stop=False)
    submitted = Submitted()
    recovery = DocumentRecovery([JournalSource(tmp_path)], submitted, lambda uid: uid == done.uid, 10)
    assert recovery.recover_open()
    assert recovery.catch_up()
    assert submitted == [
        (going_on.uid, True, len(going_on.all_documents()) - 1),
        (without.uid, False, len(without.all_documents())),
    ]
    assert recovery.catch_up()
    assert not recovery.recover_open()
    assert len(submitted) == 2


def test_recovery_waits_until_it_can_be_told_what_has_a_result(fake_run, tmp_path):
    run = fake_run()
    write(tmp_path, run)
    away = [True]

    def has_result(uid):
        if away[0]:
            raise UnreachableError("tiled", "away")
        return False

    submitted = Submitted()
    recovery = DocumentRecovery([JournalSource(tmp_path)], submitted, has_result, 10)
    assert not recovery.catch_up()
    assert not submitted
    away[0] = False
    assert recovery.catch_up()
    assert len(submitted) == 1


def test_recovery_answers_to_unknown_documents(fake_run, tmp_path):
    run = fake_run()
    submitted = Submitted()
    recovery = DocumentRecovery([JournalSource(tmp_path)], submitted, None, 0, JournalFollower(tmp_path))
    recovery.start()
    assert recovery.first_look.wait(5)
    write(tmp_path, run)
    recovery.report_unknown("event", {})
    wait_for(lambda: submitted)
    recovery.stop()
    assert submitted[0][:2] == (run.uid, True)


def test_tiled_that_is_away_is_no_source():
    def connect():
        raise UnreachableError("tiled", "away")

    assert TiledSource(connect).recent_runs(1) == []
