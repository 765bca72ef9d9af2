"""The ledger against a simulated detector, stream and file, over everything that can happen to ids."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.records import FrameOrigin, FrameState, PositionSource, Segment
from ptycho_bluesky.streaming.accounting import NO_SLOT, Ledger, RowJoiner, Verdict

PERIOD_S = 0.001


@dataclass
class Frame:
    """One exposure of the simulated detector."""

    index: int
    unique_id: int
    time_s: float
    segment: int


@dataclass
class Scan:
    """A scan of one or more armings, with what the detector did."""

    segments: list[Segment] = field(default_factory=list)
    starts_s: list[float] = field(default_factory=list)
    generated: list[int] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)


def make_scan(num_points: int, pauses: list[int], reset: bool, first_id: int, gap_s: float) -> Scan:
    scan = Scan()
    next_id, index, time_s = first_id, 0, 1000.0
    for number in range(len(pauses) + 1):
        stop = num_points if number == len(pauses) else min(num_points, index + pauses[number])
        if reset:
            next_id = 1
        scan.segments.append(Segment(number, next_id, index, num_points - index))
        scan.starts_s.append(time_s)
        scan.generated.append(stop - index)
        for _ in range(stop - index):
            time_s += PERIOD_S
            scan.frames.append(Frame(index, next_id, time_s, number))
            next_id, index = next_id + 1, index + 1
        time_s += gap_s
        if index >= num_points:
            break
    return scan


def infer(ledger: Ledger, slots, origin=FrameOrigin.STREAM):
    slots = np.asarray(slots, dtype=np.int64)
    n = len(slots)
    ledger.record(
        slots,
        origin=np.full(n, origin, dtype=np.uint8),
        timestamp_s=np.full(n, np.nan),
        model=0,
        late=np.zeros(n, dtype=bool),
        residual=np.full(n, np.nan, dtype=np.float32),
    )


scans = st.builds(
    make_scan,
    num_points=st.integers(1, 60),
    pauses=st.lists(st.integers(1, 30), max_size=3),
    reset=st.booleans(),
    first_id=st.integers(1, 10_000),
    gap_s=st.sampled_from([0.02, 0.5, 5.0]),
)


@settings(max_examples=300, deadline=None)
@given(scan=scans, data=st.data())
def test_every_generated_frame_is_accounted_for_once(scan, data):
    """Drops, copies, corrupt frames, file drops, resets, pauses: each frame ends as what truly became of it."""
    n = len(scan.frames)
    flags = st.lists(st.booleans(), min_size=n, max_size=n)
    dropped = data.draw(flags, "dropped on the stream")
    copied = data.draw(flags, "published twice")
    corrupt = data.draw(flags, "corrupt on the stream")
    not_in_file = data.draw(flags, "dropped by the file writer")
    ledger = Ledger()
    truth: dict[int, Frame] = {}
    waiting: list[int] = []
    for number, segment in enumerate(scan.segments):
        ledger.add_segment(segment, scan.starts_s[number])
        for frame, drop, copy, bad in zip(scan.frames, dropped, copied, corrupt, strict=True):
            if frame.segment != number or drop:
                continue
            if bad:
                verdict, slot = ledger.refuse(frame.unique_id, frame.time_s, "corrupt")
                assert verdict is Verdict.ACCEPTED
                continue
            verdict, slot = ledger.offer(frame.unique_id, frame.time_s)
            assert verdict is Verdict.ACCEPTED
            truth[slot] = frame
            waiting.append(slot)
            if copy:
                assert ledger.offer(frame.unique_id, frame.time_s) == (Verdict.DUPLICATE, slot)
        if data.draw(st.booleans(), "end has a time"):
            end_s = scan.frames[sum(scan.generated[: number + 1]) - 1].time_s
            ledger.end_segment(segment.index, scan.generated[number], end_s + 0.01)
        else:
            ledger.end_segment(segment.index, scan.generated[number])
    infer(ledger, waiting)

    rows = [frame for frame, lost in zip(scan.frames, not_in_file, strict=True) if not lost]
    joiner = RowJoiner(ledger)
    slots = joiner.join(
        np.array([frame.unique_id for frame in rows], dtype=np.int64), np.array([frame.time_s for frame in rows])
    )
    wanted = set(ledger.missing().tolist())
    recovered = [slot for slot in slots.tolist() if slot in wanted]
    infer(ledger, recovered, FrameOrigin.FILE)
    ledger.close()

    for slot, frame in truth.items():
        assert ledger.frame_index(np.array([slot]))[0] == frame.index
        assert ledger.segment_of(slot).index == frame.segment
    assert [int(i) for i in ledger.frame_index(slots)] == [frame.index for frame in rows]
    counts = ledger.counts()
    on_stream = [not drop and not bad for drop, bad in zip(dropped, corrupt, strict=True)]
    in_file = [not lost for lost in not_in_file]
    assert counts.generated == n
    assert counts.received == sum(on_stream)
    assert counts.missed == n - sum(on_stream)
    assert counts.recovered == sum(f and not s for f, s in zip(in_file, on_stream, strict=True))
    assert counts.inferred == sum(f or s for f, s in zip(in_file, on_stream, strict=True))
    never = [not f and not s for f, s in zip(in_file, on_stream, strict=True)]
    refused = [x and bad and not drop for x, bad, drop in zip(never, corrupt, dropped, strict=True)]
    assert counts.rejected == sum(refused)
    assert counts.lost == sum(never) - sum(refused)
    assert counts.unaccounted == 0
    assert counts.duplicates == sum(c and s for c, s in zip(copied, on_stream, strict=True))
    log = ledger.columns()
    assert len(log["frame_index"]) == n
    assert (np.diff(log["frame_index"]) >= 0).all()


@settings(max_examples=100, deadline=None)
@given(scan=scans, seed=st.integers(0, 1000), skew_s=st.sampled_from([-0.4, 0.0, 0.4]))
def test_a_clock_that_is_wrong_within_the_tolerance_changes_nothing(scan, seed, skew_s):
    pause_s = np.diff(scan.starts_s).min(initial=np.inf)
    assume(scan.segments[-1].first_unique_id != 1 or pause_s > 2 * abs(skew_s))  # else the same id may mean either
    ledger = Ledger()
    keep = np.random.default_rng(seed).random(len(scan.frames)) < 0.8
    for number, segment in enumerate(scan.segments):
        ledger.add_segment(segment, scan.starts_s[number] - skew_s)
        for frame in (f for f, k in zip(scan.frames, keep, strict=True) if f.segment == number and k):
            verdict, slot = ledger.offer(frame.unique_id, frame.time_s)
            assert verdict is Verdict.ACCEPTED
            assert ledger.frame_index(np.array([slot]))[0] == frame.index
        end_s = scan.frames[sum(scan.generated[: number + 1]) - 1].time_s
        ledger.end_segment(segment.index, scan.generated[number], end_s + 0.01 - skew_s)


def test_ids_outside_the_segments_are_of_other_runs():
    ledger = Ledger()
    assert ledger.offer(5)[0] is Verdict.UNKNOWN
    ledger.add_segment(Segment(0, 100, 0, 10))
    assert [ledger.offer(i)[0] for i in (99, 110)] == [Verdict.UNKNOWN] * 2
    assert ledger.counts().generated == 0


def test_the_last_frame_of_an_earlier_run_with_the_same_id_is_a_stray():
    ledger = Ledger()
    ledger.add_segment(Segment(0, 1, 0, 963), time_s=1000.0)
    assert ledger.offer(963, 950.0) == (Verdict.UNKNOWN, NO_SLOT)
    assert ledger.offer(1, 1000.01)[0] is Verdict.ACCEPTED
    ledger.clock_offset_s = -60.0  # the detector's clock turns out to be a minute ahead
    assert ledger.offer(2, 1060.02)[0] is Verdict.ACCEPTED
    assert ledger.offer(963, 1010.0)[0] is Verdict.UNKNOWN


def test_frames_of_a_resumed_segment_ahead_of_its_document_wait_for_it():
    """After a reset id 1 comes again with a later time: no copy, and not the first segment's dropped frame either."""
    ledger = Ledger()
    ledger.add_segment(Segment(0, 1, 0, 10), 1000.0)
    for unique_id in (1, 2, 4, 5):  # 3 was dropped
        ledger.offer(unique_id, 1000.0 + unique_id)
    ledger.end_segment(0, 5)
    assert ledger.offer(1, 1020.1)[0] is Verdict.UNKNOWN
    ledger.add_segment(Segment(1, 1, 5, 5), 1020.0)
    for unique_id in (1, 2, 3):
        verdict, slot = ledger.offer(unique_id, 1020.0 + unique_id / 10)
        assert verdict is Verdict.ACCEPTED
        assert ledger.frame_index(np.array([slot]))[0] == 4 + unique_id
    verdict, slot = ledger.offer(3, 1003.0)  # the straggler of the first segment still finds its place
    assert verdict is Verdict.ACCEPTED
    assert ledger.frame_index(np.array([slot]))[0] == 2


