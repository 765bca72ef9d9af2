from __future__ import annotations

import pytest

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.training.gate import decide


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
    assert decide({"score": 0.395}, {"score": 0.4}, tolerance=0.01).promote


def test_models_are_compared_by_one_metric():
    with pytest.raises(InputError, match="pearson"):
        decide({"score": 1.0}, {"score": 1.0}, metric="pearson")
