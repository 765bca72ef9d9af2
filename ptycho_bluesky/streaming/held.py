"""Frames that came ahead of the documents that name their run, and the difference of two clocks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from math import isfinite

import numpy as np

from ptycho_bluesky.streaming.frames import Frame

__all__ = ["ClockOffset", "HeldFrames"]


class HeldFrames:
    """A bounded waiting room.

    Parameters
    ----------
    max_bytes : int
        Bound of the memory; beyond it the oldest frames are let go (the file still has them).
    max_age_s : float
        A frame that nothing claimed for this long was of no run.
    """

    def __init__(self, max_bytes: int = 256 * 2**20, max_age_s: float = 10.0) -> None:
        self.max_bytes, self.max_age_s = max_bytes, max_age_s
        self.ignored = 0
        self._frames: deque[tuple[float, Frame]] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, frames: Iterable[Frame], now_s: float) -> None:
        """Let frames wait."""
        for frame in frames:
            self._frames.append((now_s, frame))
            self._bytes += frame.image.nbytes
        while self._bytes > self.max_bytes:
            self._let_go()

    def take_all(self) -> list[Frame]:
        """Every waiting frame, in order of arrival."""
        frames = [frame for _, frame in self._frames]
        self._frames.clear()
        self._bytes = 0
        return frames

    def expire(self, now_s: float) -> None:
        """Let frames go that have waited too long."""
        while self._frames and now_s - self._frames[0][0] > self.max_age_s:
            self._let_go()

    def _let_go(self) -> None:
        _, frame = self._frames.popleft()
        self._bytes -= frame.image.nbytes
        self.ignored += 1


class ClockOffset:
    """Difference between this machine's clock and the detector's, from frames as they arrive.

    Transport only delays, so the smallest difference seen comes nearest to the clocks' own. It is used only beyond
    ``threshold_s``: smaller ones are delay, and documents come from a third clock anyway.
    """

    def __init__(self, threshold_s: float = 0.5, min_frames: int = 5) -> None:
        self.threshold_s, self.min_frames = threshold_s, min_frames
        self._count = 0
        self._smallest = np.inf

    def reset(self) -> None:
        """Start anew: clocks are adjusted now and then."""
        self._count, self._smallest = 0, np.inf

    def observe(self, frames: Sequence[Frame]) -> None:
        """Take the arrival of frames into account; of those that came together only the last one matters."""
        known = [frame.arrival_s - frame.timestamp_s for frame in (frames[0], frames[-1])] if frames else []
        for difference in known:
            if isfinite(difference):
                self._smallest = min(self._smallest, difference)
        if known and isfinite(known[-1]):
            self._count += len(frames)

    @property
    def offset_s(self) -> float:
        """Seconds to add to the detector's times; 0 while unknown or small."""
        if self._count < self.min_frames or abs(self._smallest) < self.threshold_s:
            return 0.0
        return float(self._smallest)
