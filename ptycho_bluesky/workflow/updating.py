"""Whether the worker looks at a run and retrains on it, from what stands in the states of the runs before."""

from __future__ import annotations

import math

from ptycho_bluesky.config import Settings
from ptycho_bluesky.training.update_policy import Finding, UpdatePolicy, mismatch
from ptycho_bluesky.workflow.run_state import RunState, run_states

__all__ = ["findings", "looks_at", "needs_training", "note_mismatch"]


def _policy(settings: Settings) -> UpdatePolicy | None:
    """The policy, None where every run is followed."""
    if settings.worker.update == "every_run":
        return None
    return UpdatePolicy(settings.worker.mismatch_tolerance, settings.worker.probe_interval_s)


def findings(settings: Settings, state: RunState) -> list[Finding]:
    """What was found in the other training runs of the same regime."""
    return [
        Finding(other.time_s, other.done["validate"].get("figures", {}).get("mismatch"))
        for other in run_states(settings)
        if other.uid != state.uid
        and other.purpose == "train"
        and other.regime == state.regime
        and "validate" in other.done
    ]


def looks_at(settings: Settings, state: RunState) -> tuple[bool, str]:
    """Whether a run is reconstructed and compared with the serving model, and why."""
    policy = _policy(settings)
    if policy is None or state.purpose != "train":
        return True, "every run is looked at"
    return policy.looks_at(state.time_s, findings(settings, state))


def note_mismatch(state: RunState) -> None:
    """Put the mismatch of a validated run beside the two figures that it is made of."""
    figures = state.done["validate"].get("figures", {})
    promoted, score = state.done.get("parent", {}).get("score_at_promotion"), figures.get("score_serving")
    if promoted is None or score is None or not (math.isfinite(promoted) and promoted > 0):
        return
    figures["serving_score_at_promotion"] = promoted
    figures["mismatch"] = mismatch(score, promoted)


def needs_training(settings: Settings, state: RunState) -> tuple[bool, str]:
    """Whether a validated run calls for a retrained model, and why."""
    policy = _policy(settings)
    found = state.done["validate"].get("figures", {}).get("mismatch")
    if policy is None:
        return True, "every run is learned from"
    if policy.needs_training(found):
        return True, "no model was served" if found is None else f"mismatch {found:.3f}"
    return False, f"the model fits: mismatch {found:.3f} is below the tolerance of {policy.tolerance:g}"
