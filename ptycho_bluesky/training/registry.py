"""Models by the hash of their content: the one place where the live loop and the learning loop meet."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ptycho_bluesky.errors import InputError, StorageError
from ptycho_bluesky.records import ModelRecord, ModelStage

__all__ = [
    "LocalModelStore",
    "ModelStore",
    "collect_garbage",
    "content_id",
    "find_serving",
    "fits_regime",
    "promote",
    "register",
    "reject",
    "rollback",
    "superfluous",
]

SUCCEEDED = "succeeded by "
"""How the reason begins for which a model is retired when another one takes its place."""


def content_id(content: bytes) -> str:
    """Id of a model: SHA-256 of its file, hex."""
    return hashlib.sha256(content).hexdigest()


def fits_regime(record: ModelRecord, regime: Mapping[str, Any] | None) -> bool:
    """Whether a model is for a regime: every key that both state is equal; None fits every model."""
    return regime is None or all(record.regime[key] == regime[key] for key in regime.keys() & record.regime.keys())


def find_serving(records: list[ModelRecord], regime: Mapping[str, Any] | None = None) -> ModelRecord | None:
    """Of the promoted models that fit the regime, the one promoted last; None when there is none."""
    promoted = [r for r in records if r.stage is ModelStage.PROMOTED and fits_regime(r, regime)]
    return max(promoted, key=lambda record: record.promoted_s, default=None)


@runtime_checkable
class ModelStore(Protocol):
    """Where models live; a local folder here, Tiled in `ptycho_bluesky.workflow`."""

    def put(
        self, record: ModelRecord, content: bytes, stage: ModelStage | None = None, reason: str = ""
    ) -> ModelRecord:
        """Store a model; storing the same one again changes nothing. Returns the record that stands there.

        With a stage, a candidate is then moved there; one that was moved before stays where it is.
        """
        ...

    def get(self, model_id: str) -> tuple[ModelRecord, bytes]:
        """Record and file of a model, its content checked against its id."""
        ...

    def content(self, model_id: str) -> bytes:
        """File of a model, checked against its id."""
        ...

    def records(self) -> list[ModelRecord]:
        """Every record, oldest first."""
        ...

    def promoted(self) -> list[ModelRecord]:
        """Records of the models that are promoted, one a regime."""
        ...

    def set_stage(self, model_id: str, stage: ModelStage, reason: str = "") -> ModelRecord:
        """Move a model to a stage; promotion is stamped with the time."""
        ...

    def serving(self, regime: Mapping[str, Any] | None = None) -> ModelRecord | None:
        """The model that the edge should use: the last promoted one."""
        ...

    def history(self, model_id: str) -> list[dict[str, Any]]:
        """Stages that a model went through, each with ``stage``, ``reason`` and ``time_s``."""
        ...

    def discard(self, model_id: str, reason: str = "") -> None:
        """Remove a model's content; its record stays, so that lineage can be followed."""
        ...

    def is_discarded(self, model_id: str) -> bool:
        """Whether only the record is left."""
        ...


def promote(store: ModelStore, model_id: str, reason: str = "") -> ModelRecord:
    """Make a model serve its regime, and retire the one that served it before.

    The new one is promoted first: who dies in between leaves two promoted, of which the newer serves.

    Returns
    -------
    ModelRecord
        Of the promoted model.

    Raises
    ------
    InputError
        There is no such model, or its content is gone.
    """
    record = store.set_stage(model_id, ModelStage.PROMOTED, reason)
    _retire(store, record, store.promoted())
    return record


def register(
    store: ModelStore, record: ModelRecord, content: bytes, stage: ModelStage, reason: str = ""
) -> ModelRecord:
    """Store a candidate and give it the stage that was decided on; a promoted one succeeds the one before.

    The content is complete before the stage is set, so nobody is told of a model that is not all there. Called again
    after a crash it goes on where that fell; a model that a person has moved meanwhile stays where it is.

    Returns
    -------
    ModelRecord
        As it stands in the store.

    Raises
    ------
    InputError
        The record's id is not the hash of the content.
    """
    stored = store.put(record, content, stage, reason)
    if stored.stage is ModelStage.PROMOTED:
        # Not those that were promoted after it, before this was called again.
        _retire(store, stored, [other for other in store.promoted() if other.promoted_s <= stored.promoted_s])
    return stored


