"""The rows of one segment in the ledger: one row a frame, as columns."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.records import FrameOrigin, FrameState, PositionSource, Segment

__all__ = ["NO_SLOT", "SLOT_SHIFT", "SegmentLog"]

NO_SLOT = -1
"""In place of a slot, where there is none."""
SLOT_SHIFT = 40
"""A slot is a segment's place in its ledger, shifted by so many bits, and an offset in the segment."""

SAME_TIME_S = 1e-5
"""Two time stamps that agree to this are the same: a double holds seconds since 1970 to 0.2 µs."""
NEIGHBOURS = 256
"""How far `SegmentLog.in_order` looks for a received neighbour."""

_COLUMNS: dict[str, tuple[Any, Any]] = {
    "received": (np.bool_, False),
    "state": (np.uint8, FrameState.MISSED),
    "times": (np.uint16, 0),
    "origin": (np.uint8, FrameOrigin.STREAM),
    "timestamp_s": (np.float64, np.nan),
    "position_source": (np.uint8, PositionSource.NONE),
    "model": (np.int32, -1),
    "late": (np.bool_, False),
    "residual": (np.float32, np.nan),
    "flag": (np.uint8, 0),
}
_LOGGED = ("position_source", "model", "origin", "state", "late", "residual", "flag", "timestamp_s")


class SegmentLog:
    """State of each frame of a segment, by its offset from the segment's first unique id.

    Parameters
    ----------
    segment : Segment
    time_s : float
        Time of the segment's document.
    first_row : int, optional
        Row of the file at which the segment begins.
    share : tuple of int
        ``(k, n)``: only frames whose unique id is k modulo n are of interest.
    """

    received: NDArray[np.bool_]
    state: NDArray[np.uint8]
    times: NDArray[np.uint16]
    origin: NDArray[np.uint8]
    timestamp_s: NDArray[np.float64]
    position_source: NDArray[np.uint8]
    model: NDArray[np.int32]
    late: NDArray[np.bool_]
    residual: NDArray[np.float32]
    flag: NDArray[np.uint8]

    def __init__(
        self,
        segment: Segment,
        time_s: float = np.nan,
        first_row: int | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.segment, self.share = segment, share
        self.first_row = first_row
        self.time_s = time_s
        self.end_s = np.nan
        self.ended: int | None = None
        self.highest = -1
        """Highest offset seen, on the stream or in the file."""
        self._resize(segment.num_frames)

    def _resize(self, size: int) -> None:
        for name, (dtype, value) in _COLUMNS.items():
            column = np.full(size, value, dtype=dtype)
            old = getattr(self, name, column[:0])
            column[: len(old)] = old
            setattr(self, name, column)
        position = np.full((size, 2), np.nan)
        old = getattr(self, "position_m", position[:0])
        position[: len(old)] = old
        self.position_m: NDArray[np.float64] = position
        k, n = self.share
        self.mine: NDArray[np.bool_] = (self.segment.first_unique_id + np.arange(size)) % n == k
        """Which frames belong to the share."""

    @property
    def limit(self) -> int:
        """Offsets below this belong to the segment: as counted, or while it runs, as armed."""
        return self.segment.num_frames if self.ended is None else self.ended

    @property
    def generated(self) -> int:
        """Frames that the detector counted; while the segment runs, as far as seen."""
        return self.highest + 1 if self.ended is None else self.ended

    @property
    def owned(self) -> int:
        """Those of `generated` that belong to the share."""
        return int(np.count_nonzero(self.mine[: self.generated]))

    def end(self, frames_generated: int, time_s: float = np.nan) -> None:
        """Set the detector's count; a detector may have exposed more than it was armed for."""
        self.ended = frames_generated
        self.end_s = time_s if np.isfinite(time_s) else self.end_s
        if frames_generated > len(self.state):
            self._resize(frames_generated)

    def holds(self, unique_id: int) -> bool:
        """Whether the id belongs to the segment."""
        return 0 <= unique_id - self.segment.first_unique_id < self.limit

    def overlaps(self, first: int, last: int) -> bool:
        """Whether any of the ids from ``first`` to ``last`` belongs to the segment."""
        start = self.segment.first_unique_id
        return last >= start and first < start + self.limit

    def distance_s(self, time_s: float) -> float:
        """How far a time lies outside the segment's; 0 inside, and where a time is unknown."""
        before, after = self.time_s - time_s, time_s - self.end_s
        return max(before if before > 0 else 0.0, after if after > 0 else 0.0)

    def overrun(self) -> NDArray[np.int64]:
        """Offsets of frames that were seen beyond the counted end."""
        if self.ended is None:
            return np.zeros(0, dtype=np.int64)
        seen = self.received[self.ended :] | (self.state[self.ended :] != FrameState.MISSED)
        return np.flatnonzero(seen & self.mine[self.ended :]).astype(np.int64) + self.ended

    def same_frame(self, offset: int, timestamp_s: float) -> bool:
        """Whether the frame at the offset was received with this time (or either time is unknown)."""
        if not self.received[offset]:
            return False
        return not abs(self.timestamp_s[offset] - timestamp_s) > SAME_TIME_S

    def in_order(self, offset: int, timestamp_s: float) -> bool:
        """Whether times would still rise with the ids if this frame were the one at the offset."""
        if not np.isfinite(timestamp_s):
            return True
        before = self.timestamp_s[max(0, offset - NEIGHBOURS) : offset][
            self.received[max(0, offset - NEIGHBOURS) : offset]
        ]
        after = self.timestamp_s[offset + 1 : offset + 1 + NEIGHBOURS][
            self.received[offset + 1 : offset + 1 + NEIGHBOURS]
        ]
        return not (before > timestamp_s + SAME_TIME_S).any() and not (after < timestamp_s - SAME_TIME_S).any()

    def take_row(self, offset: int) -> dict[str, Any]:
        """Take a row out, leaving an empty one."""
        row = {name: getattr(self, name)[offset] for name in _COLUMNS} | {"position_m": self.position_m[offset].copy()}
        for name, (_, empty) in _COLUMNS.items():
            getattr(self, name)[offset] = empty
        self.position_m[offset] = np.nan
        return row

    def put_row(self, offset: int, row: dict[str, Any]) -> None:
        """Put in a row that was taken out elsewhere."""
        for name, value in row.items():
            getattr(self, name)[offset] = value
        self.highest = max(self.highest, offset)

    def columns(self) -> dict[str, NDArray[Any]]:
        """Columns of the frame log for the generated frames."""
        offset = np.flatnonzero(self.mine[: self.generated]).astype(np.int64)
        return {
            "frame_index": self.segment.first_frame_index + offset,
            "unique_id": self.segment.first_unique_id + offset,
            "position_y_m": self.position_m[offset, 0],
            "position_x_m": self.position_m[offset, 1],
            **{name: getattr(self, name)[offset] for name in _LOGGED},
        }
