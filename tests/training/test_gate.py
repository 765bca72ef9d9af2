from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.training.gate import Compared, Thresholds, decide

SCORES = st.floats(-1, 1)


@pytest.mark.parametrize(
    ("candidate", "serving", "promote", "word"),
    [
        ({"score": 0.4, "constant": 0.01}, None, True, "no model was served"),
        ({"score": 0.005, "constant": 0.01}, None, False, "no better than a constant"),
        ({"score": 0.5, "constant": 0.01}, {"score": 0.4}, True, "against 0.4000"),
        ({"score": 0.4, "constant": 0.01}, {"score": 0.4}, False, "not better"),
        ({"score": float("nan"), "constant": 0.01}, {"score": 0.4}, False, "not a number"),
        ({"score": 0.3}, {"score": float("nan")}, True, "no model was served"),
    ],
)
def test_decisions(candidate, serving, promote, word):
    decision = decide(candidate, serving)
    assert decision.promote is promote
    assert word in decision.reason
    assert decision.figures["serving"] == (None if serving is None else pytest.approx(serving["score"], nan_ok=True))


def test_tolerance_allows_for_a_noisy_figure():
    assert not decide({"score": 0.395}, {"score": 0.4}).promote
    assert decide({"score": 0.395}, {"score": 0.4}, thresholds=Thresholds(tolerance=0.01)).promote


def test_a_candidate_must_be_clearly_better_than_a_constant_image():
    assert not decide({"score": 0.11, "constant": 0.1}, thresholds=Thresholds(over_constant=0.02)).promote
    assert decide({"score": 0.13, "constant": 0.1}, thresholds=Thresholds(over_constant=0.02)).promote


def test_what_was_forgotten_decides_for_the_same_regime_only():
    new = ({"score": 0.7}, {"score": 0.6})
    forgets = [Compared("a", 0.50, 0.60), Compared("b", 0.61, 0.60)]
    decision = decide(*new, old=forgets)
    assert not decision.promote
    assert decision.figures["forgotten"] == pytest.approx(0.045)
    assert "0.0450 worse on older data" in decision.reason
    assert decide(*new, old=forgets, thresholds=Thresholds(forget_tolerance=0.05)).promote
    reported = decide(*new, other_regimes=forgets)
    assert reported.promote
    assert reported.figures["forgotten"] is None
    assert reported.figures["other_regimes"] == {"a": [0.50, 0.60], "b": [0.61, 0.60]}


def test_a_set_without_a_score_says_nothing():
    decision = decide({"score": 0.7}, {"score": 0.6}, old=[Compared("a", math.nan, 0.6), Compared("b", 0.6, 0.6)])
    assert decision.promote
    assert decision.figures["forgotten"] == 0.0


@given(SCORES, SCORES, SCORES, st.lists(st.tuples(SCORES, SCORES), max_size=4))
def test_nothing_worse_is_ever_promoted(ours, theirs, constant, old):
    sets = [Compared(str(k), *pair) for k, pair in enumerate(old)]
    decision = decide({"score": ours, "constant": constant}, {"score": theirs}, old=sets)
    if decision.promote:
        assert ours > max(theirs, constant)
        assert not old or sum(each.loss for each in sets) / len(sets) <= 0.02
    assert str(decision.figures["candidate"]) == str(ours)


def test_models_are_compared_by_one_metric():
    with pytest.raises(InputError, match="pearson"):
        decide({"score": 1.0}, {"score": 1.0}, metric="pearson")


@pytest.mark.parametrize("name", ["tolerance", "forget_tolerance", "over_constant"])
def test_negative_thresholds_are_refused(name):
    with pytest.raises(InputError, match=name):
        Thresholds(**{name: -0.1})


@pytest.mark.parametrize(
    ("candidate", "replaced", "old", "promote", "word"),
    [
        (0.58, 0.60, [], False, "not better than 0.6000 of the regime's own model"),
        (0.61, 0.60, [], True, "against 0.6000 of the regime's own model"),
        (0.61, 0.60, [Compared("a", 0.50, 0.20, 0.60)], False, "0.1000 worse on older data"),
        (0.61, 0.60, [Compared("a", 0.59, 0.20, 0.60)], True, "+0.0100 lost"),
        (0.61, 0.60, [Compared("a", 0.50, math.nan, 0.60)], False, "0.1000 worse on older data"),
        (0.61, 0.10, [Compared("a", 0.59, 0.60, 0.20)], True, "against 0.2000 of the serving model"),
    ],
)
def test_the_better_of_the_serving_and_the_replaced_model_counts(candidate, replaced, old, promote, word):
    decision = decide({"score": candidate}, {"score": 0.2}, replaced={"score": replaced}, old=old)
    assert decision.promote is promote
    assert word in decision.reason
    assert (decision.figures["serving"], decision.figures["replaced"]) == (0.2, replaced)
    assert decision.figures["gain"] == pytest.approx(candidate - max(replaced, 0.2))
    assert all(len(scores) == 3 for scores in decision.figures["old"].values())
