"""Interruptions at any moment: while points are written, frames rendered, the detector armed, frames flown."""

from __future__ import annotations

import random
import threading
import time

import numpy as np
import pytest
from bluesky.suspenders import SuspendBoolHigh
from bluesky.utils import RunEngineInterrupted, TransitionError
from ophyd import Signal

N_FLY, N_STEP = 400, 8


def pause_later(run_engine, rng, longest_s):
    """Ask for a pause after a random time; the scan may be over by then."""

    def ask():
        time.sleep(rng.uniform(0.0, longest_s))
        try:
            run_engine.request_pause(defer=rng.random() < 0.3)
        except TransitionError:
            return

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


def run_with_pauses(session, plan, rng, longest_s, is_safe):
    """Run a plan with up to three pauses; returns how many there were."""
    pauses = 0
    thread = pause_later(session.RE, rng, longest_s)
    resume = lambda: session.RE(plan)  # noqa: E731
    while True:
        try:
            resume()
        except RunEngineInterrupted:
            thread.join()
            pauses += 1
            assert is_safe()
            if pauses < 3:
                thread = pause_later(session.RE, rng, longest_s)
            resume = session.RE.resume
        else:
            thread.join()
            return pauses


@pytest.mark.parametrize("seed", range(6))
def test_fly_scan_with_pauses_at_any_moment(session, documents, is_safe, seed):
    plan = session.fly_spiral(num_points=N_FLY, step_m=50e-9, exposure_s=0.8e-3, period_s=1.5e-3)
    run_with_pauses(session, plan, random.Random(seed), 1.0, is_safe)
    assert documents.stop["exit_status"] == "success"
    assert documents.check_segments() == N_FLY
    assert documents.rows() == N_FLY
    np.testing.assert_array_equal(documents.frame_indices(), np.arange(N_FLY))
    assert is_safe()


@pytest.mark.parametrize("seed", range(4))
def test_step_scan_with_pauses_at_any_moment(session, documents, is_safe, seed):
    plan = session.spiral(num_points=N_STEP, step_m=200e-9, exposure_s=0.02)
    run_with_pauses(session, plan, random.Random(seed), 1.5, is_safe)
    assert documents.stop["exit_status"] == "success"
    assert documents.check_segments() == N_STEP
    assert documents.rows() == N_STEP == len(documents.events("primary"))
    np.testing.assert_array_equal(documents.frame_indices(), np.arange(N_STEP))


def test_suspender_holds_a_scan_and_lets_it_go_on(session, documents, is_safe):
    """The beam is lost in the middle of a flight and comes back."""
    lost = Signal(name="beam_lost", value=0)
    suspender = SuspendBoolHigh(lost)
    safe_meanwhile = []

    def lose_the_beam():
        lost.put(1)
        time.sleep(1.0)
        safe_meanwhile.append(is_safe())
        lost.put(0)

    threads = []

    def hook(name, doc):
        if name == "stream_datum" and not threads:
            threads.append(threading.Thread(target=lose_the_beam))
            threads[0].start()

    documents.hooks.append(hook)
    session.RE.install_suspender(suspender)
    try:
        session.RE(session.fly_spiral(num_points=N_FLY, step_m=50e-9, exposure_s=0.8e-3, period_s=4e-3))
    finally:
        session.RE.remove_suspender(suspender)
    threads[0].join()
    assert safe_meanwhile == [True]
    assert documents.stop["exit_status"] == "success"
    assert len(documents.events("segments")) == 2
    assert documents.check_segments() == N_FLY == documents.rows()
    np.testing.assert_array_equal(documents.frame_indices(), np.arange(N_FLY))
