"""One connection to Tiled a thread: the loop of the worker and its runs never wait for each other's requests."""

from __future__ import annotations

import threading

from ptycho_bluesky.config import TiledSettings
from ptycho_bluesky.workflow.tiled_store import TiledStore

__all__ = ["Connections"]


class Connections:
    """Connections of the threads of one process, each made when it is first asked for.

    Parameters
    ----------
    settings : TiledSettings
    """

    def __init__(self, settings: TiledSettings) -> None:
        self._settings = settings
        self._own = threading.local()
        self._all: list[TiledStore] = []
        self._lock = threading.Lock()

    @property
    def connected(self) -> bool:
        """Whether this thread has a connection."""
        return getattr(self._own, "store", None) is not None

    def store(self) -> TiledStore:
        """Connection of this thread.

        Raises
        ------
        UnreachableError
            Tiled does not answer.
        """
        store: TiledStore | None = getattr(self._own, "store", None)
        if store is None:
            store = self._own.store = TiledStore.connect(self._settings)
            with self._lock:
                self._all.append(store)
        return store

    def drop(self) -> None:
        """Close the connection of this thread; the next `store` makes a new one."""
        store: TiledStore | None = getattr(self._own, "store", None)
        if store is not None:
            self._own.store = None
            with self._lock:
                self._all.remove(store)
            store.close()

    def close(self) -> None:
        """Close every thread's connection, once none uses it any more."""
        with self._lock:
            stores, self._all = self._all, []
        for store in stores:
            store.close()
        self._own.store = None