def _retire(store: ModelStore, successor: ModelRecord, promoted: list[ModelRecord]) -> None:
    for other in promoted:
        if other.model_id != successor.model_id and dict(other.regime) == dict(successor.regime):
            store.set_stage(other.model_id, ModelStage.RETIRED, f"{SUCCEEDED}{successor.model_id}")


def rollback(
    store: ModelStore,
    regime: Mapping[str, Any] | None = None,
    reason: str = "",
    *,
    model_id: str | None = None,
    force: bool = False,
) -> tuple[ModelRecord, ModelRecord | None]:
    """Retire a serving model; the one that it succeeded serves its regime again.

    Parameters
    ----------
    store : ModelStore
    regime : mapping, optional
        Which regime's model; by default, and where several fit, ``model_id`` must tell.
    reason : str
    model_id : str, optional
        The promoted model to go back from.
    force : bool
        Go back though no model is left that it succeeded, so that none serves its regime.

    Returns
    -------
    tuple of ModelRecord
        The retired model, and the one that serves its regime now (None if there is none).

    Raises
    ------
    InputError
        No model serves, the named one does not, several do and none is named, or there is nothing to go back to.
    """
    leaving = _to_leave(store, regime, model_id)
    if _bring_back(store, leaving, f"rolled back to from {leaving.model_id}: {reason}") is None and not force:
        raise InputError(
            f"model {leaving.model_id}",
            "no model is left that it succeeded, and without it none serves its regime",
            "promote another one, or --force",
        )
    return store.set_stage(leaving.model_id, ModelStage.RETIRED, reason), store.serving(leaving.regime)


def reject(store: ModelStore, model_id: str, reason: str = "") -> tuple[ModelRecord, ModelRecord | None]:
    """Reject a model; where it serves, the one that it succeeded serves its regime again.

    Returns
    -------
    tuple of ModelRecord
        The rejected model, and the one that serves its regime now (None if there is none).

    Raises
    ------
    InputError
        There is no such model.
    """
    serving = next((record for record in store.promoted() if record.model_id == model_id), None)
    if serving is not None:
        _bring_back(store, serving, f"rolled back to from {model_id}, which is rejected: {reason}")
    record = store.set_stage(model_id, ModelStage.REJECTED, reason)
    return record, store.serving(record.regime)


def _to_leave(store: ModelStore, regime: Mapping[str, Any] | None, model_id: str | None) -> ModelRecord:
    """The serving model that a rollback is of."""
    promoted = [record for record in store.promoted() if fits_regime(record, regime)]
    if not promoted:
        raise InputError("no model serves", "there is nothing to go back from", "promote one")
    # Of two that a crash left promoted in one regime, the newer serves.
    newest = {_name(each): each for each in sorted(promoted, key=lambda record: record.promoted_s)}
    serving = list(newest.values())
    if model_id is not None:
        serving = [record for record in serving if record.model_id == model_id]
    if len(serving) == 1:
        return serving[0]
    choices = "; ".join(f"{each.model_id[:12]} for {name}" for name, each in newest.items())
    if model_id is not None:
        raise InputError(
            f"model {model_id}", "only a model that serves can be gone back from", f"name one of {choices}"
        )
    raise InputError(f"{len(serving)} models serve, each its regime", "one is gone back from", f"name one of {choices}")


def _name(record: ModelRecord) -> str:
    """A model's regime as text."""
    return json.dumps(dict(record.regime), sort_keys=True)


