"""Whether the worker looks at a run and retrains on it, from what stands in the notes of the runs before."""

from __future__ import annotations

import math
from typing import Any

from ptycho_bluesky.config import Settings
from ptycho_bluesky.training.update_policy import Action, Finding, PolicyState, UpdatePolicy, about, mismatch
from ptycho_bluesky.workflow.run_book import RunBook, validated_model
from ptycho_bluesky.workflow.run_state import RunState

__all__ = ["findings", "glances_at", "looks_at", "needs_training", "note_mismatch", "policy_of"]


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
            known = {"model_id": note.model_id, "promoted_id": note.promoted_id}
            found.append(Finding(note.time_s, note.mismatch, note.gain, **known))
        elif note.looked and not ended:
            found.append(Finding(note.time_s, None, pending=True))
    return found


def looks_at(settings: Settings, book: RunBook, state: RunState, model_id: str) -> dict[str, Any]:
    """Whether a run is reconstructed and compared with the serving model, and why.

    Its geometry is not known before it is read, so this is asked after that.

    Parameters
    ----------
    settings : Settings
    book : RunBook
    state : RunState
    model_id : str
        Model that serves, "" for none.

    Returns
    -------
    dict
        ``go_on``, ``reason``, and the figures of the policy that it follows from.
    """
    policy = policy_of(settings)
    if policy is None or state.purpose != "train":
        return {"go_on": True, "reason": "every run is looked at"}
    counted = about(findings(book, state), model_id)
    go_on, reason = policy.looks_at(state.time_s, counted)
    before = [finding for finding in counted if finding.time_s < state.time_s and not finding.pending]
    return {
        "go_on": go_on,
        "reason": reason,
        **_grounds(policy, policy.state(before), model_id),
        "last_mismatch": before[-1].mismatch if before else None,
    }


def glances_at(settings: Settings, state: RunState) -> bool:
    """Whether the middle of a run that is looked at comes first: where the policy expects that the model fits."""
    suspended = state.done.get("look", {}).get("state") == PolicyState.SUSPENDED
    return suspended and settings.worker.look_fraction < 1.0


def note_mismatch(
    state: RunState, stage: str = "validate", model: str = "parent", score_name: str = "score_serving"
) -> None:
    """Put the mismatch of a run, or of its middle, beside the two figures that it is made of, and the model's id."""
    if "model_id" in state.done[stage]:
        # It was noted then; a run that is taken up again may find another model served by now.
        return
    state.done[stage]["model_id"] = state.done.get(model, {}).get("model_id", "")
    figures = state.done[stage].setdefault("figures", {})
    promoted, score = state.done.get(model, {}).get("score_at_promotion"), figures.get(score_name)
    if promoted is None or score is None or not (math.isfinite(promoted) and promoted > 0):
        return
    figures["serving_score_at_promotion"] = promoted
    figures["mismatch"] = mismatch(score, promoted)


def needs_training(settings: Settings, book: RunBook, state: RunState) -> dict[str, Any]:
    """Whether a validated run calls for a retrained model, and why; as `looks_at`."""
    policy, found = policy_of(settings), state.done["validate"].get("figures", {}).get("mismatch")
    if policy is None:
        return {"go_on": True, "reason": "every run is learned from", "mismatch": found}
    model_id = validated_model(state) or ""
    before = policy.state(each for each in about(findings(book, state), model_id) if each.time_s < state.time_s)
    go_on = policy.act(before, found) is Action.RETRAIN
    if not go_on:
        reason = f"the model fits: mismatch {found:.3f} is below the tolerance of {policy.tolerance:g}"
    elif found is None:
        reason = "no model was served"
    else:
        settling = "" if policy.needs_training(found) else ", and the last retraining still gained much"
        reason = f"mismatch {found:.3f}{settling}"
    return {"go_on": go_on, "reason": reason, **_grounds(policy, before, model_id), "mismatch": found}


def _grounds(policy: UpdatePolicy, state: PolicyState, model_id: str) -> dict[str, Any]:
    """What a decision of the policy is made from, beside what was found."""
    return {
        "model_id": model_id,
        "state": str(state),
        "mismatch_tolerance": policy.tolerance,
        "probe_interval_s": policy.probe_interval_s,
        "settle_gain": policy.settle_gain if math.isfinite(policy.settle_gain) else None,
        "patience": policy.patience,
    }
