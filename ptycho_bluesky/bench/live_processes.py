"""Child processes of the live bench that talk in lines of JSON, and what they report of themselves."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ptycho_bluesky.errors import UnreachableError

__all__ = ["LineProcess", "answer_lines", "process_load"]

STOP_TIMEOUT_S = 15.0
PAGE_BYTES = resource.getpagesize()


def process_load() -> dict[str, float]:
    """CPU seconds of this process so far, and the memory that it holds now in bytes."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        held = int(statm.read_text().split()[1]) * PAGE_BYTES
    else:  # not Linux: the largest so far
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"cpu_s": time.process_time(), "rss_bytes": held}


def answer_lines(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer lines of JSON on standard input with lines of JSON until the input ends or a line is empty."""
    _say({"ready": True})
    for line in sys.stdin:
        if not line.strip():
            return
        _say(answer(json.loads(line)))


def _say(content: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


class LineProcess:
    """A Python module run as a process of its own; use it as a context manager.

    Parameters
    ----------
    name : str
        For messages.
    arguments : list of str
        After ``python -m``.
    log : path
        Its standard error.
    environment : mapping
        Added to this process's.
    """

    def __init__(self, name: str, arguments: list[str], log: Path, environment: Mapping[str, str]) -> None:
        self.name, self.log = name, log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, **environment, "PYTHONUNBUFFERED": "1"},
            )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name=f"{name}-output", daemon=True)
        self._reader.start()

    def wait_ready(self, timeout_s: float = 120.0) -> dict[str, Any]:
        """Wait for the line that says that it serves."""
        return self.receive(timeout_s)

    def ask(self, timeout_s: float = 30.0, **content: Any) -> dict[str, Any]:
        """Send a line and wait for the answer."""
        self.send(**content)
        return self.receive(timeout_s)

    def send(self, **content: Any) -> None:
        """Send a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(content) + "\n")
        self._process.stdin.flush()

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """Wait for the next line.

        Raises
        ------
        UnreachableError
            It ended, or did not answer in time.
        """
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            line = ""
        if not line:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-12:])
            raise UnreachableError(f"process '{self.name}'", f"it ended or does not answer; its log ends with:\n{tail}")
        return json.loads(line)

    def stop(self) -> None:
        """End its input, wait, and kill it if that does not help."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):  # it has ended already
                self._process.stdin.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_TIMEOUT_S)
        self._reader.join(STOP_TIMEOUT_S)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> LineProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")
