"""How long each run waits after an error that is not its own, such as a full disk, before it is taken up again."""

from __future__ import annotations

import time

__all__ = ["Pauses"]


class Pauses:
    """Pauses that double with every error of a run, whatever becomes of the other runs.

    Parameters
    ----------
    first_s, last_s : float
        Length of the first pause, and of the longest.

    Notes
    -----
    `hurry` may be called from any thread; everything else belongs to one.
    """

    def __init__(self, first_s: float, last_s: float) -> None:
        self._first_s, self._last_s = first_s, last_s
        self._length_s: dict[str, float] = {}
        self._until_s: dict[str, float] = {}

    def add(self, uid: str) -> float:
        """Let a run wait, longer than the last time; returns how long."""
        pause_s = self._length_s.get(uid, self._first_s)
        self._length_s[uid] = min(2 * pause_s, self._last_s)
        self._until_s[uid] = time.monotonic() + pause_s
        return pause_s

    def waiting(self) -> set[str]:
        """Runs that wait now."""
        now = time.monotonic()
        return {uid for uid, until_s in list(self._until_s.items()) if until_s > now}

    def hurry(self) -> None:
        """The cause may be gone: no run waits any longer. The next pause of each is longer all the same."""
        self._until_s = {}

    def forget(self, uid: str) -> None:
        """A run has ended."""
        self._length_s.pop(uid, None)
        self._until_s.pop(uid, None)
