"""Documents from the 0MQ proxy: msgpack, never pickle, and a message that cannot be read costs only itself."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import msgpack
import msgpack_numpy
import zmq
from zmq.utils.monitor import recv_monitor_message

__all__ = ["DocumentSubscriber", "unpack_document"]

logger = logging.getLogger(__name__)

POLL_MS = 200
RECEIVE_BUFFER = 100_000
RECONNECT_MS, RECONNECT_MAX_MS = 100, 2000


def unpack_document(message: bytes) -> tuple[str, dict[str, Any]]:
    """Name and document of a message of `bluesky.callbacks.zmq.Publisher`.

    Raises
    ------
    ValueError
        It is none, or not msgpack.
    """
    parts = message.split(b" ", 2)
    if len(parts) != 3:
        raise ValueError(f"a message of {len(message)} bytes that is no document")
    _, name, payload = parts
    doc = msgpack.unpackb(payload, object_hook=msgpack_numpy.decode, raw=False, strict_map_key=False)
    if not isinstance(doc, dict):
        raise ValueError(f"a {type(doc).__name__} where a document is expected")
    return name.decode(), doc


class DocumentSubscriber:
    """Listens to the document proxy in a thread of its own; it reconnects by itself.

    Parameters
    ----------
    address : str
        ``host:port`` of the proxy's publishing side.
    take : callable
        ``take(name, doc)``.
    """

    def __init__(self, address: str, take: Callable[[str, dict[str, Any]], Any]) -> None:
        self.address, self._take = address, take
        self.received = 0
        self.undecodable = 0
        self.connected = threading.Event()
        """Set while the proxy answers."""
        self._stop = threading.Event()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.RCVHWM, RECEIVE_BUFFER)
        self._socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt_string(zmq.SUBSCRIBE, "")
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        self._thread = threading.Thread(target=self._run, name="edge-documents", daemon=True)

    def start(self, wait_s: float = 0.0) -> DocumentSubscriber:
        """Start listening, and wait a while for the proxy: what is sent before the connection stands is not heard."""
        self._socket.connect(self.address if "://" in self.address else f"tcp://{self.address}")
        self._thread.start()
        if wait_s and self.connected.wait(wait_s):
            time.sleep(0.05)  # the subscription follows the handshake
        return self

    def close(self, timeout_s: float = 3.0) -> None:
        """Stop listening."""
        if self._socket.closed:
            return
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(0)
        self._context.term()

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)
        while not self._stop.is_set():
            ready = dict(poller.poll(POLL_MS))
            if self._monitor in ready:
                event = recv_monitor_message(self._monitor)["event"]
                if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                    logger.info("documents come from %s", self.address)
                    self.connected.set()
                elif self.connected.is_set():
                    logger.warning(
                        "the document proxy at %s is away; documents are read from the journal", self.address
                    )
                    self.connected.clear()
            if self._socket in ready:
                self._receive(self._socket.recv())

    def _receive(self, message: bytes) -> None:
        try:
            name, doc = unpack_document(message)
        except Exception as error:  # noqa: BLE001 - whatever the message holds, the next one is read
            self.undecodable += 1
            if self.undecodable == 1:
                logger.warning("a message that is no document is skipped: %s", error)
            return
        self.received += 1
        self._take(name, doc)