def _bring_back(store: ModelStore, leaving: ModelRecord, reason: str) -> ModelRecord | None:
    """Promote the model that another one succeeded, unless one of its regime still is; None where there is none.

    It is promoted before the other one leaves: who dies in between leaves two promoted, of which it serves.
    """
    others = [each for each in store.promoted() if each.model_id != leaving.model_id]
    still = find_serving([each for each in others if dict(each.regime) == dict(leaving.regime)])
    if still is not None:
        return still
    before = _succeeded_by(store, leaving)
    return None if before is None else store.set_stage(before.model_id, ModelStage.PROMOTED, reason)


def _succeeded_by(store: ModelStore, model: ModelRecord) -> ModelRecord | None:
    """The model that was retired for another one, the last if there were several."""
    found = []
    for record in store.records():
        if record.stage is ModelStage.RETIRED and not store.is_discarded(record.model_id):
            last = (store.history(record.model_id) or [{}])[-1]
            if last.get("reason") == f"{SUCCEEDED}{model.model_id}":
                found.append((float(last.get("time_s") or 0.0), record))
    return max(found, key=lambda item: item[0])[1] if found else None


def superfluous(
    store: ModelStore, *, keep: int = 3, min_age_s: float = 86_400.0, now_s: float | None = None
) -> list[ModelRecord]:
    """Models whose content nobody will ask for again.

    Kept are the promoted models, the parents of theirs (a training may start there), the ``keep`` newest retired and
    the ``keep`` newest rejected ones of each regime, candidates that are waiting for the gate, and all that is younger
    than ``min_age_s``.

    Returns
    -------
    list of ModelRecord
        Oldest first.

    Raises
    ------
    InputError
        ``keep`` or ``min_age_s`` is negative.
    """
    if keep < 0 or min_age_s < 0:
        raise InputError(f"keep = {keep}, min_age_s = {min_age_s}", "neither is negative")
    now = time.time() if now_s is None else now_s
    records = [record for record in store.records() if not store.is_discarded(record.model_id)]
    kept = {record.parent_id for record in records if record.stage is ModelStage.PROMOTED}
    for stage in (ModelStage.RETIRED, ModelStage.REJECTED):
        groups: dict[str, list[ModelRecord]] = {}
        for record in records:
            if record.stage is stage:
                groups.setdefault(_name(record), []).append(record)
        for group in groups.values():
            group.sort(key=lambda record: max(record.promoted_s, record.created_s))
            kept |= {record.model_id for record in group[len(group) - keep :] if keep}
    return [
        record
        for record in records
        if record.stage in (ModelStage.RETIRED, ModelStage.REJECTED)
        and record.model_id not in kept
        and now - record.created_s >= min_age_s
    ]


def collect_garbage(store: ModelStore, *, keep: int = 3, min_age_s: float = 86_400.0) -> list[ModelRecord]:
    """Discard what `superfluous` names; the records stay. Returns those of the discarded models."""
    found = superfluous(store, keep=keep, min_age_s=min_age_s)
    for record in found:
        store.discard(record.model_id, f"collected as garbage: {record.stage}, not among the last {keep}")
    return found


