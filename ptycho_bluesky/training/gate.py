"""The gate between training and the edge: no model is promoted without a test.

The policy is small and explicit, so that a fuller one can take its place: a function from figures to a `Decision`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ptycho_bluesky.errors import InputError

__all__ = ["Decision", "decide"]


@dataclass(frozen=True)
class Decision:
    """What the gate decided and on what grounds.

    Attributes
    ----------
    promote : bool
    reason : str
        One sentence with the numbers.
    figures : dict
        ``metric``, ``candidate``, ``serving`` (None without a serving model), ``trivial`` (what a constant answer
        scores), ``tolerance``.
    """

    promote: bool
    reason: str
    figures: Mapping[str, Any] = field(default_factory=dict)


def decide(
    candidate: Mapping[str, Any],
    serving: Mapping[str, Any] | None = None,
    *,
    metric: str = "score",
    tolerance: float = 0.0,
) -> Decision:
    """Promote a candidate that is better than the serving model, and than a trivial answer, on the same frames.

    Parameters
    ----------
    candidate : mapping
        Figures of the candidate from `training.evaluate.evaluate` on frames that neither model trained on; higher is
        better. ``constant`` in it, if present, is what a constant image scores by the same metric.
    serving : mapping, optional
        Figures of the serving model on the *same* frames; None when nothing is served yet.
    metric : str
        Key of the figure that decides.
    tolerance : float
        How much worse than the serving model a candidate may be and still be promoted (for validation sets so small
        that their figure is noisy); 0 asks for strictly better.

    Returns
    -------
    Decision

    Raises
    ------
    InputError
        The metric is missing.
    """
    if metric not in candidate or (serving is not None and metric not in serving):
        raise InputError(f"figures without {metric!r}", "candidate and serving model are compared by one metric")
    ours, trivial = float(candidate[metric]), float(candidate.get("constant", -math.inf))
    theirs = None if serving is None else float(serving[metric])
    figures = {
        "metric": metric,
        "candidate": ours,
        "serving": theirs,
        "trivial": trivial if math.isfinite(trivial) else None,
        "tolerance": tolerance,
    }
    if not math.isfinite(ours):
        return Decision(False, f"{metric} of the candidate is not a number", figures)
    if ours <= trivial:
        return Decision(False, f"{metric} {ours:.4f} is no better than a constant image ({trivial:.4f})", figures)
    if theirs is None or not math.isfinite(theirs):
        return Decision(True, f"{metric} {ours:.4f}; no model was served before", figures)
    if ours > theirs - tolerance:
        return Decision(True, f"{metric} {ours:.4f} against {theirs:.4f} of the serving model", figures)
    return Decision(False, f"{metric} {ours:.4f} is not better than {theirs:.4f} of the serving model", figures)