def test_frames_taken_for_the_end_of_a_paused_segment_move_to_the_next():
    ledger = Ledger()
    ledger.add_segment(Segment(0, 1, 0, 10), 1000.0)
    slots = [ledger.offer(i, 1000.0 + i)[1] for i in (1, 2, 3, 4)]
    infer(ledger, slots)
    ledger.set_position(np.array(slots), np.ones((4, 2)), PositionSource.ATTRIBUTE)
    ledger.end_segment(0, 3)
    moved = ledger.add_segment(Segment(1, 4, 3, 7), 1003.5)
    assert [ledger.frame_index(np.array([new]))[0] for _, new in moved] == [3]
    ledger.end_segment(1, 7)
    ledger.close()
    counts = ledger.counts()
    assert (counts.generated, counts.inferred, counts.lost, counts.unaccounted) == (10, 4, 6, 0)
    assert ledger.columns()["state"].tolist() == [FrameState.INFERRED] * 4 + [FrameState.MISSED] * 6


@pytest.mark.parametrize("dropped", [{3}, {3, 4}, {0}, {7}])
def test_a_step_scan_whose_counter_is_reset_for_every_point(dropped):
    """Every frame has id 1 and comes ahead of its segment's document; the file sets right what ids alone got wrong."""
    ledger = Ledger()
    held: list[float] = []
    times = [1000.0 + 0.1 * k for k in range(8)]
    for k, time_s in enumerate(times):
        if k not in dropped and (k == 0 or ledger.offer(1, time_s)[0] is Verdict.UNKNOWN):
            held.append(time_s)
        if k:
            ledger.end_segment(k - 1, 1, time_s + 0.02)
        ledger.add_segment(Segment(k, 1, k, 8 - k), time_s + 0.02, first_row=k)
        held = [t for t in held if ledger.offer(1, t)[0] is Verdict.UNKNOWN]
    ledger.end_segment(7, 1, 1001.0)
    slots = RowJoiner(ledger).join(np.ones(8, dtype=np.int64), np.array(times))
    assert ledger.frame_index(slots).tolist() == list(range(8))
    ledger.reconcile(slots, np.array(times))
    log = ledger.columns()
    received = np.isfinite(log["timestamp_s"])
    assert set(np.flatnonzero(~received).tolist()) == dropped
    assert ledger.counts().received == 8 - len(dropped)
    np.testing.assert_allclose(log["timestamp_s"][received], np.array(times)[received])