class LocalModelStore:
    """A folder of models: ``<id>.onnx`` beside ``<id>.json`` (record and history of stages).

    Several processes may use it: files appear whole or not at all.

    Parameters
    ----------
    directory : path
        Made when it does not exist.
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"model store {self.directory}: {error}", "it must be writable") from error

    def put(
        self, record: ModelRecord, content: bytes, stage: ModelStage | None = None, reason: str = ""
    ) -> ModelRecord:
        """Store a model, and move a candidate to a stage; see `ModelStore.put`.

        Raises
        ------
        InputError
            The record's id is not the hash of the content.
        StorageError
            The folder cannot be written.
        """
        if content_id(content) != record.model_id:
            raise InputError(f"model {record.model_id}", f"its content hashes to {content_id(content)}")
        known = self._record_path(record.model_id).exists()
        if not known or self.is_discarded(record.model_id):
            self._write(self._content_path(record.model_id), content)
        if not known:
            self._write_record(record, [{"stage": str(record.stage), "reason": "stored", "time_s": record.created_s}])
        stored = self._read(record.model_id)[0]
        if stage is not None and stored.stage is ModelStage.CANDIDATE:
            stored = self.set_stage(record.model_id, stage, reason)
        return stored

    def get(self, model_id: str) -> tuple[ModelRecord, bytes]:
        """Record and content of a model.

        Raises
        ------
        InputError
            No such model, or its file is damaged.
        """
        record = self._read(model_id)[0]
        if self.is_discarded(model_id):
            raise InputError(f"model {model_id}", "its content was collected as garbage", "retrain it")
        content = self._content_path(model_id).read_bytes()
        if content_id(content) != model_id:
            raise InputError(f"model {model_id}", "its file no longer hashes to its id", "restore or retrain it")
        return record, content

    def content(self, model_id: str) -> bytes:
        """Content of a model; see `get`."""
        return self.get(model_id)[1]

    def records(self) -> list[ModelRecord]:
        """Every record, oldest first."""
        records = [self._read(path.stem)[0] for path in self.directory.glob("*.json")]
        return sorted(records, key=lambda record: (record.created_s, record.model_id))

    def promoted(self) -> list[ModelRecord]:
        """Records of the promoted models."""
        return [record for record in self.records() if record.stage is ModelStage.PROMOTED]

    def history(self, model_id: str) -> list[dict[str, Any]]:
        """Stages that a model went through, with reason and time."""
        return self._read(model_id)[1]

    def set_stage(self, model_id: str, stage: ModelStage, reason: str = "") -> ModelRecord:
        """Move a model to a stage.

        Returns
        -------
        ModelRecord
            The new record; ``promoted_s`` is now when the stage is `ModelStage.PROMOTED`.

        Raises
        ------
        InputError
            There is no such model, or one whose content is gone is to be promoted.
        """
        record, history = self._read(model_id)
        if stage is ModelStage.PROMOTED and self.is_discarded(model_id):
            raise InputError(f"model {model_id}", "its content was collected as garbage", "promote another, or retrain")
        now = time.time()
        record = replace(record, stage=stage, promoted_s=now if stage is ModelStage.PROMOTED else record.promoted_s)
        self._write_record(record, [*history, {"stage": str(stage), "reason": reason, "time_s": now}])
        return record

    def serving(self, regime: Mapping[str, Any] | None = None) -> ModelRecord | None:
        """The last promoted model that fits the regime."""
        return find_serving(self.promoted(), regime)

    def discard(self, model_id: str, reason: str = "") -> None:
        """Remove a model's file; its record stays."""
        record, history = self._read(model_id)
        entry = {"stage": str(record.stage), "reason": reason, "time_s": time.time()}
        self._write_record(record, [*history, entry])
        self._content_path(model_id).unlink(missing_ok=True)

    def is_discarded(self, model_id: str) -> bool:
        """Whether only the record is left."""
        return not self._content_path(model_id).exists()

    def _content_path(self, model_id: str) -> Path:
        return self.directory / f"{model_id}.onnx"

    def _record_path(self, model_id: str) -> Path:
        return self.directory / f"{model_id}.json"

    def _read(self, model_id: str) -> tuple[ModelRecord, list[dict[str, Any]]]:
        try:
            content = json.loads(self._record_path(model_id).read_text())
        except FileNotFoundError as error:
            raise InputError(
                f"model {model_id}", f"it is not in {self.directory}", "list the store's models"
            ) from error
        return ModelRecord.from_dict(content["record"]), content["history"]

    def _write_record(self, record: ModelRecord, history: list[dict[str, Any]]) -> None:
        content = json.dumps({"record": record.as_dict(), "history": history}, indent=1)
        self._write(self._record_path(record.model_id), content.encode())

    def _write(self, path: Path, content: bytes) -> None:
        temporary = None
        try:
            handle, temporary = tempfile.mkstemp(dir=self.directory, prefix=".")
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except OSError as error:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)
            raise StorageError(f"model store {self.directory}: {error}", "free space or name another folder") from error
