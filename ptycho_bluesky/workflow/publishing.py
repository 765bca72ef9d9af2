"""From the worker's files into Tiled: reconstruction, labels, decision; whatever is not there yet."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from ptycho_bluesky.io.products import read_reconstruction
from ptycho_bluesky.workflow.run_state import RunFolder, RunState
from ptycho_bluesky.workflow.tiled_store import TiledStore

__all__ = ["clean", "decision_of", "publish"]

logger = logging.getLogger(__name__)


def publish(store: Callable[[], TiledStore], folder: RunFolder, state: RunState) -> None:
    """Write the finished products of a run that are not yet in Tiled, the decision last.

    Parameters
    ----------
    store : callable
        Gives the connected store; called only when there is something to write.
    folder : RunFolder
    state : RunState
        As far as the run has got.

    Raises
    ------
    UnreachableError
        Tiled does not answer; nothing is lost, call again.
    """
    published = folder.published()
    if "reconstruct" in state.done and "reconstruction" not in published and folder.reconstruction.exists():
        store().write_reconstruction(read_reconstruction(folder.reconstruction))
        folder.mark_published("reconstruction")
    label = state.done.get("label", {})
    wanted = bool(label.get("accepted")) and state.purpose == "train"
    if wanted and "labels" not in published and folder.labels.exists():
        from ptycho_bluesky.training.corpus import read_label_set

        store().write_labels(read_label_set(folder.labels))
        folder.mark_published("labels")
    if state.outcome and "decision" not in published:
        store().write_decision(state.uid, decision_of(state))
        folder.mark_published("decision")
        clean(folder, state)


def decision_of(state: RunState) -> dict[str, Any]:
    """Record of the decision on a run, as it goes into Tiled."""
    return {
        "stop_uid": state.stop_uid,
        "scan_id": state.scan_id,
        "purpose": state.purpose,
        "outcome": state.outcome,
        "reason": state.reason,
        "model_id": state.model_id,
        "parent_id": state.done.get("parent", {}).get("model_id", ""),
        "regime": state.regime,
        "figures": state.figures,
        "decisions": {name: state.done[name] for name in ("look", "retrain", "regime", "switch") if name in state.done},
        "stage_seconds": state.stage_seconds,
    }


def clean(folder: RunFolder, state: RunState) -> None:
    """Remove what is large and kept elsewhere: the frames, the models; labels of reserved runs stay for validation.

    A failed or cancelled run keeps everything: a person may want to look, or to have it tried again.
    """
    if state.outcome in ("failed", "cancelled"):
        return
    models = [folder.path / f"{name}.onnx" for name in ("serving", "regime_parent", "replaced", "rival", "glanced")]
    files = [folder.measurement, folder.parent, folder.model, *models]
    if state.purpose != "reserved":
        files.append(folder.labels)
    for path in files:
        path.unlink(missing_ok=True)