def test_a_frame_beyond_the_counted_end_is_unaccounted():
    ledger = Ledger()
    ledger.add_segment(Segment(0, 1, 0, 10))
    infer(ledger, [ledger.offer(i)[1] for i in (1, 2, 3)])
    ledger.end_segment(0, 2)
    ledger.close()
    assert ledger.counts().unaccounted == 1


def test_a_frame_inferred_twice_is_unaccounted():
    ledger = Ledger()
    ledger.add_segment(Segment(0, 1, 0, 2))
    slot = ledger.offer(1)[1]
    infer(ledger, [slot])
    infer(ledger, [slot])
    ledger.end_segment(0, 1)
    ledger.close()
    assert ledger.counts().unaccounted == 1


def test_a_detector_that_exposed_more_than_it_was_armed_for():
    ledger = Ledger()
    ledger.add_segment(Segment(0, 1, 0, 2))
    ledger.end_segment(0, 4)
    assert len(ledger.missing()) == 4
    assert ledger.offer(4)[0] is Verdict.ACCEPTED


def test_bad_segments_are_told_and_change_nothing():
    ledger = Ledger()
    ledger.add_segment(Segment(0, 1, 0, 10))
    with pytest.raises(InputError, match="announced as"):
        ledger.add_segment(Segment(0, 7, 0, 10))
    with pytest.raises(InputError, match="frames"):
        ledger.add_segment(Segment(1, 7, 0, -1))
    with pytest.raises(InputError, match="not announced"):
        ledger.end_segment(4, 1)
    assert ledger.add_segment(Segment(0, 1, 0, 10)) == []
    assert len(ledger.segments) == 1


def test_an_empty_run_has_an_empty_log():
    ledger = Ledger()
    ledger.close()
    assert ledger.counts().generated == 0
    assert len(ledger.columns()["frame_index"]) == 0


@settings(max_examples=60, deadline=None)
@given(
    offers=st.lists(
        st.lists(st.tuples(st.integers(-2, 25), st.floats(-3.0, 40.0) | st.just(np.nan)), max_size=6), max_size=8
    ),
    reset=st.booleans(),
)
def test_frames_offered_together_are_told_apart_as_one_by_one(offers, reset):
    ledgers = []
    for _ in range(2):
        ledger = Ledger()
        ledger.add_segment(Segment(0, 1, 0, 10), 0.0)
        ledger.end_segment(0, 8, 10.0)
        ledger.add_segment(Segment(1, 1 if reset else 9, 8, 12), 20.0)
        ledgers.append(ledger)
    together, single = ledgers
    for batch in offers:
        ids = np.array([uid for uid, _ in batch], dtype=np.int64)
        times = np.array([time_s for _, time_s in batch], dtype=np.float64)
        verdict, slots = together.offer_many(ids, times)
        expected = [single.offer(uid, time_s) for uid, time_s in batch]
        assert [(int(v), int(s)) for v, s in zip(verdict, slots, strict=True)] == [(int(v), s) for v, s in expected]
    assert together.counts() == single.counts()
