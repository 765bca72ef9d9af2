"""Documents over 0MQ, packed with msgpack (never pickle)."""

from __future__ import annotations

from typing import Any, cast

import msgpack
from bluesky.callbacks.zmq import Publisher

from ptycho_bluesky.callbacks.guard import Guarded
from ptycho_bluesky.callbacks.plain import plain_document

__all__ = ["DocumentPublisher", "pack_document"]


def pack_document(doc: dict[str, Any]) -> bytes:
    """Pack a document into msgpack, NumPy values turned into plain ones: whoever reads it needs no object hook."""
    return cast("bytes", msgpack.packb(plain_document(doc), use_bin_type=True))


class DocumentPublisher:
    """Publishes to the document proxy; a failure is logged once a run and never ends a scan.

    Parameters
    ----------
    address : str
        ``host:port`` that the proxy takes documents on.

    Notes
    -----
    0MQ connects in the background and drops what nobody takes: a proxy that is away costs nothing, and the journal
    holds what it missed.
    """

    def __init__(self, address: str) -> None:
        self._publisher = Publisher(address, serializer=pack_document)
        self._guarded = Guarded(
            self._publisher, f"publishing documents to {address}", "consumers catch up from the journal"
        )

    @property
    def failures(self) -> int:
        """Documents that could not be published."""
        return self._guarded.failures

    def __call__(self, name: str, doc: dict[str, Any]) -> None:
        """Publish a document."""
        self._guarded(name, doc)

    def close(self) -> None:
        """Close the socket, at once."""
        self._publisher._context.destroy(linger=0)
