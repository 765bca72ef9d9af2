"""Frame accounting: which frame of a run is which, and what became of it.

The detector numbers its frames with unique ids; a run has one *segment* for each time that the detector was armed, with
a mapping of its own between ids and frame indices, because drivers may reset their counter when armed. `Ledger` joins
what arrives (in any order, with gaps, copies, strays of earlier runs, before or after its documents) to slots, one slot
a frame that the detector generated, and counts. It holds numbers only, no image, no clock and no thread, so that its
properties can be tested on their own.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from enum import IntEnum
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.records import FrameCounts, FrameOrigin, FrameState, PositionSource, Segment
from ptycho_bluesky.streaming.row_joiner import RowJoiner
from ptycho_bluesky.streaming.segment_log import NO_SLOT, SAME_TIME_S, SLOT_SHIFT, SegmentLog

__all__ = ["NO_SLOT", "Ledger", "RowJoiner", "Verdict"]

logger = logging.getLogger(__name__)

_SHIFT = SLOT_SHIFT
_MASK = (1 << _SHIFT) - 1


class Verdict(IntEnum):
    """What a frame from the stream is to a run."""

    UNKNOWN = 0
    """In no segment announced so far: of another run, or ahead of its document."""
    ACCEPTED = 1
    """A frame of the run, seen for the first time."""
    DUPLICATE = 2
    """The same frame again."""
    FOREIGN = 3
    """A frame of the run that another edge reads."""


# plain numbers: comparing an array with a member of an enumeration takes longer than the comparison
_ACCEPTED, _INFERRED = int(Verdict.ACCEPTED), int(FrameState.INFERRED)


class Ledger:
    """Account of one run's frames.

    Parameters
    ----------
    clock_tolerance_s : float
        By how much a frame's timestamp may lie before its segment's document: clocks of two machines disagree. Older
        frames are strays of an earlier run whose ids happen to be the same.
    share : tuple of int
        ``(k, n)``: the account is of the frames whose unique id is k modulo n; other edges have the others.

    Notes
    -----
    Not thread-safe. A *slot* is an integer that names one generated frame for as long as the ledger lives.
    """

    def __init__(self, clock_tolerance_s: float = 1.0, share: tuple[int, int] = (0, 1)) -> None:
        self.clock_tolerance_s, self.share = clock_tolerance_s, share
        self.clock_offset_s = 0.0
        """Added to timestamps of frames before they are compared with times of documents."""
        self.duplicates = 0
        self.closed = False
        self.reasons: dict[int, str] = {}
        self._logs: list[SegmentLog] = []

    # --- documents ---------------------------------------------------------------------------------------------------

    @property
    def segments(self) -> list[Segment]:
        """Segments announced so far, in order of their index."""
        return [log.segment for log in self._logs]

    def add_segment(
        self, segment: Segment, time_s: float = np.nan, first_row: int | None = None
    ) -> list[tuple[int, int]]:
        """Announce a segment; the same one again changes nothing.

        Parameters
        ----------
        segment : Segment
        time_s : float
            Time of the document, before the segment's first exposure; NaN when unknown.
        first_row : int, optional
            Row of the file from which the segment's frames lie, if the document says it.

        Returns
        -------
        list of (int, int)
            Slots whose frames had been taken for the end of an earlier segment, with their new slots.

        Raises
        ------
        InputError
            The segment contradicts one announced before, or has no sensible numbers.
        """
        if segment.num_frames < 0 or segment.num_frames > 2**31 or segment.first_frame_index < 0:
            raise InputError(f"segment {segment}", "it has 0 to 2^31 frames and indices from 0")
        for log in self._logs:
            if log.segment.index == segment.index:
                if log.segment != segment:
                    raise InputError(f"segment {segment}", f"it was announced as {log.segment}", "ignored")
                return []
        for log in self._logs:
            if not np.isfinite(log.end_s) and log.time_s <= time_s:
                log.end_s = time_s  # the detector is armed once at a time
        # slots hold the place in the list, so a segment that is announced late is appended, not inserted
        self._logs.append(SegmentLog(segment, time_s, first_row, self.share))
        return self._adopt_overrun(len(self._logs) - 1)

    def end_segment(self, index: int, frames_generated: int, time_s: float = np.nan) -> None:
        """State how many frames the detector counted in a segment, and when it had ended (NaN: unknown).

        Raises
        ------
        InputError
            The segment was not announced, or the count is negative.
        """
        if frames_generated < 0:
            raise InputError(f"segment {index} with {frames_generated} frames", "counts are not negative")
        for log in self._logs:
            if log.segment.index == index:
                log.end(frames_generated, time_s)
                return
        raise InputError(f"end of segment {index}", "it was not announced")

    def _adopt_overrun(self, new: int) -> list[tuple[int, int]]:
        """Move frames that lie beyond the counted end of an earlier segment to the new one if it has their ids."""
        moved = []
        target = self._logs[new]
        for k, log in enumerate(self._logs[:new]):
            for offset in log.overrun():
                place = log.segment.first_unique_id + int(offset) - target.segment.first_unique_id
                if 0 <= place < target.limit and not target.received[place]:
                    target.put_row(place, log.take_row(int(offset)))
                    old_slot, new_slot = k << _SHIFT | int(offset), new << _SHIFT | place
                    if old_slot in self.reasons:
                        self.reasons[new_slot] = self.reasons.pop(old_slot)
                    moved.append((old_slot, new_slot))
        return moved

    # --- the stream --------------------------------------------------------------------------------------------------

    def offer(self, unique_id: int, timestamp_s: float = np.nan) -> tuple[Verdict, int]:
        """Say what a frame from the stream is.

        Parameters
        ----------
        unique_id : int
        timestamp_s : float
            The detector's time of the frame, NaN when unknown.

        Returns
        -------
        (Verdict, int)
            The slot is `NO_SLOT` for a frame that is unknown. An accepted frame counts as received.
        """
        verdict, slot = self.look(unique_id, timestamp_s)
        if verdict is Verdict.DUPLICATE:
            self.duplicates += 1
        elif verdict is Verdict.ACCEPTED:
            log, offset = self._row(slot)
            log.received[offset] = True
            log.timestamp_s[offset] = timestamp_s
            log.highest = max(log.highest, offset)
        return verdict, slot

    def offer_many(
        self, unique_id: NDArray[np.int64], timestamp_s: NDArray[np.float64]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Say what frames (n,) from the stream are, in their order.

        Returns
        -------
        verdict : ndarray of uint8, shape (n,)
            A `Verdict` each.
        slots : ndarray of int64, shape (n,)
        """
        slots = self._plain_slots(unique_id, timestamp_s)
        if slots is not None:
            log, offset = self._logs[int(slots[0]) >> _SHIFT], slots & _MASK
            log.received[offset] = True
            log.timestamp_s[offset] = timestamp_s
            log.highest = max(log.highest, int(offset.max()))
            return np.full(len(slots), _ACCEPTED, dtype=np.uint8), slots
        verdicts = [self.offer(*frame) for frame in zip(unique_id.tolist(), timestamp_s.tolist(), strict=True)]
        return (
            np.array([verdict for verdict, _ in verdicts], dtype=np.uint8),
            np.array([slot for _, slot in verdicts], dtype=np.int64),
        )

    def _plain_slots(self, unique_id: NDArray[np.int64], timestamp_s: NDArray[np.float64]) -> NDArray[np.int64] | None:
        """Slots (n,) of frames that are new and all of the one segment that can have them; None in any other case."""
        if not len(unique_id):
            return None
        first, last = int(unique_id.min()), int(unique_id.max())
        holding = [k for k, log in enumerate(self._logs) if log.overlaps(first, last)]
        if len(holding) != 1:
            return None
        log = self._logs[holding[0]]
        if not (log.holds(first) and log.holds(last)):
            return None
        offset = unique_id - log.segment.first_unique_id
        time_s = timestamp_s + self.clock_offset_s
        # written so that a time that is not known, NaN, counts as in time
        untimely = (log.time_s - time_s > self.clock_tolerance_s) | (time_s - log.end_s > self.clock_tolerance_s)
        if untimely.any() or log.received[offset].any() or not log.mine[offset].all():
            return None
        if len(offset) > 1 and not (np.diff(offset) > 0).all() and len(np.unique(offset)) != len(offset):
            return None
        return offset | (holding[0] << _SHIFT)

    def look(self, unique_id: int, timestamp_s: float = np.nan) -> tuple[Verdict, int]:
        """Say what a frame is without counting it."""
        time_s = timestamp_s + self.clock_offset_s
        candidates = [k for k, log in enumerate(self._logs) if log.holds(unique_id)]
        # of two segments that both have the id (the counter was reset between them) the one that was running, or nearly
        apart_s = {k: self._logs[k].distance_s(time_s) for k in candidates}
        for k in sorted(candidates, key=lambda k: (apart_s[k], -k)):
            if apart_s[k] > self.clock_tolerance_s:
                break
            log = self._logs[k]
            offset = unique_id - log.segment.first_unique_id
            if not log.mine[offset]:
                return Verdict.FOREIGN, k << _SHIFT | offset
            if log.same_frame(offset, timestamp_s):
                return Verdict.DUPLICATE, k << _SHIFT | offset
            if not log.received[offset] and (len(candidates) == 1 or log.in_order(offset, timestamp_s)):
                return Verdict.ACCEPTED, k << _SHIFT | offset
        return Verdict.UNKNOWN, NO_SLOT

    def refuse(self, unique_id: int, timestamp_s: float, reason: str) -> tuple[Verdict, int]:
        """Record a frame of the stream that is corrupt; it does not count as received and may come again whole."""
        verdict, slot = self.look(unique_id, timestamp_s)
        if verdict is Verdict.ACCEPTED:
            self.reject(slot, reason, FrameOrigin.STREAM)
        elif verdict is Verdict.DUPLICATE:
            self.duplicates += 1
        return verdict, slot

    # --- what became of frames ---------------------------------------------------------------------------------------

    def reject(self, slot: int, reason: str, origin: FrameOrigin) -> None:
        """Mark a frame as corrupt with the reason; a frame that was inferred stays so."""
        log, offset = self._row(slot)
        if log.state[offset] != FrameState.INFERRED:
            log.state[offset] = FrameState.REJECTED
            log.origin[offset] = origin
            log.highest = max(log.highest, offset)
            self.reasons[slot] = reason

    def is_inferred(self, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each of the slots (n,) has been inferred."""
        done = np.zeros(len(slots), dtype=bool)
        for log, mine, offset in self._by_segment(slots):
            done[mine] = log.state[offset] == _INFERRED
        return done

    def record(
        self,
        slots: NDArray[np.int64],
        *,
        origin: NDArray[np.uint8],
        timestamp_s: NDArray[np.float64],
        model: int,
        late: NDArray[np.bool_],
        residual: NDArray[np.float32],
        flag: NDArray[np.uint8] | None = None,
    ) -> None:
        """Record frames (n,) as inferred by model number ``model`` (−1: mapped before there was a model)."""
        for log, mine, offset in self._by_segment(slots):
            log.state[offset] = _INFERRED
            np.add.at(log.times, offset, 1)
            log.origin[offset] = origin[mine]
            known = np.isfinite(timestamp_s[mine])
            log.timestamp_s[offset[known]] = timestamp_s[mine][known]
            log.model[offset] = model
            log.late[offset] = late[mine]
            log.residual[offset] = residual[mine]
            if flag is not None:
                log.flag[offset] = flag[mine]
            log.highest = max(log.highest, int(offset.max()))
        if self.reasons:
            for slot in slots.tolist():
                self.reasons.pop(slot, None)

    def set_position(
        self, slots: NDArray[np.int64], position_m: NDArray[np.float64], source: NDArray[np.uint8] | PositionSource
    ) -> None:
        """Record positions (n, 2) and where they came from."""
        source = np.broadcast_to(np.asarray(source, dtype=np.uint8), len(slots))
        for log, mine, offset in self._by_segment(slots):
            log.position_m[offset] = position_m[mine]
            log.position_source[offset] = source[mine]

    # --- questions ---------------------------------------------------------------------------------------------------

    def frame_index(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Frame indices (n,) of slots (n,)."""
        first = np.array([log.segment.first_frame_index for log in self._logs], dtype=np.int64)
        return first[slots >> _SHIFT] + (slots & _MASK)

    def position_source(self, slots: NDArray[np.int64]) -> NDArray[np.uint8]:
        """A `PositionSource` for each of the slots (n,)."""
        source = np.zeros(len(slots), dtype=np.uint8)
        for log, mine, offset in self._by_segment(slots):
            source[mine] = log.position_source[offset]
        return source

    def generated(self) -> int:
        """Frames that the detector counted; while a segment runs, as far as seen."""
        return sum(log.owned for log in self._logs)

    def missing(self) -> NDArray[np.int64]:
        """Slots (n,) that were generated and not inferred; those rejected on the stream are among them."""
        found = []
        for k, log in enumerate(self._logs):
            state = log.state[: log.generated]
            wanted = (state == FrameState.MISSED) | (
                (state == FrameState.REJECTED) & (log.origin[: log.generated] == FrameOrigin.STREAM)
            )
            found.append(np.flatnonzero(wanted & log.mine[: log.generated]).astype(np.int64) | (k << _SHIFT))
        return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)

    def awaits_stream(self) -> bool:
        """Whether a generated frame has neither been received nor rejected."""
        return any(
            bool((log.mine & ~log.received & (log.state == FrameState.MISSED))[: log.generated].any())
            for log in self._logs
        )

    @property
    def ambiguous(self) -> bool:
        """Whether two segments share ids (the counter was reset), or one has no counted end."""
        spans = sorted((log.segment.first_unique_id, log.limit) for log in self._logs if log.limit)
        shared = any(first + limit > second for (first, limit), (second, _) in pairwise(spans))
        return shared or any(log.ended is None for log in self._logs)

    def note_row(self, slots: NDArray[np.int64]) -> None:
        """The file holds these frames: a segment without a counted end has at least as many."""
        for slot in slots.tolist():
            log, offset = self._row(slot)
            log.highest = max(log.highest, offset)

    def reconcile(self, slots: NDArray[np.int64], timestamp_s: NDArray[np.float64]) -> list[tuple[int, int]]:
        """Put frames that the stream's ids alone led to a wrong slot where the file says that they belong.

        It happens where a counter was reset, a frame dropped, and another one with its id came ahead of its document.
        The detector's time stamp names the frame.

        Parameters
        ----------
        slots : ndarray of int64, shape (n,)
            Slots of the file's rows.
        timestamp_s : ndarray of float64, shape (n,)
            Time stamps of the rows.

        Returns
        -------
        list of (int, int)
            Old and new slots of the frames that were moved.
        """
        true_slot = {round(t / SAME_TIME_S): s for s, t in zip(slots.tolist(), timestamp_s.tolist(), strict=True)
                     if s != NO_SLOT and np.isfinite(t)}  # fmt: skip
        moves = []
        for k, log in enumerate(self._logs):
            for offset in np.flatnonzero(log.received & np.isfinite(log.timestamp_s)).tolist():
                slot = k << _SHIFT | offset
                ticks = log.timestamp_s[offset] / SAME_TIME_S
                true = true_slot.get(round(ticks), slot)
                if true != slot:
                    moves.append((slot, true))
        # all are taken out before any is put in: frames may change places
        rows = [(new, *self._row(old)) for old, new in moves]
        taken = [(new, log.take_row(offset)) for new, log, offset in rows]
        for new, row in taken:
            log, offset = self._row(new)
            log.put_row(offset, row)
        for old, new in moves:
            if old in self.reasons:
                self.reasons[new] = self.reasons.pop(old)
        return moves

    def close(self) -> None:
        """Nothing more will come: what is missing now is lost."""
        self.closed = True

    def counts(self) -> FrameCounts:
        """Counts as the design defines them; ``lost`` and ``unaccounted`` are 0 until the ledger is closed."""
        generated = self.generated()
        inside = {"received": 0, "recovered": 0, "inferred": 0, "late": 0, "rejected": 0, "missed_state": 0, "twice": 0}
        stray = 0
        for log in self._logs:
            part = np.flatnonzero(log.mine[: log.generated]) if self.share[1] > 1 else slice(0, log.generated)
            inferred = log.state[part] == FrameState.INFERRED
            inside["received"] += int(log.received[part].sum())
            inside["recovered"] += int((inferred & ~log.received[part]).sum())
            inside["inferred"] += int(inferred.sum())
            inside["late"] += int((inferred & log.late[part]).sum())
            inside["rejected"] += int((log.state[part] == FrameState.REJECTED).sum())
            inside["missed_state"] += int((log.state[part] == FrameState.MISSED).sum())
            inside["twice"] += int(np.maximum(log.times[part].astype(np.int64) - inferred, 0).sum())
            stray += len(log.overrun())
        told = inside["inferred"] + inside["rejected"] + inside["missed_state"]
        return FrameCounts(
            generated=generated,
            received=inside["received"],
            missed=generated - inside["received"],
            recovered=inside["recovered"],
            inferred=inside["inferred"],
            late=inside["late"],
            rejected=inside["rejected"],
            duplicates=self.duplicates,
            lost=generated - inside["inferred"] - inside["rejected"] if self.closed else 0,
            unaccounted=abs(generated - told) + inside["twice"] + stray if self.closed else 0,
        )

    def columns(self) -> dict[str, NDArray[Any]]:
        """Frame log: the columns of `ptycho_bluesky.records.Mosaic`, a row a generated frame, sorted by frame index."""
        logs = [log.columns() for log in self._logs] or [SegmentLog(Segment(0, 0, 0, 0)).columns()]
        joined = {name: np.concatenate([log[name] for log in logs]) for name in logs[0]}
        order = np.argsort(joined["frame_index"], kind="stable")
        return {name: column[order] for name, column in joined.items()}

    def rejected_by_reason(self) -> dict[str, int]:
        """How many frames were rejected for each reason."""
        return dict(Counter(self.reasons.values()))

    def segment_of(self, slot: int) -> Segment:
        """Segment of a slot."""
        return self._logs[slot >> _SHIFT].segment

    def _by_segment(
        self, slots: NDArray[np.int64]
    ) -> Iterator[tuple[SegmentLog, slice | NDArray[np.bool_], NDArray[np.int64]]]:
        """Each segment that slots (n,) lie in, which of them do, and their offsets in it."""
        if not len(slots):
            return
        number, offset = slots >> _SHIFT, slots & _MASK
        if number[0] == number[-1] and (number == number[0]).all():
            yield self._logs[int(number[0])], slice(None), offset
            return
        for k in np.unique(number).tolist():
            mine = number == k
            yield self._logs[k], mine, offset[mine]

    def _row(self, slot: int) -> tuple[SegmentLog, int]:
        slot = int(slot)
        return self._logs[slot >> _SHIFT], slot & _MASK
