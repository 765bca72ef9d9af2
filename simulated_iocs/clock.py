"""A free-running clock with absolute deadlines."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

__all__ = ["FrameClock"]

logger = logging.getLogger(__name__)

SHORT_SLEEP_S = 0.002
"""Above this the clock waits on an event, so that it can be stopped in the middle of a long exposure."""


class FrameClock(threading.Thread):
    """Calls ``tick(row)`` at the end of each period.

    The deadlines are absolute: a late tick makes up for its delay, and nobody downstream can slow the clock.

    Parameters
    ----------
    tick : callable
        Called in this thread with the row; False ends the sequence.
    rows : range
        Rows to go through.
    period_s : float
        Time between ticks.
    on_end : callable
        Called once in this thread when the sequence has ended, whatever ended it.
    on_error : callable
        Called before that with the reason if ``tick`` raised.
    """

    def __init__(
        self,
        tick: Callable[[int], bool],
        rows: range,
        period_s: float,
        on_end: Callable[[], None],
        on_error: Callable[[str], None],
    ) -> None:
        super().__init__(name="detector-clock", daemon=True)
        self._tick, self._rows, self._period_s = tick, rows, period_s
        self._on_end, self._on_error = on_end, on_error
        self._finish = threading.Event()
        self._break = threading.Event()
        self.next_row = rows.start
        self.max_late_s = 0.0

    def finish(self) -> None:
        """Stop after the present period's tick."""
        self._finish.set()

    def break_off(self) -> None:
        """Stop without a further tick, in the middle of an exposure if need be."""
        self._break.set()
        self._finish.set()

    def run(self) -> None:
        """Tick until the rows, the patience of ``tick`` or the caller's end."""
        try:
            start = time.perf_counter()
            for k, row in enumerate(self._rows):
                if self._finish.is_set():
                    break
                deadline = start + (k + 1) * self._period_s
                self._sleep_until(deadline)
                self.max_late_s = max(self.max_late_s, time.perf_counter() - deadline)
                if self._break.is_set() or not self._tick(row):
                    break
                self.next_row = row + 1
        except Exception as error:
            logger.exception("the detector's clock stopped")
            self._on_error(f"the clock stopped: {error!r}")
        finally:
            self._on_end()

    def _sleep_until(self, deadline: float) -> None:
        while (remaining := deadline - time.perf_counter()) > 0:
            if remaining > 2 * SHORT_SLEEP_S:
                if self._break.wait(remaining - SHORT_SLEEP_S):
                    return
            else:
                time.sleep(remaining)
