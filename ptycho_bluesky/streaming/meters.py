"""Rate and latency over the recent past."""

from __future__ import annotations

import threading
import time
from collections import deque

import numpy as np
from numpy.typing import NDArray

__all__ = ["LatencyMeter", "RateMeter"]


class RateMeter:
    """Frames a second over a sliding window."""

    def __init__(self, window_s: float = 2.0) -> None:
        self.window_s = window_s
        self._marks: deque[tuple[float, int]] = deque()

    def add(self, count: int) -> None:
        """Note that frames were done now."""
        self._marks.append((time.monotonic(), count))

    @property
    def per_s(self) -> float:
        """Mean over the window."""
        now_s = time.monotonic()
        while self._marks and now_s - self._marks[0][0] > self.window_s:
            self._marks.popleft()
        if not self._marks:
            return 0.0
        span = max(now_s - self._marks[0][0], 0.05)
        return sum(count for _, count in self._marks) / span


class LatencyMeter:
    """Quantiles of the time from the end of exposure to publication, over the last frames; thread-safe."""

    def __init__(self, keep: int = 1000) -> None:
        self._lock = threading.Lock()
        self._latencies: deque[float] = deque(maxlen=keep)

    def published(self, timestamps_s: NDArray[np.float64]) -> None:
        """Note that frames with these ends of exposure have been published now."""
        now_s = time.time()
        known = timestamps_s[np.isfinite(timestamps_s)]
        with self._lock:
            self._latencies.extend((now_s - known).tolist())

    def quantiles_ms(self) -> tuple[float, float]:
        """Median and 99th percentile in ms, NaN before any."""
        with self._lock:
            values = np.array(self._latencies)
        if not len(values):
            return float("nan"), float("nan")
        p50, p99 = np.percentile(values, [50, 99]) * 1e3
        return float(p50), float(p99)
