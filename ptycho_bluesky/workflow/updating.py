"""Whether the worker looks at a run and retrains on it, from what stands in the notes of the runs before."""

from __future__ import annotations

import math

from ptycho_bluesky.config import Settings
from ptycho_bluesky.training.update_policy import Action, Finding, PolicyState, UpdatePolicy, mismatch
from ptycho_bluesky.workflow.run_book import RunBook
from ptycho_bluesky.workflow.run_state import RunState

__all__ = ["findings", "glances_at", "looks_at", "needs_training", "note_mismatch", "policy_of", "policy_state"]


def policy_of(settings: Settings) -> UpdatePolicy | None:
    """The policy, None where every run is followed."""
    worker = settings.worker
    if worker.update == "every_run":
        return None
    gain = math.inf if worker.settle_gain is None else worker.settle_gain
    return UpdatePolicy(worker.mismatch_tolerance, worker.probe_interval_s, gain, worker.patience)


def findings(book: RunBook, state: RunState) -> list[Finding]:
    """What was found in the other training runs of the same geometry; those under way count as looked at."""
    found = []
    for note in book.like(state):
        if note.purpose != "train":
            continue
        ended = bool(note.outcome)
        if note.validated and (ended or note.gain is not None):
            found.append(Finding(note.time_s, note.mismatch, note.gain))
        elif note.looked and not ended:
            found.append(Finding(note.time_s, None, pending=True))
    return found


def looks_at(settings: Settings, book: RunBook, state: RunState) -> tuple[bool, str]:
    """Whether a run is reconstructed and compared with the serving model, and why.

    Its geometry is not known before it is read, so this is asked after that.
    """
    policy = policy_of(settings)
    if policy is None or state.purpose != "train":
        return True, "every run is looked at"
    return policy.looks_at(state.time_s, findings(book, state))


def glances_at(settings: Settings, book: RunBook, state: RunState) -> bool:
    """Whether the middle of a run that is looked at comes first: where the policy expects that the model fits."""
    suspended = policy_state(settings, book, state) is PolicyState.SUSPENDED
    return suspended and state.purpose == "train" and settings.worker.look_fraction < 1.0


def note_mismatch(
    state: RunState, stage: str = "validate", model: str = "parent", score_name: str = "score_serving"
) -> None:
    """Put the mismatch of a run, or of its middle, beside the two figures that it is made of."""
    figures = state.done[stage].setdefault("figures", {})
    promoted, score = state.done.get(model, {}).get("score_at_promotion"), figures.get(score_name)
    if promoted is None or score is None or not (math.isfinite(promoted) and promoted > 0):
        return
    figures["serving_score_at_promotion"] = promoted
    figures["mismatch"] = mismatch(score, promoted)


def policy_state(settings: Settings, book: RunBook, state: RunState) -> PolicyState | None:
    """State of the policy when a run began, None where every run is followed."""
    policy = policy_of(settings)
    if policy is None:
        return None
    return policy.state(each for each in findings(book, state) if each.time_s < state.time_s)


def needs_training(settings: Settings, book: RunBook, state: RunState) -> tuple[bool, str]:
    """Whether a validated run calls for a retrained model, and why."""
    policy, before = policy_of(settings), policy_state(settings, book, state)
    found = state.done["validate"].get("figures", {}).get("mismatch")
    if policy is None or before is None:
        return True, "every run is learned from"
    if policy.act(before, found) is Action.RETRAIN:
        if found is None:
            return True, "no model was served"
        settling = "" if policy.needs_training(found) else ", and the last retraining still gained much"
        return True, f"mismatch {found:.3f}{settling}"
    return False, f"the model fits: mismatch {found:.3f} is below the tolerance of {policy.tolerance:g}"
