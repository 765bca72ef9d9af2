"""The lane lets the oldest run under way pass, one at a time, and never blocks for good."""

from __future__ import annotations

import random
import threading

import pytest

from ptycho_bluesky.workflow.lane import Lane


class GivenUpError(Exception):
    pass


def nothing() -> None:
    return None


def test_runs_pass_in_their_order_whatever_order_they_arrive_in():
    lane, passed, inside = Lane(), [], []
    names = [f"run {k}" for k in range(12)]
    for k, name in enumerate(names):
        lane.register(name, float(k))
    order = names.copy()
    random.Random(3).shuffle(order)

    def work(name: str) -> None:
        with lane.turn(name, nothing):
            inside.append(name)
            assert inside == [name]
            passed.append(name)
            inside.remove(name)
        lane.leave(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in order]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert passed == names


def test_who_leaves_lets_the_others_pass():
    lane = Lane()
    lane.register("old", 0.0)
    lane.register("new", 1.0)
    passed = threading.Event()

    def work() -> None:
        with lane.turn("new", nothing):
            passed.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert not passed.wait(0.3)
    lane.leave("old")
    assert passed.wait(10)
    thread.join(10)


def test_waiting_can_be_given_up():
    lane = Lane()
    lane.register("old", 0.0)
    lane.register("new", 1.0)

    def give_up() -> None:
        raise GivenUpError

    with pytest.raises(GivenUpError), lane.turn("new", give_up):
        pass
    with pytest.raises(GivenUpError):
        lane.wait_prepared("new", lambda uid: uid == "old", give_up)
    lane.prepared("old")
    lane.wait_prepared("new", lambda uid: uid == "old", give_up)
    # Only older ones are waited for.
    lane.wait_prepared("old", lambda uid: True, give_up)


def test_an_older_run_that_comes_late_waits_for_the_one_inside():
    lane = Lane()
    lane.register("new", 1.0)
    entered, release, second = threading.Event(), threading.Event(), threading.Event()

    def hold() -> None:
        with lane.turn("new", nothing):
            entered.set()
            release.wait(10)

    def late() -> None:
        with lane.turn("old", nothing):
            second.set()

    threads = [threading.Thread(target=hold)]
    threads[0].start()
    assert entered.wait(10)
    lane.register("old", 0.0)
    threads.append(threading.Thread(target=late))
    threads[1].start()
    assert not second.wait(0.3)
    release.set()
    assert second.wait(10)
    for thread in threads:
        thread.join(10)
