"""The 0MQ proxy between sessions, which publish documents, and edges, which subscribe to them."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

import zmq
from bluesky.callbacks.zmq import Proxy

from ptycho_bluesky.config import ZmqSettings
from ptycho_bluesky.errors import InputError

__all__ = ["DocumentProxy"]


POLL_MS = 200


class _StoppableProxy(Proxy):
    """Bluesky's proxy, whose own loop runs until the process is interrupted, with a loop that can be ended."""

    def __init__(self, publish: str, subscribe: str) -> None:
        super().__init__(publish, subscribe)
        self.ending = threading.Event()

    def start(self) -> None:
        try:
            while not self.ending.is_set():
                if self._frontend.poll(POLL_MS):
                    self._backend.send_multipart(self._frontend.recv_multipart())
        finally:
            self.closed = True
            self._frontend.close(linger=0)
            self._backend.close(linger=0)
            self._context.term()


class DocumentProxy:
    """Bluesky's proxy on a thread, bound to the addresses of the settings; it forwards bytes and decodes nothing.

    Parameters
    ----------
    settings : ZmqSettings
        Where sessions publish to and edges subscribe to.

    Raises
    ------
    InputError
        An address cannot be bound.
    """

    def __init__(self, settings: ZmqSettings) -> None:
        try:
            self._proxy = _StoppableProxy(settings.publish, settings.subscribe)
        except zmq.ZMQError as error:
            raise InputError(
                f"zmq.publish = {settings.publish}, zmq.subscribe = {settings.subscribe}: {error}",
                "the document proxy binds both",
                "stop the other proxy, or set free ports in the configuration",
            ) from error
        self._thread = threading.Thread(target=self._proxy.start, name="document-proxy", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it forwards."""
        return self._thread.is_alive()

    def close(self) -> None:
        """End it and free its ports."""
        self._proxy.ending.set()
        self._thread.join(timeout=5.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
