"""When to look at a run and when to retrain: compute is spent where the model has stopped fitting.

The policy of Babu et al., Nat. Commun. 14, 7059 (2023): part of each new run's labels validates the serving model; on a
mismatch it is retrained; within the tolerance, reconstructing and retraining every run stop, and only after a prolonged
interval is a run looked at again; the first mismatch resumes.

The state is no variable of its own but follows from what was found in the runs so far, so that a worker that died, or
that meets runs late and twice, comes to the same decisions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from ptycho_bluesky.errors import InputError

__all__ = ["Finding", "PolicyState", "UpdatePolicy", "mismatch"]


class PolicyState(StrEnum):
    """What the policy does with the next run."""

    FOLLOWING = "following"
    """Every run is reconstructed and compared with the serving model."""
    SUSPENDED = "suspended"
    """Runs are left alone until the interval has passed."""


@dataclass(frozen=True)
class Finding:
    """What looking at a run has found.

    Attributes
    ----------
    time_s : float
        When the run began, seconds since the epoch.
    mismatch : float or None
        See `mismatch`; None where no model was served.
    """

    time_s: float
    mismatch: float | None


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

    Raises
    ------
    InputError
        A number is out of range.
    """

    tolerance: float = 0.1
    probe_interval_s: float = 3600.0

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise InputError(f"tolerance = {self.tolerance}", "it lies between 0 and 1")
        if not self.probe_interval_s >= 0:
            raise InputError(f"probe_interval_s = {self.probe_interval_s}", "it is not negative")

    def needs_training(self, found: float | None) -> bool:
        """Whether a mismatch calls for a retrained model; without a model it always does."""
        return found is None or not found < self.tolerance

    def state(self, findings: Iterable[Finding]) -> PolicyState:
        """State after the runs that were looked at, in any order."""
        newest = max(findings, key=lambda finding: finding.time_s, default=None)
        if newest is None or self.needs_training(newest.mismatch):
            return PolicyState.FOLLOWING
        return PolicyState.SUSPENDED

    def looks_at(self, time_s: float, findings: Iterable[Finding]) -> tuple[bool, str]:
        """Whether a run is looked at, and why.

        Parameters
        ----------
        time_s : float
            When it began.
        findings : iterable of Finding
            Of runs that were looked at; those that began later do not count.
        """
        earlier = [finding for finding in findings if finding.time_s < time_s]
        if self.state(earlier) is PolicyState.FOLLOWING:
            return True, "every run is looked at until the model fits"
        last = max(finding.time_s for finding in earlier)
        waited_s = time_s - last
        if waited_s >= self.probe_interval_s:
            return True, f"probed {waited_s:.0f} s after the last look"
        return False, (
            f"the model fitted {waited_s:.0f} s before; the next run after {self.probe_interval_s:.0f} s is looked at"
        )
