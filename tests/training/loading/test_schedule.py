"""The plan against what theory says of it: every frame once an epoch, N − C reads, balanced ranks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.training.loading.schedule import Schedule, order_epochs, share_reads

SCHEDULES = st.builds(
    Schedule,
    num_frames=st.integers(1, 60),
    global_batch=st.integers(1, 20),
    world_size=st.integers(1, 4),
    buffer_frames=st.integers(0, 30),
    seed=st.integers(0, 5),
    policy=st.sampled_from(["pin", "clairvoyant"]),
)


def plan(schedule, num_epochs):
    """Steps of every rank, side by side."""
    return zip(*(schedule.steps(rank, num_epochs) for rank in range(schedule.world_size)), strict=True)


@given(schedule=SCHEDULES)
@settings(max_examples=150)
def test_every_frame_once_an_epoch_and_no_buffer_overflows(schedule):
    seen: dict[int, list[int]] = {}
    buffers = [set() for _ in range(schedule.world_size)]
    for ranks in plan(schedule, 3):
        rows = np.concatenate([step.rows for step in ranks])
        seen.setdefault(ranks[0].epoch, []).extend(rows.tolist())
        assert sum(step.share for step in ranks) == pytest.approx(1.0)
        for buffer, step in zip(buffers, ranks, strict=True):
            assert set(step.rows[step.held].tolist()) <= buffer
            assert set(step.keep.tolist()) <= set(step.rows[~step.held].tolist())
            buffer.difference_update(step.evict.tolist())
            buffer.update(step.keep.tolist())
            assert len(buffer) <= schedule.buffer_frames
        assert sum(map(len, buffers)) == len(set().union(*buffers))
    assert all(sorted(rows) == list(range(schedule.num_frames)) for rows in seen.values())


@given(schedule=SCHEDULES)
@settings(max_examples=100)
def test_global_batches_do_not_depend_on_ranks_or_policy(schedule):
    alone = Schedule(schedule.num_frames, schedule.global_batch, seed=schedule.seed)
    for ranks, expected in zip(plan(schedule, 2), plan(alone, 2), strict=True):
        together = np.sort(np.concatenate([step.rows for step in ranks]))
        np.testing.assert_array_equal(together, np.sort(expected[0].rows))


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.8, 1.0])
def test_pinning_attains_the_bound_from_the_second_epoch_on(world_size, share):
    schedule = Schedule(600, 60, world_size, round(600 * share / world_size))
    reads = np.zeros(4, dtype=int)
    for ranks in plan(schedule, 4):
        reads[ranks[0].epoch] += sum(int((~step.held).sum()) for step in ranks)
    assert reads[0] == 600
    assert (reads[1:] == schedule.fewest_reads).all()


@pytest.mark.parametrize("buffer_frames", [50, 150])
def test_clairvoyant_eviction_attains_the_bound_too(buffer_frames):
    schedule = Schedule(300, 10, 2, buffer_frames, policy="clairvoyant")
    reads = np.zeros(5, dtype=int)
    for ranks in plan(schedule, 5):
        reads[ranks[0].epoch] += sum(int((~step.held).sum()) for step in ranks)
    assert (reads[1:] <= schedule.fewest_reads + 2 * schedule.global_batch).all()
    assert reads[1:].mean() >= schedule.fewest_reads


def test_reads_are_balanced_where_batches_are_not():
    schedule = Schedule(4000, 200, 2, 1500)
    for ranks in plan(schedule, 3):
        if ranks[0].epoch:
            reads = [int((~step.held).sum()) for step in ranks]
            assert abs(reads[0] - reads[1]) <= 1


@given(st.lists(st.integers(-1, 3), max_size=40))
def test_held_frames_stay_and_the_rest_is_dealt_evenly(holders):
    holder = np.array(holders, dtype=np.int64)
    owner = share_reads(holder, 4)
    np.testing.assert_array_equal(owner[holder >= 0], holder[holder >= 0])
    reads = np.bincount(owner[holder < 0], minlength=4)
    assert reads.max() - reads.min() <= 1


def test_same_seed_same_plan_and_other_seed_another():
    plans = [np.concatenate([s.rows for s in Schedule(50, 7, 2, 9, seed).steps(1, 3)]) for seed in (4, 4, 5)]
    np.testing.assert_array_equal(plans[0], plans[1])
    assert not np.array_equal(plans[0], plans[2][: len(plans[0])])


def test_an_order_of_epochs_only_rearranges_them():
    plain, turned = Schedule(40, 8), Schedule(40, 8, epoch_order=(2, 0, 1))
    np.testing.assert_array_equal(turned.permutation(0), plain.permutation(2))
    np.testing.assert_array_equal(turned.permutation(2), plain.permutation(1))


def test_ordered_epochs_begin_with_what_the_last_one_ended_with():
    schedule = Schedule(61, 10, seed=3)
    order = order_epochs(schedule, 6)
    assert order[0] == 0
    assert sorted(order) == list(range(6))

    def common(one, other):
        return len(set(schedule.permutation(one)[30:].tolist()) & set(schedule.permutation(other)[:30].tolist()))

    for place in range(1, 6):
        assert common(order[place - 1], order[place]) == max(common(order[place - 1], other) for other in order[place:])


@pytest.mark.parametrize(
    "values",
    [
        {"num_frames": 0},
        {"global_batch": 0},
        {"world_size": 0},
        {"buffer_frames": -1},
        {"policy": "lru"},
        {"epoch_order": ()},
    ],
)
def test_bad_plans_are_refused(values):
    with pytest.raises(InputError, match=next(iter(values))):
        Schedule(**{"num_frames": 10, "global_batch": 2, **values})


def test_unknown_rank_is_refused():
    with pytest.raises(InputError, match="rank 2"):
        next(Schedule(10, 2, 2).steps(2, 1))
