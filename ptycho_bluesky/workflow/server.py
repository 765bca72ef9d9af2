"""The embedded Tiled server: catalogue and storage on local disk, one process, live subscriptions from memory.

Notes
-----
A facility's own Tiled server serves as well; then nothing of this module runs, and that server needs the detector's
directory in ``readable_storage`` (a file outside it answers 500 when it is read), ``streaming_cache``, and the
``json-seq`` exporter for ``run.documents()``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import httpx

from ptycho_bluesky.config import Settings
from ptycho_bluesky.errors import InputError, StorageError, UnreachableError
from ptycho_bluesky.workflow.storage_repair import set_orphans_aside

if TYPE_CHECKING:
    import uvicorn

__all__ = ["CATALOGUE", "ServerProcess", "serve", "server_config", "start_server", "web_address"]

logger = logging.getLogger(__name__)

CATALOGUE = "catalog.db"
"""File of the embedded server's catalogue in ``tiled_dir``."""

CACHE_S = 60
"""Seconds for which the server remembers updates, contents included: mosaics come every second, labels are large."""
GRACE_S = 3
"""Seconds that open requests and websockets get when the server ends."""


def server_config(settings: Settings, readable: Sequence[Path] = ()) -> dict[str, Any]:
    """Configuration of Tiled, as ``tiled serve config`` would read it from YAML.

    Parameters
    ----------
    settings : Settings
        ``tiled_dir`` holds catalogue and storage, ``raw_dir`` the detector's files.
    readable : sequence of path
        Further directories with files that runs point to.

    Raises
    ------
    StorageError
        The directory of the catalogue cannot be made.
    """
    storage = settings.tiled_dir.resolve()
    try:
        (storage / "arrays").mkdir(parents=True, exist_ok=True)
        settings.raw_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"directory {storage}: {error}", "the server keeps its catalogue there", "name another with --data-dir"
        ) from error
    exporter = "bluesky_tiled_plugins.exporters:json_seq_exporter"
    return {
        "catalog": {
            "uri": f"sqlite:///{storage / CATALOGUE}",
            "writable_storage": [str(storage / "arrays"), f"duckdb:///{storage / 'tables.duckdb'}"],
            "readable_storage": [str(folder.resolve()) for folder in (settings.raw_dir, *readable)],
            "init_if_not_exists": True,
        },
        "authentication": {
            "single_user_api_key": settings.tiled.api_key.get_secret_value(),
            "allow_anonymous_access": False,
        },
        "streaming_cache": {"uri": "memory", "data_ttl": CACHE_S},
        "media_types": {"BlueskyRun": {"application/json-seq": exporter}},
    }


def web_address(settings: Settings) -> str:
    """Address for a browser, with the key in it."""
    return f"{settings.tiled.uri.rstrip('/')}?api_key={settings.tiled.api_key.get_secret_value()}"


def _host_port(uri: str) -> tuple[str, int]:
    parts = urlparse(uri)
    if parts.scheme != "http" or not parts.hostname:
        raise InputError(
            f"tiled.uri = {uri!r}", "the embedded server is reached by http://HOST:PORT", "e.g. http://127.0.0.1:8000"
        )
    return parts.hostname, parts.port or 8000


