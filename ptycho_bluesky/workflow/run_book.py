"""What is known of every run that the worker has taken up: a few figures a run, in memory and in one file.

The policy asks about all earlier runs whenever a new one comes. Their states are a file each; with tens of thousands of
runs these are not opened again and again, nor at every start: a line a finished run in ``index.jsonl`` is enough.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ptycho_bluesky.config import Settings
from ptycho_bluesky.errors import StorageError
from ptycho_bluesky.training.regime import same_geometry
from ptycho_bluesky.workflow.client import jsonable
from ptycho_bluesky.workflow.run_state import RunFolder, RunState, run_folder

__all__ = ["RunBook", "RunNote", "validated_model"]

logger = logging.getLogger(__name__)

INDEX = "index.jsonl"


@dataclass(frozen=True, slots=True)
class RunNote:
    """What others need to know of a run.

    Attributes
    ----------
    uid, stop_uid, purpose, outcome : str
        As in `RunState`.
    time_s : float
        Start of the run.
    regime : dict
        ``image_shape``, ``pixel_size_m`` and, once it is known, ``probe``.
    accepted : bool
        Whether its labels may be used.
    looked : bool
        Whether the policy has decided to look at it.
    validated : bool
        Whether the serving model was compared with its labels, or with those of its middle.
    mismatch, gain : float or None
        See `ptycho_bluesky.training.update_policy.Finding`.
    held_out : int
        Frames of its held-out area.
    published : bool
        Whether its decision is in Tiled.
    model_id : str or None
        Model that was compared with its labels, "" where none served; None where none was compared, and in notes of
        older versions.
    promoted_id : str
        Model that it made serve, "" for none.
    """

    uid: str
    stop_uid: str = ""
    purpose: str = "train"
    outcome: str = ""
    time_s: float = 0.0
    regime: dict[str, Any] = field(default_factory=dict)
    accepted: bool = False
    looked: bool = False
    validated: bool = False
    mismatch: float | None = None
    gain: float | None = None
    held_out: int = 0
    published: bool = False
    model_id: str | None = None
    promoted_id: str = ""

    @classmethod
    def of(cls, state: RunState) -> RunNote:
        """Note of a state."""
        label, validated = state.done.get("label", {}), state.done.get("validate", state.done.get("glance"))
        return cls(
            uid=state.uid,
            stop_uid=state.stop_uid,
            purpose=state.purpose,
            outcome=state.outcome,
            time_s=state.time_s,
            regime=dict(state.regime),
            accepted=bool(label.get("accepted")),
            looked=bool(state.done.get("look", {}).get("go_on")),
            validated=validated is not None,
            mismatch=(validated or {}).get("figures", {}).get("mismatch"),
            gain=state.done.get("gate", {}).get("gain"),
            held_out=int(label.get("held_out_frames") or 0),
            model_id=validated_model(state),
            promoted_id=_promoted(state),
        )


def validated_model(state: RunState) -> str | None:
    """Model that was compared with a run, "" where none served, None before one was."""
    for stage, fetched in (("validate", "parent"), ("glance", "glanced")):
        if stage in state.done:
            # States of older versions: the file that was fetched for it.
            known = state.done[stage].get("model_id", state.done.get(fetched, {}).get("model_id"))
            return None if known is None else str(known)
    return None


def _promoted(state: RunState) -> str:
    """Model that a run made serve, "" for none."""
    if "switch" in state.done:
        return str(state.done["switch"]["model_id"])
    registered = "register" in state.done and state.done.get("gate", {}).get("promote")
    return str(state.done["register"].get("model_id", "")) if registered else ""


class RunBook:
    """Notes of every run, kept up with their states.

    Parameters
    ----------
    settings : Settings
        ``worker_dir`` holds the states and the index.

    Notes
    -----
    May be used from several threads. One process writes (the worker); `load` reads the index and the states of what is
    not in it. The state of a run is the truth: a line that is missing or damaged costs reading one file.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._index = settings.worker_dir / INDEX
        self._lock = threading.Lock()
        self._notes: dict[str, RunNote] = {}

    def load(self) -> None:
        """Read what is on disk."""
        notes = self._read_index()
        folder = self._settings.worker_dir
        names = [entry.name for entry in os.scandir(folder) if entry.is_dir()] if folder.is_dir() else []
        present = set(names)
        notes = {uid: note for uid, note in notes.items() if uid in present}
        for name in names:
            if name not in notes and (state := RunFolder(folder / name).load()) is not None:
                notes[name] = RunNote.of(state)
        with self._lock:
            self._notes = notes

    def _read_index(self) -> dict[str, RunNote]:
        notes: dict[str, RunNote] = {}
        # tens of thousands of runs have a few regimes: each is kept once
        regimes: dict[str, dict[str, Any]] = {}
        try:
            with self._index.open("rb") as lines:
                for line in lines:
                    try:
                        note = RunNote(**json.loads(line))
                    except (ValueError, TypeError):
                        logger.debug("%s: a damaged line is passed over", self._index)
                        continue
                    if note.outcome:
                        regime = regimes.setdefault(json.dumps(note.regime, sort_keys=True), note.regime)
                        notes[note.uid] = replace(note, regime=regime)
                    else:
                        notes.pop(note.uid, None)
        except FileNotFoundError:
            pass
        return notes

    def save(self, folder: RunFolder, state: RunState) -> None:
        """Write a state and note it; a finished run gets a line in the index, one taken up again loses it."""
        before = self._notes.get(state.uid)
        if before is not None and before.outcome and not state.outcome:
            self._append(RunNote(state.uid))
        folder.save(state)
        self.note(state)

    def note(self, state: RunState) -> None:
        """Note a state that is on disk."""
        note = RunNote.of(state)
        with self._lock:
            self._notes[state.uid] = note
        if state.outcome:
            self._append(note)

    def mark_published(self, uid: str) -> None:
        """The decision on a run is in Tiled."""
        with self._lock:
            note = self._notes[uid] = replace(self._notes[uid], published=True)
        if note.outcome:
            self._append(note)

    def unpublished(self) -> set[str]:
        """Runs whose decision is not known to be in Tiled."""
        with self._lock:
            return {uid for uid, note in self._notes.items() if not note.published}

    def num_published(self) -> int:
        """Runs whose decision is known to be in Tiled."""
        with self._lock:
            return sum(note.published for note in self._notes.values())

    def outcomes(self) -> dict[str, int]:
        """How many runs have each outcome."""
        with self._lock:
            return dict(Counter(note.outcome for note in self._notes.values() if note.outcome))

    def reread(self, uid: str) -> None:
        """Take a state from disk that another process has changed."""
        state = run_folder(self._settings, uid).load()
        with self._lock:
            self._notes.pop(uid, None)
            if state is not None:
                self._notes[uid] = RunNote.of(state)
        if state is not None and not state.outcome:
            self._append(RunNote(uid))

    def forget(self, uid: str) -> None:
        """A run is begun anew."""
        self._append(RunNote(uid))
        with self._lock:
            self._notes.pop(uid, None)

    def get(self, uid: str) -> RunNote | None:
        """Note of a run, None when it was never taken up."""
        return self._notes.get(uid)

    def __len__(self) -> int:
        return len(self._notes)

    def notes(self) -> list[RunNote]:
        """Every note, in the order of the runs."""
        with self._lock:
            found = list(self._notes.values())
        return sorted(found, key=lambda note: (note.time_s, note.uid))

    def like(self, state: RunState, *, probe: bool = False) -> Iterator[RunNote]:
        """Other runs of the same geometry, and of the same regime if asked, in their order."""
        for note in self.notes():
            if note.uid == state.uid or not same_geometry(note.regime, state.regime):
                continue
            if not probe or note.regime.get("probe") == state.regime.get("probe"):
                yield note

    def _append(self, note: RunNote) -> None:
        line = json.dumps(jsonable(asdict(note))) + "\n"
        try:
            self._index.parent.mkdir(parents=True, exist_ok=True)
            with self._lock, self._index.open("a") as file:
                file.write(line)
        except OSError as error:
            raise StorageError(f"{self._index}: {error}", "it must be writable", "free disk space") from error
