"""The policy's states, one transition after the other, and that they do not depend on when runs are heard of."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.training.update_policy import Action, Finding, PolicyState, UpdatePolicy, about, mismatch

POLICY = UpdatePolicy(tolerance=0.1, probe_interval_s=100.0)


def test_mismatch_is_relative_to_the_promotion():
    assert mismatch(0.63, 0.7) == pytest.approx(0.1)
    assert mismatch(0.7, 0.7) == 0.0
    assert mismatch(0.77, 0.7) < 0


@pytest.mark.parametrize("score", [0.0, -0.1, float("nan")])
def test_a_model_that_never_scored_cannot_be_compared(score):
    with pytest.raises(InputError, match="promotion"):
        mismatch(0.5, score)


def test_without_runs_the_first_is_looked_at():
    assert POLICY.state([]) is PolicyState.FOLLOWING
    assert POLICY.looks_at(0.0, [])[0]


def test_without_a_model_every_run_calls_for_one():
    assert POLICY.needs_training(None)
    assert POLICY.state([Finding(0.0, None)]) is PolicyState.FOLLOWING


@pytest.mark.parametrize(("found", "expected"), [(0.0999, False), (0.1, True), (0.5, True), (-0.2, False)])
def test_the_tolerance_decides(found, expected):
    assert POLICY.needs_training(found) is expected


def test_a_figure_that_is_no_number_calls_for_training():
    assert POLICY.needs_training(float("nan"))


def test_a_whole_experiment():
    """Fits, is suspended, is probed, drifts, is followed until it fits again."""
    findings, looked = [], []
    for time_s, found in (
        (0, None),
        (30, 0.3),
        (60, 0.05),
        (90, 0.9),
        (159, 0.9),
        (160, 0.02),
        (261, 0.2),
        (270, 0.04),
        (300, 0),
    ):
        look, reason = POLICY.looks_at(float(time_s), findings)
        assert reason
        looked.append(look)
        if look:
            findings.append(Finding(float(time_s), found))
    assert looked == [True, True, True, False, False, True, True, True, False]
    assert POLICY.state(findings) is PolicyState.SUSPENDED


@given(
    st.lists(st.tuples(st.floats(0, 1000), st.one_of(st.none(), st.floats(-0.5, 1))), unique_by=lambda item: item[0]),
    st.floats(0, 1000),
    st.randoms(use_true_random=False),
)
def test_the_order_in_which_runs_are_heard_of_does_not_matter(items, time_s, rng: random.Random):
    findings = [Finding(*item) for item in items]
    shuffled = findings.copy()
    rng.shuffle(shuffled)
    assert POLICY.looks_at(time_s, findings) == POLICY.looks_at(time_s, shuffled)


@given(st.lists(st.floats(0, 1000), min_size=1, unique=True))
def test_a_change_is_noticed_within_one_interval(times):
    """However runs fall, no interval longer than the stated one passes without a look where there are runs."""
    looked: list[float] = []
    findings = []
    for time_s in sorted(times):
        if POLICY.looks_at(time_s, findings)[0]:
            looked.append(time_s)
            findings.append(Finding(time_s, 0.0))
        else:
            assert time_s - looked[-1] < POLICY.probe_interval_s


SETTLING = UpdatePolicy(tolerance=0.1, probe_interval_s=100.0, settle_gain=0.05, patience=2)


@pytest.mark.parametrize(
    ("finding", "after"),
    [
        (Finding(0, None, 0.3), PolicyState.SETTLING),
        (Finding(0, None, 0.01), PolicyState.FOLLOWING),
        (Finding(0, 0.5, 0.05), PolicyState.SETTLING),
        (Finding(0, 0.5, 0.0), PolicyState.FOLLOWING),
        (Finding(0, 0.01, 0.2), PolicyState.SETTLING),
        (Finding(0, 0.01, 0.01), PolicyState.SUSPENDED),
        (Finding(0, 0.01), PolicyState.SUSPENDED),
        (Finding(0, 0.5), PolicyState.FOLLOWING),
    ],
)
@pytest.mark.parametrize("before", list(PolicyState))
def test_every_transition(before, finding, after):
    assert SETTLING.after(before, finding) is after
    assert SETTLING.after(before, Finding(0, None, pending=True)) is before


@pytest.mark.parametrize(
    ("state", "found", "action"),
    [
        (PolicyState.FOLLOWING, 0.05, Action.LEAVE),
        (PolicyState.FOLLOWING, 0.2, Action.RETRAIN),
        (PolicyState.SETTLING, 0.05, Action.RETRAIN),
        (PolicyState.SETTLING, 0.2, Action.RETRAIN),
        (PolicyState.SUSPENDED, 0.05, Action.LEAVE),
        (PolicyState.SUSPENDED, 0.2, Action.RETRAIN),
        (PolicyState.SUSPENDED, None, Action.RETRAIN),
    ],
)
def test_every_action(state, found, action):
    assert SETTLING.act(state, found) is action


def test_retraining_goes_on_while_it_gains():
    findings = [Finding(0, None, 0.4), Finding(1, 0.02, 0.06)]
    assert SETTLING.state(findings) is PolicyState.SETTLING
    assert SETTLING.state([*findings, Finding(2, 0.01, 0.02)]) is PolicyState.SUSPENDED


def test_what_training_does_not_help_is_left_alone():
    findings = [Finding(0, None, 0.01), Finding(1, 0.3, 0.0), Finding(2, 0.3, 0.0)]
    assert SETTLING.state(findings[:2]) is PolicyState.FOLLOWING
    assert SETTLING.state(findings) is PolicyState.SUSPENDED
    # It is probed, and a retraining that gains brings it back.
    assert SETTLING.looks_at(102.0, findings)[0]
    assert SETTLING.state([*findings, Finding(102, 0.3, 0.02)]) is PolicyState.FOLLOWING


def test_a_run_that_is_being_looked_at_counts_as_a_look():
    findings = [Finding(0, 0.0), Finding(150, None, pending=True)]
    assert SETTLING.state(findings) is PolicyState.SUSPENDED
    assert not SETTLING.looks_at(200.0, findings)[0]
    assert SETTLING.looks_at(250.0, findings)[0]


def test_the_reason_says_what_was_found():
    fits = [Finding(0, 0.0)]
    assert SETTLING.looks_at(50.0, fits)[1].startswith("the model fitted 50 s before;")
    pending = [*fits, Finding(48, None, pending=True)]
    assert SETTLING.looks_at(50.0, pending)[1].startswith("a run that began 2 s before is being looked at;")
    barren = [Finding(0, 0.3, 0.0), Finding(1, 0.3, 0.0)]
    assert "did not fit 49 s before, and retraining gained nothing" in SETTLING.looks_at(50.0, barren)[1]


# A served first; it was retrained to B, which fitted.
HISTORY = [
    Finding(0, None, 0.3, model_id="", promoted_id="A"),
    Finding(10, 0.05, model_id="A"),
    Finding(20, 0.3, 0.2, model_id="A", promoted_id="B"),
    Finding(30, 0.01, 0.01, model_id="B", promoted_id="C"),
    Finding(40, 0.02, model_id="C"),
]


@pytest.mark.parametrize(
    ("serves", "counted", "state"),
    [
        ("C", [0, 10, 20, 30, 40], PolicyState.SUSPENDED),
        # Rolled back once: the retraining that led to C no longer counts as one, but B did fit.
        ("B", [0, 10, 20, 30], PolicyState.SUSPENDED),
        # Rolled back twice: A did not fit.
        ("A", [0, 10, 20], PolicyState.FOLLOWING),
        ("promoted by hand", [], PolicyState.FOLLOWING),
        ("", [0], PolicyState.FOLLOWING),
    ],
)
def test_what_was_found_about_other_models_does_not_count(serves, counted, state):
    found = about(HISTORY[::-1], serves)
    assert [finding.time_s for finding in found] == counted
    assert SETTLING.state(found) is state


def test_a_gain_counts_where_its_model_serves():
    assert [finding.gain for finding in about(HISTORY[:3], "B")] == [0.3, None, 0.2]
    assert [finding.gain for finding in about(HISTORY[:3], "A")] == [0.3, None, None]
    # Neither of one that was cancelled before its promotion; one that was rejected counts as barren.
    ended = [Finding(0, 0.3, 0.2, model_id="A"), Finding(1, 0.3, 0.0, model_id="A")]
    assert [finding.gain for finding in about(ended, "A")] == [None, 0.0]


def test_a_finding_about_no_known_model_does_not_count_but_a_look_under_way_does():
    pending = Finding(5, None, pending=True)
    assert about([Finding(0, 0.0, model_id=None), pending], "A") == [pending]


@pytest.mark.parametrize(
    "values",
    [{"tolerance": 0.0}, {"tolerance": 1.0}, {"probe_interval_s": -1.0}, {"settle_gain": 0.0}, {"patience": 0}],
)
def test_bad_policies_are_refused(values):
    with pytest.raises(InputError, match=next(iter(values))):
        UpdatePolicy(**values)