def _check_free(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As uvicorn does: a port in TIME_WAIT after a restart is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(
                f"port {port} on {host}: {error.strerror}", "the server needs it", "set tiled.uri to a free port"
            ) from error


def serve(settings: Settings, readable: Sequence[Path] = (), ready: Callable[[], None] | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Parameters
    ----------
    settings : Settings
        Host and port come from ``tiled.uri``.
    readable : sequence of path
        Further directories with files that runs point to.
    ready : callable, optional
        Called once when the server answers.

    Raises
    ------
    InputError
        The port is taken or the URI no local one.
    StorageError
        The directory cannot be written.
    """
    host, port = _host_port(settings.tiled.uri)
    _check_free(host, port)
    config = server_config(settings, readable)
    set_orphans_aside(settings.tiled_dir)
    import uvicorn
    from tiled.server.app import build_app_from_config

    app = build_app_from_config(config)
    server = _server_class()(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            log_config=None,
            access_log=False,
            loop="asyncio",
            timeout_graceful_shutdown=GRACE_S,
        ),
        ready,
    )
    try:
        server.run()
    finally:
        _dispose(config["catalog"]["writable_storage"])


def _server_class() -> type[Any]:
    """Uvicorn's server, told to call back once it serves and to end quietly on a signal."""
    import uvicorn

    class Server(uvicorn.Server):
        def __init__(self, config: uvicorn.Config, ready: Callable[[], None] | None) -> None:
            super().__init__(config)
            self._ready = ready

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            if self.started and self._ready is not None:
                self._ready()

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            # uvicorn raises the signal once more when it has shut down; the exit code should be 0 here.
            if threading.current_thread() is not threading.main_thread():
                yield
                return

            def end(number: int, frame: FrameType | None) -> None:
                self.handle_exit(number, frame)

            previous = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield
            finally:
                for number, handler in previous.items():
                    signal.signal(number, handler)

    return Server


def _dispose(uris: Sequence[str]) -> None:
    """Close the pools of the tables' databases: their threads would keep the process alive."""
    from tiled.storage import SQLStorage, get_storage

    for uri in uris:
        if "://" not in uri:
            continue
        try:
            storage = get_storage(uri)
        except KeyError:
            continue
        if isinstance(storage, SQLStorage):
            storage.dispose()


class ServerProcess:
    """``ptycho-bluesky tiled`` in a child process, for tests and notebooks.

    Parameters
    ----------
    settings : Settings
        Data directory, URI and key.
    log : path
        Its output; by default ``tiled.log`` beside the catalogue.
    readable : sequence of path
        Further directories with files that runs point to.
    """

    def __init__(self, settings: Settings, log: Path | None = None, readable: Sequence[Path] = ()) -> None:
        self.settings, self.readable = settings, tuple(readable)
        self.log = log or settings.tiled_dir / "tiled.log"
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._lines: queue.Queue[str] = queue.Queue()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def start(self, timeout_s: float = 120.0) -> None:
        """Start it and wait until it serves.

        Raises
        ------
        UnreachableError
            It ended, or did not serve in time.
        """
        self.log.parent.mkdir(parents=True, exist_ok=True)
        arguments = [f"--readable={folder}" for folder in self.readable]
        environment = {
            "PTYCHO_BLUESKY_DATA_DIR": str(self.settings.data_dir.resolve()),
            "PTYCHO_BLUESKY_TILED__URI": self.settings.tiled.uri,
            "PTYCHO_BLUESKY_TILED__API_KEY": self.settings.tiled.api_key.get_secret_value(),
            "PYTHONUNBUFFERED": "1",
        }
        self._lines = queue.Queue()
        with self.log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ptycho_bluesky.cli.main", "tiled", *arguments],
                stdout=subprocess.PIPE,
                stderr=errors,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **environment},
                text=True,
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()
        self._wait_ready(timeout_s)

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self._lines.put(line)

    def _wait_ready(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while self.alive and time.monotonic() < deadline:
            try:
                if self._lines.get(timeout=0.2).startswith("READY "):
                    return
            except queue.Empty:
                continue
        state = "did not serve in time" if self.alive else "ended"
        self.kill()
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-12:])
        raise UnreachableError(
            f"Tiled server at {self.settings.tiled.uri} {state}", f"its log ends with:\n{tail}", f"read {self.log}"
        )

    def stop(self, timeout_s: float = 20.0) -> int | None:
        """End it with SIGTERM and return its exit code; one that does not end in time is killed."""
        return self._end(signal.SIGTERM, timeout_s)

    def kill(self) -> int | None:
        """End it as a crash would (SIGKILL)."""
        return self._end(signal.SIGKILL, 20.0)

    def _end(self, number: signal.Signals, timeout_s: float) -> int | None:
        if self._process is None:
            return None
        if self.alive:
            self._process.send_signal(number)
        try:
            code = self._process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            logger.warning("the Tiled server did not end within %.0f s and is killed", timeout_s)
            self._process.kill()
            code = self._process.wait(timeout=timeout_s)
        if self._reader is not None:
            self._reader.join(timeout=5.0)
        return code


@contextlib.contextmanager
def start_server(
    settings: Settings, readable: Sequence[Path] = (), timeout_s: float = 120.0
) -> Iterator[ServerProcess]:
    """Run the embedded server in a child process for the time of a ``with`` block.

    Parameters
    ----------
    settings : Settings
        Data directory, URI and key.
    readable : sequence of path
        Further directories with files that runs point to.
    timeout_s : float
        How long it may take to serve.

    Yields
    ------
    ServerProcess
        With `ServerProcess.kill` and `ServerProcess.start` for tests of outages.
    """
    process = ServerProcess(settings, readable=readable)
    process.start(timeout_s)
    try:
        yield process
    finally:
        process.stop()


def answers(uri: str, client: httpx.Client) -> bool:
    """Whether a Tiled server answers at the address; a client that is kept saves the 30 ms that each new one costs."""
    try:
        reply = client.get(f"{uri.rstrip('/')}/healthz")
    except httpx.HTTPError:
        return False
    return reply.is_success
