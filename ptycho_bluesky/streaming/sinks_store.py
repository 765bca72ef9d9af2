"""Mosaics into a store (Tiled): spooled on disk first, uploaded with retries, never waited for."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ptycho_bluesky.errors import InputError, StorageError, UnreachableError
from ptycho_bluesky.geometry import Geometry
from ptycho_bluesky.records import FrameCounts, Mosaic
from ptycho_bluesky.streaming.core import RunResult
from ptycho_bluesky.streaming.sinks import EdgeUpdate
from ptycho_bluesky.streaming.spool import Spool

__all__ = ["MosaicStore", "StoreSink"]

logger = logging.getLogger(__name__)

FIRST_RETRY_S, LAST_RETRY_S = 1.0, 30.0
CLOSE_TIMEOUT_S = 10.0
MAX_REFUSALS = 5


class MosaicStore(Protocol):
    """What is needed of a store; `ptycho_bluesky.workflow.tiled_store.TiledStore` is one."""

    def write_mosaic(
        self,
        mosaic: Mosaic,
        counts: FrameCounts,
        *,
        complete: bool,
        geometry: Geometry | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a run's mosaic over the one before it; raise `UnreachableError` when the store is away."""
        ...


class StoreSink:
    """Brings mosaics to a store.

    Parameters
    ----------
    spool_dir : path
        Where final results lie until the store has them.
    connect : callable, optional
        Gives the connected store, raising `UnreachableError` while it is away; None keeps the results in the spool.
    period_s : float
        Least time between two mosaics of a running scan.

    Notes
    -----
    Everything happens in a thread of its own. Of a running scan only the newest mosaic counts and a failed upload is
    forgotten; a final result is first on disk and stays there until it is stored, over restarts of the edge as well.
    """

    def __init__(
        self, spool_dir: Path | str, connect: Callable[[], MosaicStore] | None = None, period_s: float = 1.0
    ) -> None:
        self.spool = Spool(spool_dir)
        self._connect, self._period_s = connect, period_s
        self._store: MosaicStore | None = None
        self._condition = threading.Condition()
        self._live: EdgeUpdate | None = None
        self._results: list[RunResult] = []
        self._stopping = False
        self._retry_s, self._next_try_s, self._next_live_s = FIRST_RETRY_S, 0.0, 0.0
        self._refusals: dict[str, int] = {}
        self._away = False
        self.stored = 0
        self._thread = threading.Thread(target=self._run, name="edge-store", daemon=True)
        self._thread.start()

    @property
    def remote(self) -> bool:
        """Whether results go on from the spool to a store."""
        return self._connect is not None

    def update(self, update: EdgeUpdate) -> None:
        """Store a mosaic of a running scan, if its turn comes."""
        if update.mosaic is None or update.complete or self._connect is None:
            return
        with self._condition:
            self._live = update
            self._condition.notify()

    def finish(self, result: RunResult) -> None:
        """Store a final result, now or later."""
        with self._condition:
            self._results.append(result)
            self._live = None
            self._condition.notify()

    def close(self) -> None:
        """Write what is left to the spool, try once more to store it, and stop."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        self._thread.join(CLOSE_TIMEOUT_S)

    def wait_stored(self, timeout_s: float) -> bool:
        """Wait until nothing is left in the spool."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if not self._results and not self.spool.uids():
                return True
            time.sleep(0.02)
        return False

    def _run(self) -> None:
        stopping = False
        while not stopping:
            with self._condition:
                if not self._results and not self._stopping:
                    self._condition.wait(self._patience_s())
                results, self._results = self._results, []
                stopping = self._stopping
            for result in results:
                self._spool(result)
            if results:
                self._next_try_s = 0.0
            try:
                self._store_spooled()
                if not stopping:
                    self._store_live()
            except Exception:  # a store may fail in any way; the spool keeps what counts
                logger.exception("storing failed; it is tried again")
                self._forget_store()
        self._forget_store()

    def _patience_s(self) -> float:
        now_s = time.monotonic()
        due = [now_s + 0.5]
        if self._live is not None:
            due.append(max(self._next_live_s, self._next_try_s if self._away else 0.0))
        return max(0.01, min(due) - now_s)

    def _spool(self, result: RunResult) -> None:
        try:
            self.spool.write(result)
        except StorageError as error:
            logger.error("the result of run %s is not spooled: %s", result.mosaic.run_uid[:8], error)
            store = self._connected()
            if store is not None:
                self._write(store, result)

    def _store_spooled(self) -> None:
        if self._connect is None or time.monotonic() < self._next_try_s:
            return
        for uid in self.spool.uids():
            store = self._connected()
            if store is None:
                return
            try:
                result = self.spool.read(uid)
            except InputError as error:
                logger.error("%s; set aside", error)
                self.spool.set_aside(uid)
                continue
            if self._write(store, result):
                self.spool.remove(uid)
                self.stored += 1
            elif self._store is not None and self._refusals.get(uid, 0) >= MAX_REFUSALS:
                logger.error("the store refuses the result of run %s; set aside", uid[:8])
                self.spool.set_aside(uid)

    def _store_live(self) -> None:
        now_s = time.monotonic()
        if self._live is None or now_s < self._next_live_s or (self._away and now_s < self._next_try_s):
            return
        with self._condition:
            update, self._live = self._live, None
        store = self._connected()
        if store is None or update is None or update.mosaic is None:
            return
        result = RunResult(update.mosaic, update.counts, update.geometry, complete=False, metadata={})
        begun_s = time.monotonic()
        self._write(store, result)
        # an upload that takes long is repeated less often
        self._next_live_s = begun_s + max(self._period_s, 3 * (time.monotonic() - begun_s))

    def _connected(self) -> MosaicStore | None:
        if self._store is None and self._connect is not None and time.monotonic() >= self._next_try_s:
            try:
                self._store = self._connect()
                if self._away:
                    logger.info("the store answers again")
                self._away, self._retry_s = False, FIRST_RETRY_S
            except (InputError, OSError) as error:
                self._wait(error)
        return self._store

    def _write(self, store: MosaicStore, result: RunResult) -> bool:
        uid = result.mosaic.run_uid
        try:
            store.write_mosaic(
                result.mosaic,
                result.counts,
                complete=result.complete,
                geometry=result.geometry,
                metadata=result.metadata,
            )
        except (UnreachableError, OSError) as error:
            self._wait(error)
            return False
        except InputError as error:
            self._refusals[uid] = self._refusals.get(uid, 0) + 1
            logger.warning("the store refuses the result of run %s: %s", uid[:8], error)
            return False
        return True

    def _wait(self, error: Exception) -> None:
        if not self._away:
            logger.warning("the store is away, results wait in %s: %s", self.spool.directory, error)
        self._away = True
        self._forget_store()
        self._next_try_s = time.monotonic() + self._retry_s
        self._retry_s = min(2 * self._retry_s, LAST_RETRY_S)

    def _forget_store(self) -> None:
        store, self._store = self._store, None
        close = getattr(store, "close", None)
        if close is not None:
            close()
