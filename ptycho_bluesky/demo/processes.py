"""Child processes of the demo: started with a log each, waited for, killed, restarted, always stopped."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from ptycho_bluesky.errors import UnreachableError

__all__ = ["ChildProcess", "ProcessSet", "free_ports"]

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S = 15.0


def free_ports(count: int) -> list[int]:
    """Ports that are free for TCP and UDP on loopback.

    They are held open until all are found, so that none is named twice.
    """
    held: list[socket.socket] = []
    ports: list[int] = []
    try:
        while len(ports) < count:
            tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            held.append(tcp)
            tcp.bind(("127.0.0.1", 0))
            port = tcp.getsockname()[1]
            udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            held.append(udp)
            try:
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            ports.append(port)
    finally:
        for sock in held:
            sock.close()
    return ports


class ChildProcess:
    """One ``ptycho-bluesky`` subcommand in a process group of its own, its output in a log file.

    Parameters
    ----------
    name : str
        Name in logs and messages.
    arguments : list of str
        Arguments of ``ptycho-bluesky``.
    log : path
        Standard output and error, appended over restarts.
    environment : dict
        Added to this process's environment.
    niceness : int
        Added to the scheduling niceness: 0 for what must keep pace, more for what may wait.
    """

    def __init__(
        self, name: str, arguments: list[str], log: Path, environment: dict[str, str], niceness: int = 0
    ) -> None:
        self.name, self.arguments, self.log = name, arguments, log
        self.environment, self.niceness = environment, niceness
        self.starts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._read_from = 0

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Process id, None when it was not started."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start it (again); `wait_ready` tells when it serves."""
        self._read_from = self.log.stat().st_size if self.log.exists() else 0
        command = [sys.executable, "-m", "ptycho_bluesky.cli.main", *self.arguments]
        if self.niceness:
            command = ["nice", "-n", str(self.niceness), *command]
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                command,
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **self.environment, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )
        self.starts += 1
        logger.debug("started %s (pid %d)", self.name, self._process.pid)

    def output(self) -> str:
        """What it has printed since it was last started."""
        with self.log.open("rb") as file:
            file.seek(self._read_from)
            return file.read().decode(errors="replace")

    def wait_ready(self, timeout_s: float = 90.0) -> str:
        """Wait for its ``READY`` line and return it.

        Raises
        ------
        UnreachableError
            It ended, or was not ready in time; the message holds the end of its log.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            found = re.search(r"^READY .*$", self.output(), re.MULTILINE)
            if found:
                return found.group()
            if not self.alive:
                break
            time.sleep(0.1)
        state = "did not become ready" if self.alive else "ended"
        tail = "\n".join(self.output().splitlines()[-12:])
        raise UnreachableError(
            f"process '{self.name}' {state}", f"its log ends with:\n{tail}", f"read {self.log} and start the demo again"
        )

    def kill(self) -> None:
        """Kill its whole group at once (SIGKILL), as a crash would."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait(timeout=STOP_TIMEOUT_S)

    def stop(self) -> None:
        """Ask it to end (SIGTERM), wait, and kill what is left of its group."""
        if self._process is None:
            return
        self._signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            logger.warning("%s did not end on SIGTERM within %.0f s; killing it", self.name, STOP_TIMEOUT_S)
        self._signal(signal.SIGKILL)
        self._process.wait(timeout=STOP_TIMEOUT_S)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            logger.debug("%s has no process left", self.name)


class ProcessSet:
    """The children of one demo, stopped in reverse order whatever happens.

    Parameters
    ----------
    log_dir : path
        Folder of the log files.
    environment : dict
        Given to every child.
    """

    def __init__(self, log_dir: Path, environment: dict[str, str]) -> None:
        self.log_dir, self.environment = log_dir, environment
        self.children: dict[str, ChildProcess] = {}
        log_dir.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, *arguments: str, niceness: int = 0) -> ChildProcess:
        """Start a child without waiting for it."""
        child = ChildProcess(name, list(arguments), self.log_dir / f"{name}.log", self.environment, niceness)
        self.children[name] = child
        child.start()
        return child

    def restart_after_kill(self, name: str) -> None:
        """Kill a child as a crash would, then start it again and wait until it serves."""
        child = self.children[name]
        child.kill()
        child.start()
        child.wait_ready()

    def check_alive(self) -> None:
        """Raise `UnreachableError` naming a child that has ended."""
        for child in self.children.values():
            if not child.alive:
                tail = "\n".join(child.output().splitlines()[-12:])
                raise UnreachableError(
                    f"process '{child.name}' ended", f"its log ends with:\n{tail}", f"see {child.log}"
                )

    def stop(self) -> None:
        """Stop all side by side, and only then the one started first, which the others lean on."""
        first, *others = self.children.values() or [None]
        stoppers = [threading.Thread(target=child.stop) for child in others if child is not None]
        for stopper in stoppers:
            stopper.start()
        for stopper in stoppers:
            stopper.join()
        if first is not None:
            first.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
