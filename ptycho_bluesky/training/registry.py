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

__all__ = ["LocalModelStore", "ModelStore", "content_id", "find_serving", "fits_regime"]


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

    def put(self, record: ModelRecord, content: bytes) -> None:
        """Store a model; storing the same one again changes nothing."""
        ...

    def get(self, model_id: str) -> tuple[ModelRecord, bytes]:
        """Record and file of a model, its content checked against its id."""
        ...

    def records(self) -> list[ModelRecord]:
        """Every record, oldest first."""
        ...

    def set_stage(self, model_id: str, stage: ModelStage, reason: str = "") -> ModelRecord:
        """Move a model to a stage; promotion is stamped with the time."""
        ...

    def serving(self, regime: Mapping[str, Any] | None = None) -> ModelRecord | None:
        """The model that the edge should use: the last promoted one."""
        ...


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

    def put(self, record: ModelRecord, content: bytes) -> None:
        """Store a model.

        Raises
        ------
        InputError
            The record's id is not the hash of the content.
        StorageError
            The folder cannot be written.
        """
        if content_id(content) != record.model_id:
            raise InputError(f"model {record.model_id}", f"its content hashes to {content_id(content)}")
        if self._record_path(record.model_id).exists():
            return
        self._write(self._content_path(record.model_id), content)
        self._write_record(record, [{"stage": str(record.stage), "reason": "stored", "time_s": record.created_s}])

    def get(self, model_id: str) -> tuple[ModelRecord, bytes]:
        """Record and content of a model.

        Raises
        ------
        InputError
            No such model, or its file is damaged.
        """
        record = self._read(model_id)[0]
        content = self._content_path(model_id).read_bytes()
        if content_id(content) != model_id:
            raise InputError(f"model {model_id}", "its file no longer hashes to its id", "restore or retrain it")
        return record, content

    def records(self) -> list[ModelRecord]:
        """Every record, oldest first."""
        records = [self._read(path.stem)[0] for path in self.directory.glob("*.json")]
        return sorted(records, key=lambda record: (record.created_s, record.model_id))

    def history(self, model_id: str) -> list[dict[str, Any]]:
        """Stages that a model went through, with reason and time."""
        return self._read(model_id)[1]

    def set_stage(self, model_id: str, stage: ModelStage, reason: str = "") -> ModelRecord:
        """Move a model to a stage.

        Returns
        -------
        ModelRecord
            The new record; ``promoted_s`` is now when the stage is `ModelStage.PROMOTED`.
        """
        record, history = self._read(model_id)
        now = time.time()
        record = replace(record, stage=stage, promoted_s=now if stage is ModelStage.PROMOTED else record.promoted_s)
        self._write_record(record, [*history, {"stage": str(stage), "reason": reason, "time_s": now}])
        return record

    def serving(self, regime: Mapping[str, Any] | None = None) -> ModelRecord | None:
        """The last promoted model that fits the regime."""
        return find_serving(self.records(), regime)

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
