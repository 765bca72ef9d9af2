"""The gate between training and the edge: no model is promoted without a test.

A candidate must beat the serving model, and a constant image, on held-out areas of what it was trained for, and must
not have forgotten older data of the same regime. Where another model serves than the one that it would replace (a
regime that comes back has a promoted model of its own), it is measured against the better of the two. Data of other
regimes are reported and decide nothing: several models stay promoted, one a regime.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ptycho_bluesky.errors import InputError

__all__ = ["Compared", "Decision", "Thresholds", "decide"]


@dataclass(frozen=True)
class Thresholds:
    """What the gate asks for.

    Attributes
    ----------
    tolerance : float
        How much worse than the serving model a candidate may be on the new data and still be promoted (for validation
        sets so small that their figure is noisy); 0 asks for strictly better.
    forget_tolerance : float
        How much worse it may be, on average, on older data of the same regime.
    over_constant : float
        How much better than a constant image it must be.

    Raises
    ------
    InputError
        One is negative.
    """

    tolerance: float = 0.0
    forget_tolerance: float = 0.02
    over_constant: float = 0.0

    def __post_init__(self) -> None:
        for name in ("tolerance", "forget_tolerance", "over_constant"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} = {getattr(self, name)}", "it is not negative")


@dataclass(frozen=True)
class Compared:
    """Candidate and serving model on one older set of labels.

    Attributes
    ----------
    name : str
        Run that the labels are of.
    candidate, serving : float
        The deciding metric of each; higher is better.
    replaced : float, optional
        That of the model that the candidate would replace, where another one serves.
    """

    name: str
    candidate: float
    serving: float
    replaced: float | None = None

    @property
    def loss(self) -> float:
        """How much worse the candidate is than the better of the others."""
        best = _best(self.serving, self.replaced)
        return math.nan if best is None else best - self.candidate

    @property
    def scores(self) -> list[float]:
        """Candidate, serving model, and the one that would be replaced where that is another."""
        return [self.candidate, self.serving, *([] if self.replaced is None else [self.replaced])]


@dataclass(frozen=True)
class Decision:
    """What the gate decided and on what grounds.

    Attributes
    ----------
    promote : bool
    reason : str
        One sentence with the numbers.
    figures : dict
        ``metric``, ``candidate``, ``serving`` and ``replaced`` (None without such a model), ``trivial`` (what a
        constant answer scores), ``gain`` (candidate − the better of these), ``forgotten`` (mean loss on
        older data of the regime, None without any), ``old`` and ``other_regimes`` (each set's scores, see
        `Compared.scores`), and the thresholds.
    """

    promote: bool
    reason: str
    figures: Mapping[str, Any] = field(default_factory=dict)


def decide(
    candidate: Mapping[str, Any],
    serving: Mapping[str, Any] | None = None,
    *,
    replaced: Mapping[str, Any] | None = None,
    old: Sequence[Compared] = (),
    other_regimes: Sequence[Compared] = (),
    metric: str = "score",
    thresholds: Thresholds | None = None,
) -> Decision:
    """Promote a candidate that is better on the new data and has not forgotten the old.

    Parameters
    ----------
    candidate : mapping
        Figures of the candidate from `training.evaluate.evaluate` on held-out frames of the new data, which neither
        model trained on; higher is better. ``constant`` in it, if present, is what a constant image scores by the same
        metric.
    serving : mapping, optional
        Figures of the serving model on the *same* frames; None when nothing is served yet.
    replaced : mapping, optional
        Figures of the model that the candidate would replace, where another one serves, on the same frames.
    old : sequence of Compared
        The models on older data of the same regime.
    other_regimes : sequence of Compared
        The models on data of other regimes: reported, never decisive.
    metric : str
        Key of the figure that decides.
    thresholds : Thresholds, optional

    Returns
    -------
    Decision

    Raises
    ------
    InputError
        The metric is missing.
    """
    if any(metric not in each for each in (candidate, serving, replaced) if each is not None):
        raise InputError(f"figures without {metric!r}", "models are compared by one metric")
    limits = thresholds or Thresholds()
    ours, trivial = float(candidate[metric]), float(candidate.get("constant", -math.inf))
    others = [None if each is None else float(each[metric]) for each in (serving, replaced)]
    theirs = _best(*others)
    # A set that one of the two cannot be scored on says nothing about forgetting.
    losses = [each.loss for each in old if math.isfinite(each.loss)]
    forgotten = sum(losses) / len(losses) if losses else None
    figures = {
        "metric": metric,
        "candidate": ours,
        "serving": others[0],
        "replaced": others[1],
        "trivial": trivial if math.isfinite(trivial) else None,
        "gain": None if theirs is None else ours - theirs,
        "forgotten": forgotten,
        "old": {each.name: each.scores for each in old},
        "other_regimes": {each.name: each.scores for each in other_regimes},
        "tolerance": limits.tolerance,
        "forget_tolerance": limits.forget_tolerance,
        "over_constant": limits.over_constant,
    }
    whose = "the serving model" if theirs == others[0] else "the regime's own model"
    promote, reason = _verdict(metric, ours, theirs, whose, trivial, forgotten, limits)
    return Decision(promote, reason, figures)


def _best(*scores: float | None) -> float | None:
    """The highest score; None where no model could be scored."""
    return max((score for score in scores if score is not None and math.isfinite(score)), default=None)


def _verdict(
    metric: str,
    ours: float,
    theirs: float | None,
    whose: str,
    trivial: float,
    forgotten: float | None,
    limits: Thresholds,
) -> tuple[bool, str]:
    """The rules, the first that fails first."""
    if not math.isfinite(ours):
        return False, f"{metric} of the candidate is not a number"
    if ours <= trivial + limits.over_constant:
        return False, f"{metric} {ours:.4f} is no better than a constant image ({trivial:.4f})"
    if theirs is None:
        return True, f"{metric} {ours:.4f}; no model was served before"
    if not ours > theirs - limits.tolerance:
        return False, f"{metric} {ours:.4f} is not better than {theirs:.4f} of {whose}"
    if forgotten is not None and forgotten > limits.forget_tolerance:
        return False, (
            f"{metric} {ours:.4f} against {theirs:.4f} of {whose}, but {forgotten:.4f} worse on older data "
            f"of the regime (at most {limits.forget_tolerance:g})"
        )
    kept = "" if forgotten is None else f"; {forgotten:+.4f} lost on older data of the regime"
    return True, f"{metric} {ours:.4f} against {theirs:.4f} of {whose}{kept}"
