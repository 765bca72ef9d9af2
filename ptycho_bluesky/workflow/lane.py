"""Runs are prepared side by side and learned from one after the other, in the order in which they began."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Lane"]

CHECK_S = 0.1


class Lane:
    """Lets one run pass at a time, always the oldest of those that are under way.

    Notes
    -----
    A run waits for older ones only, so no two can wait for each other; a run that fails or is withdrawn leaves the lane
    like one that has passed it.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._order: dict[str, tuple[float, str]] = {}
        self._prepared: set[str] = set()
        self._inside: str | None = None

    def register(self, uid: str, time_s: float) -> None:
        """A run is under way; ``time_s`` is when it began."""
        with self._condition:
            self._order[uid] = (time_s, uid)

    def leave(self, uid: str) -> None:
        """A run has come to its end, whatever it was."""
        with self._condition:
            self._order.pop(uid, None)
            self._prepared.discard(uid)
            self._condition.notify_all()

    def prepared(self, uid: str) -> None:
        """The labels of a run are there; others may use them."""
        with self._condition:
            self._prepared.add(uid)
            self._condition.notify_all()

    def wait_prepared(self, uid: str, others: Callable[[str], bool], give_up: Callable[[], None]) -> None:
        """Wait until the older runs for which ``others`` is true are prepared; ``give_up`` may raise."""
        with self._condition:
            mine = self._order[uid]
            while any(
                order < mine and other not in self._prepared and others(other) for other, order in self._order.items()
            ):
                self._condition.wait(CHECK_S)
                give_up()

    @contextmanager
    def turn(self, uid: str, give_up: Callable[[], None]) -> Iterator[None]:
        """Hold the lane for a run, once every older one has left; ``give_up`` is asked meanwhile and may raise."""
        with self._condition:
            while self._inside is not None or min(self._order, key=lambda other: self._order[other]) != uid:
                self._condition.wait(CHECK_S)
                give_up()
            self._inside = uid
        try:
            yield
        finally:
            with self._condition:
                self._inside = None
                self._condition.notify_all()
