"""When to look at a run and when to retrain: compute is spent where the model has stopped fitting.

The policy of Babu et al., Nat. Commun. 14, 7059 (2023): part of each new run's labels validates the serving model; on a
mismatch it is retrained; within the tolerance, reconstructing and retraining every run stop, and only after a prolonged
interval is a run looked at again; the first mismatch resumes. One state is added: a model that fits, but whose last
retraining still made it much better, is retrained until that ends, else it would be left half trained.

The state is no variable of its own but follows from what was found in the runs so far (`UpdatePolicy.state` folds
`UpdatePolicy.after` over them), so that a worker that died, or that meets runs late and twice, comes to the same
decisions.

Only what was found about the model that serves counts (`about`): after a rollback, or a promotion by hand, the policy
goes on from what is known of that model, and where nothing is, looks at the next run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from ptycho_bluesky.errors import InputError

__all__ = ["Action", "Finding", "PolicyState", "UpdatePolicy", "about", "mismatch"]


class PolicyState(StrEnum):
    """What the policy does with the next run."""

    FOLLOWING = "following"
    """The model does not fit: every run is looked at, and retrained on where it does not fit that one."""
    SETTLING = "settling"
    """The last retraining still gained much: the next run is looked at and retrained on, even where the model fits."""
    SUSPENDED = "suspended"
    """The model fits: runs are left alone until the interval has passed."""


class Action(StrEnum):
    """What is done with a run that was looked at."""

    RETRAIN = "retrain"
    LEAVE = "leave"


@dataclass(frozen=True)
class Finding:
    """What looking at a run has found.

    Attributes
    ----------
    time_s : float
        When the run began, seconds since the epoch.
    mismatch : float or None
        See `mismatch`; None where no model was served.
    gain : float or None
        What retraining on the run gained: score of the candidate less that of the serving model (where nothing was
        served: of a constant image) on held-out frames of the last runs; not positive where it was rejected, None where
        none was trained.
    pending : bool
        It is being looked at: nothing is found yet, but it counts as a look.
    model_id : str or None
        Model that was compared with it, "" where none served; None where that is not known.
    promoted_id : str
        Model that it made serve, "" for none.
    """

    time_s: float
    mismatch: float | None
    gain: float | None = None
    pending: bool = False
    model_id: str | None = ""
    promoted_id: str = ""


def about(findings: Iterable[Finding], model_id: str) -> list[Finding]:
    """The findings that count where a model serves.

    Parameters
    ----------
    findings : iterable of Finding
        In any order.
    model_id : str
        Model that serves, "" for none.

    Returns
    -------
    list of Finding
        Those about this model; the one that made it serve, and so on down the line of its predecessors, each up to the
        run that made the next one serve; and those that are pending. What a retraining gained is left out where its
        model serves no longer or never did, and so is a finding about no known model.
    """
    kept, current = [], model_id
    for finding in sorted(findings, key=lambda finding: finding.time_s, reverse=True):
        if finding.pending:
            kept.append(finding)
        elif finding.model_id is None:
            continue
        elif finding.promoted_id and finding.promoted_id == current:
            kept.append(finding)
            current = finding.model_id
        elif finding.model_id == current:
            barren = finding.gain is not None and finding.gain <= 0 and not finding.promoted_id
            kept.append(finding if barren else replace(finding, gain=None))
    return kept[::-1]


def mismatch(score: float, score_at_promotion: float) -> float:
    """How much worse a model reads new labels than those of its own held-out area when it was promoted.

    Parameters
    ----------
    score : float
        Structural similarity of the serving model's image with the new labels.
    score_at_promotion : float
        The same figure at its promotion.

    Returns
    -------
    float
        1 − score / score_at_promotion; negative where it reads the new ones better.

    Raises
    ------
    InputError
        The score at promotion is not positive: nothing can be measured against it.
    """
    if not (math.isfinite(score_at_promotion) and score_at_promotion > 0):
        raise InputError(
            f"a score of {score_at_promotion} at promotion", "a mismatch is measured against a positive one"
        )
    return 1.0 - score / score_at_promotion


@dataclass(frozen=True)
class UpdatePolicy:
    """The policy.

    Parameters
    ----------
    tolerance : float
        Mismatch from which on the model is retrained.
    probe_interval_s : float
        While suspended, a run is looked at when it began this long after the last one that was.
    settle_gain : float
        A retraining that gains at least this much score is followed by another one; infinite: never (the published
        policy).
    patience : int
        After so many retrainings in a row that gained nothing, runs that do not fit are left alone like those that do:
        training does not help there.

    Raises
    ------
    InputError
        A number is out of range.
    """

    tolerance: float = 0.1
    probe_interval_s: float = 3600.0
    settle_gain: float = math.inf
    patience: int = 3

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise InputError(f"tolerance = {self.tolerance}", "it lies between 0 and 1")
        if not self.probe_interval_s >= 0:
            raise InputError(f"probe_interval_s = {self.probe_interval_s}", "it is not negative")
        if not self.settle_gain > 0:
            raise InputError(f"settle_gain = {self.settle_gain}", "it is positive")
        if not self.patience >= 1:
            raise InputError(f"patience = {self.patience}", "it is at least 1")

    def needs_training(self, found: float | None) -> bool:
        """Whether a mismatch by itself calls for a retrained model; without a model it always does."""
        return found is None or not found < self.tolerance

    def act(self, state: PolicyState, found: float | None) -> Action:
        """What is done with a run that was looked at in a state."""
        if state is PolicyState.SETTLING or self.needs_training(found):
            return Action.RETRAIN
        return Action.LEAVE

    def after(self, state: PolicyState, finding: Finding) -> PolicyState:
        """State after a run that was looked at, its `patience` apart: the transitions.

        =====================================================  ==========
        found                                                  after
        =====================================================  ==========
        it is still being looked at                            unchanged
        retrained, gain ≥ settle_gain                          settling
        no model, or mismatch ≥ tolerance                      following
        mismatch < tolerance (and gain < settle_gain if any)   suspended
        =====================================================  ==========
        """
        if finding.pending:
            return state
        if finding.gain is not None and finding.gain >= self.settle_gain:
            return PolicyState.SETTLING
        if self.needs_training(finding.mismatch):
            return PolicyState.FOLLOWING
        return PolicyState.SUSPENDED

    def state(self, findings: Iterable[Finding]) -> PolicyState:
        """State after the runs that were looked at, in any order."""
        state, barren = PolicyState.FOLLOWING, 0
        for finding in sorted(findings, key=lambda finding: finding.time_s):
            state = self.after(state, finding)
            if finding.gain is not None:
                barren = 0 if finding.gain > 0 else barren + 1
            if state is PolicyState.FOLLOWING and finding.mismatch is not None and barren >= self.patience:
                state = PolicyState.SUSPENDED
        return state

    def looks_at(self, time_s: float, findings: Iterable[Finding]) -> tuple[bool, str]:
        """Whether a run is looked at, and why.

        Parameters
        ----------
        time_s : float
            When it began.
        findings : iterable of Finding
            Of runs that were looked at, or are being; those that began later do not count.
        """
        earlier = [finding for finding in findings if finding.time_s < time_s]
        if self.state(earlier) is not PolicyState.SUSPENDED:
            return True, "every run is looked at until the model fits and retraining gains little"
        last = max(earlier, key=lambda finding: finding.time_s)
        waited_s = time_s - last.time_s
        if waited_s >= self.probe_interval_s:
            return True, f"probed {waited_s:.0f} s after the last look"
        if last.pending:
            found = f"a run that began {waited_s:.0f} s before is being looked at"
        elif self.needs_training(last.mismatch):
            found = f"the model did not fit {waited_s:.0f} s before, and retraining gained nothing"
        else:
            found = f"the model fitted {waited_s:.0f} s before"
        return False, f"{found}; the next run after {self.probe_interval_s:.0f} s is looked at"
