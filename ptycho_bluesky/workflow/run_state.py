"""How far the worker has got with a run: one JSON file a run, rewritten whole after every stage."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ptycho_bluesky.config import Settings
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.workflow.client import jsonable
from ptycho_bluesky.workflow.files import read_json, write_json

__all__ = ["OUTCOMES", "RunFolder", "RunState", "forget_outcome", "read_stage", "run_folder", "run_states"]

OUTCOMES = ("promoted", "rejected", "switched", "skipped", "cancelled", "failed")


@dataclass
class RunState:
    """State of a run at the worker.

    Attributes
    ----------
    uid, stop_uid : str
        Run, and the stop document that it was taken up with: another one means that the run was written anew.
    purpose : str
        ``train``, ``reserved`` or ``test``.
    scan_id : int or None
    time_s : float
        Start of the run.
    regime : dict
        Shape of the frames, pixel size and, once the probe is known, the name of its regime: what one model is for.
    stage : str
        Stage under way, "" before the first and after the last.
    done : dict
        Result of each finished stage, JSON-able.
    stage_seconds : dict
        What each took.
    begun : dict
        How often each stage was begun that has not ended: more than once where it failed, or the worker died. 0 where
        it was begun, but what ended it (Tiled away, a full disk, an orderly stop of the worker) is no fault of the run.
    outcome : str
        One of `OUTCOMES`; "" while it is under way.
    reason : str
        Why it has its outcome; while it is under way, the last error.
    updated_s : float
    """

    uid: str
    stop_uid: str = ""
    purpose: str = "train"
    scan_id: int | None = None
    time_s: float = 0.0
    regime: dict[str, Any] = field(default_factory=dict)
    stage: str = ""
    done: dict[str, dict[str, Any]] = field(default_factory=dict)
    stage_seconds: dict[str, float] = field(default_factory=dict)
    begun: dict[str, int] = field(default_factory=dict)
    outcome: str = ""
    reason: str = ""
    taken_s: float = 0.0
    updated_s: float = 0.0

    @property
    def figures(self) -> dict[str, Any]:
        """Figures of every stage together."""
        return {key: value for result in self.done.values() for key, value in result.get("figures", {}).items()}

    @property
    def model_id(self) -> str:
        """Model that the run led to, "" if none."""
        return str(self.done.get("train", {}).get("model_id", ""))


class RunFolder:
    """Folder of one run: its state and its products.

    Parameters
    ----------
    path : path
        ``worker_dir/<uid>``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.measurement = path / "measurement.npz"
        self.reconstruction = path / "reconstruction.h5"
        self.labels = path / "labels.h5"
        self.held_out = path / "held_out.h5"
        self.parent = path / "parent.onnx"
        self.model = path / "model.onnx"
        self.record = path / "model.json"
        self.training = path / "training"
        self.progress = path / "progress.json"
        self.cancel = path / "cancel"
        self._state = path / "state.json"
        self._published = path / "published.json"

    def load(self) -> RunState | None:
        """State, None when the worker has not yet taken the run up."""
        content = read_json(self._state)
        if content is None:
            return None
        known = {name: content[name] for name in RunState.__dataclass_fields__ if name in content}
        try:
            return RunState(**known)
        except TypeError as error:
            raise InputError(f"{self._state}: {error}", "it is no state of a run", "remove it") from error

    def save(self, state: RunState) -> None:
        """Write the state, whole or not at all."""
        state.updated_s = time.time()
        write_json(self._state, jsonable(asdict(state)))

    def published(self) -> list[str]:
        """Products that are in Tiled."""
        return list(read_json(self._published, []))

    def mark_published(self, product: str) -> None:
        """Note that a product is in Tiled; in a file of its own, as it happens while a stage is under way."""
        write_json(self._published, [*self.published(), product])

    def retract(self, product: str) -> None:
        """Have a product published once more."""
        write_json(self._published, [name for name in self.published() if name != product])

    def clear(self) -> None:
        """Remove everything, to begin the run anew."""
        shutil.rmtree(self.path, ignore_errors=True)

    def report(self, stage: str, fraction: float, detail: str = "") -> None:
        """Leave a note of progress for people."""
        write_json(self.progress, {"stage": stage, "fraction": fraction, "detail": detail, "time_s": time.time()})


def run_folder(settings: Settings, uid: str) -> RunFolder:
    """Folder of a run at this worker."""
    return RunFolder(settings.worker_dir / uid)


def run_states(settings: Settings) -> Iterator[RunState]:
    """States of all runs that the worker has taken up, in the order of the runs."""
    folders = sorted(settings.worker_dir.glob("*/state.json")) if settings.worker_dir.is_dir() else []
    states = [state for path in folders if (state := RunFolder(path.parent).load()) is not None]
    yield from sorted(states, key=lambda state: state.time_s)


def read_stage(settings: Settings, uid: str) -> str | None:
    """What the worker is doing with a run, in words; None when it has not yet taken it up."""
    folder = run_folder(settings, uid)
    state = folder.load()
    if state is None:
        return None
    if state.outcome:
        return state.outcome
    progress = read_json(folder.progress)
    if progress and progress["stage"] == state.stage:
        return f"{state.stage} {100 * progress['fraction']:.0f} % {progress['detail']}".rstrip()
    return state.stage or "waiting"


def forget_outcome(settings: Settings, uid: str) -> str:
    """Let a failed, cancelled or skipped run be taken up again, at the stage that it came to.

    Where a failed or cancelled run has lost a product that later stages read, it goes back to the stage that makes it.

    Parameters
    ----------
    settings : Settings
    uid : str
        Uid of the run, or its beginning.

    Returns
    -------
    str
        The whole uid.

    Raises
    ------
    InputError
        There is no such run with an outcome, or several begin so.
    """
    found = [state for state in run_states(settings) if state.uid.startswith(uid) and state.outcome]
    if len(found) != 1 or not uid:
        raise InputError(
            f"run {uid!r}",
            f"{len(found)} runs with an outcome begin so",
            "see 'ptycho-bluesky worker --status'",
        )
    state = found[0]
    folder = run_folder(settings, state.uid)
    if state.outcome in ("failed", "cancelled"):
        _go_back(folder, state)
    state.outcome, state.reason, state.begun = "", "", {}
    folder.retract("decision")
    folder.save(state)
    return state.uid


def _go_back(folder: RunFolder, state: RunState) -> None:
    """Forget the stages whose product is gone, with all that followed from it; frames are read again in any case."""
    for stage, product in (("reconstruct", folder.reconstruction), ("label", folder.labels)):
        # What stands in the registry is decided.
        if stage in state.done and not product.exists() and "register" not in state.done:
            names = list(state.done)
            state.done = {name: state.done[name] for name in names[: names.index(stage)]}
            # The probe is told from the labels.
            state.regime.pop("probe", None)
            return
