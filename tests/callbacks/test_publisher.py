"""Documents over 0MQ, and callbacks that may fail."""

from __future__ import annotations

import logging
import time

import msgpack
import numpy as np
import pytest
import zmq
from bluesky import RunEngine
from bluesky.plans import count
from ophyd.sim import SynSignal

from ptycho_bluesky.callbacks.guard import Guarded
from ptycho_bluesky.callbacks.publisher import DocumentPublisher, pack_document


@pytest.fixture
def signal() -> SynSignal:
    return SynSignal(func=lambda: np.float32(2.5), name="detector")


def test_documents_arrive_without_pickle(free_ports, signal):
    (port,) = free_ports(1)
    context = zmq.Context()
    subscriber = context.socket(zmq.SUB)
    subscriber.bind(f"tcp://127.0.0.1:{port}")
    subscriber.setsockopt(zmq.SUBSCRIBE, b"")
    subscriber.setsockopt(zmq.RCVTIMEO, 10_000)
    publisher = DocumentPublisher(f"127.0.0.1:{port}")
    try:
        subscriber.poll(1000)  # the subscription is sent by whoever looks at the socket
        run_engine = RunEngine({})
        run_engine.subscribe(publisher)
        run_engine(count([signal], 1))
        received = [subscriber.recv().split(b" ", 2) for _ in range(4)]
    finally:
        publisher.close()
        context.destroy(linger=0)
    assert [prefix for prefix, _, _ in received] == [b""] * 4
    assert [name for _, name, _ in received] == [b"start", b"descriptor", b"event", b"stop"]
    assert msgpack.unpackb(received[2][2])["data"] == {"detector": 2.5}
    assert publisher.failures == 0


def test_arrays_become_lists():
    packed = pack_document({"data": {"position": np.arange(3.0), "count": np.int64(3)}})
    assert msgpack.unpackb(packed) == {"data": {"position": [0.0, 1.0, 2.0], "count": 3}}


def test_nobody_listening_does_not_hold_up_a_scan(free_ports, signal):
    (port,) = free_ports(1)
    publisher = DocumentPublisher(f"127.0.0.1:{port}")
    run_engine = RunEngine({})
    run_engine.subscribe(publisher)
    begun = time.monotonic()
    assert len(run_engine(count([signal], 5))) == 1
    assert time.monotonic() - begun < 5
    publisher.close()


def test_failure_is_logged_once_a_run_and_ends_no_scan(signal, caplog):
    publisher = DocumentPublisher("127.0.0.1:1")
    publisher.close()
    run_engine = RunEngine({})
    run_engine.subscribe(publisher)
    with caplog.at_level(logging.ERROR, logger="ptycho_bluesky"):
        run_engine(count([signal], 3))
    assert publisher.failures == 6
    assert sum("publishing documents" in record.message for record in caplog.records) == 1
    assert "journal" in caplog.text


def test_guarded_callback_passes_documents_on(signal):
    seen = []
    run_engine = RunEngine({})
    run_engine.subscribe(Guarded(lambda name, doc: seen.append(name), "a list"))
    run_engine(count([signal], 1))
    assert seen == ["start", "descriptor", "event", "stop"]
