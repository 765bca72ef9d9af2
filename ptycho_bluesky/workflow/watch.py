"""Hearing of changes in a container of Tiled, over its websocket, through restarts of the server.

Notes
-----
Tiled's own subscription is left alone in nothing here: it ends for good when the server ends the connection in an
orderly way or sends a message larger than ``max_size``, and after a restart of a server that keeps its updates in
memory it waits for sequence numbers that come only much later. So each broken connection gets a new subscription,
which replays what the server still remembers, and whoever listens is told to search for what was missed meanwhile.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import httpx

from ptycho_bluesky.config import TiledSettings
from ptycho_bluesky.errors import InputError, UnreachableError
from ptycho_bluesky.workflow.client import connect, get_child
from ptycho_bluesky.workflow.server import answers

__all__ = ["ContainerWatch"]

logger = logging.getLogger(__name__)

PING_S = 2.0
RENEW_S = 600.0
"""A server that keeps its updates in memory forgets how far it has counted for a container when a thousand other nodes
have changed since; a subscription then hears nothing more, without being told. So each one is renewed now and then."""
FIRST_WAIT_S, LAST_WAIT_S = 0.5, 5.0
MAX_MESSAGE_BYTES = 64 * 2**20
"""A start document with a long trajectory in it passes Tiled's default of 1 MB, which would end the subscription."""


class ContainerWatch:
    """Calls back for every child of a container that is created or whose metadata change.

    Parameters
    ----------
    settings : TiledSettings
        The server.
    container : str
        Key of the container at the root.
    on_update : callable
        Called with the child's key and its metadata, from a thread of the subscription; updates may come twice.
    on_connect : callable, optional
        Called, from the watch's thread, after each (re)connection: search for what was missed.

    Notes
    -----
    Runs on threads of its own; callbacks of one watch never overlap each other except `on_connect`. What they raise is
    logged.
    """

    def __init__(
        self,
        settings: TiledSettings,
        container: str,
        on_update: Callable[[str, Mapping[str, Any]], None],
        on_connect: Callable[[], None] | None = None,
    ) -> None:
        self._settings, self._container = settings, container
        self._on_update, self._on_connect = on_update, on_connect
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watch-{container}", daemon=True)
        self.connected = False
        """Whether a subscription stands."""
        self.connections = 0
        """How often one was made."""

    def start(self) -> Self:
        """Start watching; returns at once, whether the server is there or not."""
        self._thread.start()
        return self

    def stop(self, timeout_s: float = 15.0) -> None:
        """Stop watching."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        wait_s, told = FIRST_WAIT_S, False
        while not self._ending.is_set():
            try:
                self._watch_once()
                wait_s, told = FIRST_WAIT_S, False
            except (UnreachableError, InputError) as error:
                if not told:
                    logger.warning("not told of changes in '%s' for now: %s", self._container, error)
                told = True
                self._ending.wait(wait_s)
                wait_s = min(2 * wait_s, LAST_WAIT_S)

    def _watch_once(self) -> None:
        """Subscribe, and return when the connection is gone."""
        root = connect(self._settings)
        try:
            node = get_child(root, self._container)
            if node is None:
                raise InputError(
                    f"container '{self._container}' is not in Tiled at {self._settings.uri}", "", "it is made soon"
                )
            subscription = node.subscribe()
            # Bound methods: Tiled keeps weak references only, and these live as long as the watch.
            subscription.child_created.add_callback(self._updated)
            subscription.child_metadata_updated.add_callback(self._updated)
            closed = threading.Event()
            receiver = threading.Thread(
                target=self._receive, args=(subscription, closed), name=f"receive-{self._container}", daemon=True
            )
            receiver.start()
            self.connected = True
            self.connections += 1
            self._call(self._on_connect)
            try:
                renew_s = time.monotonic() + RENEW_S
                with httpx.Client(timeout=self._settings.timeout_s) as client:
                    while not (self._ending.is_set() or closed.wait(PING_S) or time.monotonic() > renew_s):
                        if not answers(self._settings.uri, client):
                            break
            finally:
                self.connected = False
                subscription.disconnect()
                receiver.join(timeout=10.0)
        finally:
            root.context.http_client.close()

    def _receive(self, subscription: Any, closed: threading.Event) -> None:
        try:
            # From as far back as the server remembers: nothing falls between search and subscription.
            subscription.start(0, max_size=MAX_MESSAGE_BYTES)
        except Exception as error:  # noqa: BLE001 whatever ends it, a new subscription follows
            logger.debug("subscription to '%s' ended: %s", self._container, error)
        finally:
            closed.set()

    def _updated(self, update: Any) -> None:
        self._call(self._on_update, str(update.key), update.metadata or {})

    @staticmethod
    def _call(function: Callable[..., None] | None, *arguments: Any) -> None:
        if function is None:
            return
        try:
            function(*arguments)
        except Exception:
            logger.exception("a listener failed; the watch goes on")
