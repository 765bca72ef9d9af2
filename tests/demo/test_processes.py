"""Children of the demo are waited for, and none outlives it."""

from __future__ import annotations

import os
import socket
import time

import pytest

from ptycho_bluesky.demo.processes import ChildProcess, free_ports
from ptycho_bluesky.errors import UnreachableError


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_free_ports_are_distinct_and_bindable():
    ports = free_ports(6)
    assert len(set(ports)) == 6
    for port in ports:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", port))


def test_a_child_that_ends_is_named_with_its_log(tmp_path):
    child = ChildProcess("odd", ["no-such-subcommand"], tmp_path / "odd.log", {})
    child.start()
    with pytest.raises(UnreachableError, match=r"(?s)process 'odd' ended.*no-such-subcommand"):
        child.wait_ready(timeout_s=60)
    assert not child.alive


def test_stop_ends_the_process(tmp_path):
    child = ChildProcess("slow", ["--help"], tmp_path / "slow.log", {})
    child.start()
    pid = child.pid
    assert pid is not None
    child.stop()
    deadline = time.monotonic() + 5
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(pid)
