"""Joining the rows of a run's file to its frames, by the id that the file stores."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.streaming.segment_log import NO_SLOT, SLOT_SHIFT

if TYPE_CHECKING:
    from ptycho_bluesky.streaming.accounting import Ledger

__all__ = ["RowJoiner"]


class RowJoiner:
    """Joins the rows of a run's file, read in order from the first, to slots.

    Rows are joined on the id that the file stores, never on the row number. Where two segments have the same id, it is
    told which one by the row at which each began (if its document says so), else by the order of the rows (ids rise
    within a segment) and the time stamps.

    Parameters
    ----------
    ledger : Ledger
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._row = 0
        self._place = 0
        self._last_id: int | None = None

    def join(self, unique_id: NDArray[np.int64], timestamp_s: NDArray[np.float64]) -> NDArray[np.int64]:
        """Slots (n,) of the next n rows, `NO_SLOT` where no segment has the id.

        Parameters
        ----------
        unique_id : ndarray of int64, shape (n,)
        timestamp_s : ndarray of float64, shape (n,)
        """
        logs = self._ledger._logs
        spans = [(log.segment.first_unique_id, log.segment.first_unique_id + log.limit) for log in logs]
        apart = all(a[1] <= b[0] for a, b in pairwise(sorted(span for span in spans if span[1] > span[0])))
        slots = np.full(len(unique_id), NO_SLOT, dtype=np.int64)
        if apart:
            for k, (first, stop) in enumerate(spans):
                inside = (unique_id >= first) & (unique_id < stop)
                slots[inside] = (unique_id[inside] - first) | (k << SLOT_SHIFT)
        else:
            for i, (uid, time_s) in enumerate(zip(unique_id.tolist(), timestamp_s.tolist(), strict=True)):
                slots[i] = self._join_one(self._row + i, uid, time_s)
        self._row += len(unique_id)
        return slots

    def _join_one(self, row: int, unique_id: int, timestamp_s: float) -> int:
        logs = self._ledger._logs
        time_s = timestamp_s + self._ledger.clock_offset_s
        begun = [k for k, log in enumerate(logs) if log.first_row is not None and log.first_row <= row]
        if begun and logs[begun[-1]].holds(unique_id):
            # a row that was flushed only after the next arming carries an older time
            timely = logs[begun[-1]].distance_s(time_s) <= self._ledger.clock_tolerance_s
            if timely:
                return self._take(begun[-1], unique_id)
        fitting = []
        for k in range(self._place, len(logs)):
            log = logs[k]
            passed = k == self._place and self._last_id is not None and unique_id <= self._last_id
            if passed or not log.holds(unique_id):
                continue
            offset = unique_id - log.segment.first_unique_id
            if log.same_frame(offset, timestamp_s) and np.isfinite(timestamp_s):
                return self._take(k, unique_id)
            if (log.received[offset] and np.isfinite(timestamp_s)) or not log.in_order(offset, timestamp_s):
                continue
            fitting.append(k)
        if not fitting:
            return NO_SLOT
        # of segments equally near the earlier one, because rows come in order
        return self._take(min(fitting, key=lambda k: logs[k].distance_s(time_s)), unique_id)

    def _take(self, k: int, unique_id: int) -> int:
        self._place, self._last_id = k, unique_id
        return k << SLOT_SHIFT | (unique_id - self._ledger._logs[k].segment.first_unique_id)
