"""The model registry in Tiled: one node a model, its content as bytes, its record as metadata."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import httpx
import numpy as np

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.records import ModelRecord, ModelStage
from ptycho_bluesky.training.registry import content_id, find_serving, promote, reject, rollback
from ptycho_bluesky.workflow.catalogue import select_metadata
from ptycho_bluesky.workflow.client import (
    get_child,
    jsonable,
    put_array,
    reachable,
)

__all__ = ["TiledModelStore"]

logger = logging.getLogger(__name__)

ID_LENGTH = 64
"""Of a whole id, SHA-256 in hex."""
DISCARDED = "discarded"
"""Key in the metadata of a model whose content was collected as garbage."""


class TiledModelStore:
    """Models in a container of Tiled; implements `ptycho_bluesky.training.registry.ModelStore`.

    Parameters
    ----------
    container : tiled Container
        Holds one node a model, named by the hash of its content.
    uri : str
        Address of the server, for messages.

    Notes
    -----
    ``stage_log`` in a node's metadata lists every change of stage with its reason and time. The serving model is the
    one that was promoted last, among those of a regime where one is asked for; `rollback` brings back the one that it
    succeeded. Subscribers of the container hear of every change as an update of metadata.
    """

    def __init__(self, container: Any, uri: str) -> None:
        self._container, self._uri = container, uri

    def put(
        self, record: ModelRecord, content: bytes, stage: ModelStage | None = None, reason: str = ""
    ) -> ModelRecord:
        """Store a model; once more the same changes nothing. With a stage, a candidate is moved there.

        The node is made, then its content written, then its stage set, a request each; whoever dies in between leaves
        a candidate, which nobody serves, and the next call goes on there.

        Returns
        -------
        ModelRecord
            As it stands in Tiled.

        Raises
        ------
        InputError
            ``record.model_id`` is not the SHA-256 of the content.
        UnreachableError
            Tiled does not answer.
        """
        model_id = content_id(content)
        if record.model_id != model_id:
            raise InputError(
                f"model_id {record.model_id!r}", f"a model is named by the SHA-256 of its content, {model_id}"
            )
        with reachable(self._uri):
            node = self._put(record, content)
            stored = ModelRecord.from_dict(node.metadata)
            if stage is not None and stored.stage is ModelStage.CANDIDATE:
                stored = _move(node, stage, reason)
        return stored

    def _put(self, record: ModelRecord, content: bytes) -> Any:
        """Node with a content: a new one mostly, so that is tried first."""
        from tiled.client.utils import ClientError

        array = np.frombuffer(content, dtype=np.uint8)
        metadata = record.as_dict() | {"stage_log": [_entry(record.stage, "registered")]}
        try:
            return self._container.write_array(array, key=record.model_id, metadata=jsonable(metadata))
        except ClientError as error:
            if error.response.status_code != httpx.codes.CONFLICT:
                raise
        node = self._node(record.model_id)
        if not node.metadata.get(DISCARDED) and self._read(node) == content:
            return node
        # A crash between node and content left it empty, or it was discarded; the record stays as it is.
        metadata = {key: value for key, value in node.metadata.items() if key != DISCARDED}
        put_array(self._container, record.model_id, array, metadata)
        return self._node(record.model_id)

    def get(self, model_id: str) -> tuple[ModelRecord, bytes]:
        """Record and content of a model.

        Raises
        ------
        InputError
            There is no such model, or its content is damaged.
        UnreachableError
            Tiled does not answer.
        """
        with reachable(self._uri):
            node = self._node(model_id)
            if node.metadata.get(DISCARDED):
                raise InputError(f"model {model_id}", "its content was collected as garbage", "retrain it")
            content = self._read(node)
        if content_id(content) != node.item["id"]:
            raise InputError(
                f"model {model_id}", "its content does not have the hash that names it", "register it once more"
            )
        return ModelRecord.from_dict(node.metadata), content

    def content(self, model_id: str) -> bytes:
        """Content of a model by its whole id, in one request; errors as of `get`."""
        address = f"{self._container.uri.replace('/metadata/', '/array/full/', 1)}/{model_id}"
        with reachable(self._uri):
            reply = self._container.context.http_client.get(address, headers={"Accept": "application/octet-stream"})
            if reply.is_success and content_id(reply.content) == model_id:
                return reply.content
            if reply.is_server_error:
                reply.raise_for_status()
        return self.get(model_id)[1]

    def records(self) -> list[ModelRecord]:
        """Every model's record, oldest first."""
        return [ModelRecord.from_dict(metadata) for metadata in self.metadata().values()]

    def promoted(self) -> list[ModelRecord]:
        """Records of the promoted models; Tiled chooses them, however many others there are."""
        with reachable(self._uri):
            found = select_metadata(self._container, "@", equal=("stage", str(ModelStage.PROMOTED)))
            return [ModelRecord.from_dict(metadata) for _, metadata in found]

    def metadata(self) -> dict[str, Mapping[str, Any]]:
        """Metadata of every model by its id, oldest first, with the log of stages."""
        with reachable(self._uri):
            found = {key: node.metadata for key, node in self._container.items()}
        return dict(sorted(found.items(), key=lambda item: item[1].get("created_s") or 0.0))

    def describe(self, model_id: str) -> dict[str, Any]:
        """Metadata of one model; its id may be shortened."""
        with reachable(self._uri):
            return dict(self._node(model_id).metadata)

    def set_stage(self, model_id: str, stage: ModelStage, reason: str = "") -> ModelRecord:
        """Move a model to a stage; the reason goes into its log. Returns the new record.

        Raises
        ------
        InputError
            There is no such model, or one whose content is gone is to be promoted.
        UnreachableError
            Tiled does not answer.
        """
        with reachable(self._uri):
            node = self._node(model_id)
            if stage is ModelStage.PROMOTED and node.metadata.get(DISCARDED):
                raise InputError(
                    f"model {model_id}", "its content was collected as garbage", "promote another, or retrain"
                )
            return _move(node, stage, reason)

    def serving(self, regime: Mapping[str, Any] | None = None) -> ModelRecord | None:
        """The model promoted last, among those that fit a regime if one is given; None before any was promoted."""
        return find_serving(self.promoted(), regime)

    def promote(self, model_id: str, reason: str = "") -> ModelRecord:
        """Make a model serve its regime; its id may be shortened. See `ptycho_bluesky.training.registry.promote`."""
        return promote(self, self._whole(model_id), reason)

    def reject(self, model_id: str, reason: str = "") -> tuple[ModelRecord, ModelRecord | None]:
        """Take a model out of service; its id may be shortened. See `ptycho_bluesky.training.registry.reject`."""
        return reject(self, self._whole(model_id), reason)

    def rollback(
        self,
        reason: str = "",
        regime: Mapping[str, Any] | None = None,
        *,
        model_id: str | None = None,
        force: bool = False,
    ) -> tuple[ModelRecord, ModelRecord | None]:
        """Go back to the model before; an id may be shortened. See `ptycho_bluesky.training.registry.rollback`."""
        whole = None if model_id is None else self._whole(model_id)
        return rollback(self, regime, reason, model_id=whole, force=force)

    def history(self, model_id: str) -> list[dict[str, Any]]:
        """Stages that a model went through, with reason and time."""
        return [dict(entry) for entry in self.describe(model_id).get("stage_log", [])]

    def discard(self, model_id: str, reason: str = "") -> None:
        """Remove a model's content; its node keeps the record.

        The record says so first: whoever dies before the content is gone leaves a file that nobody asks for, and
        lineage is never lost. Discarding once more removes it.
        """
        with reachable(self._uri):
            node = self._node(model_id)
            if not node.metadata.get(DISCARDED):
                entry = _entry(ModelRecord.from_dict(node.metadata).stage, reason)
                log = [*node.metadata.get("stage_log", []), entry]
                node.replace_metadata(
                    jsonable({**node.metadata, "stage_log": log, DISCARDED: True}), drop_revision=True
                )
            if hasattr(node, "write"):
                # Tiled can only delete the node with its record, but stores no chunk that is all zeros.
                node.write(np.zeros(node.shape, dtype=node.dtype))

    def is_discarded(self, model_id: str) -> bool:
        """Whether only the record is left."""
        return bool(self.describe(model_id).get(DISCARDED))

    def _whole(self, model_id: str) -> str:
        if len(model_id) == ID_LENGTH:
            return model_id
        with reachable(self._uri):
            return str(self._node(model_id).item["id"])

    def _node(self, model_id: str) -> Any:
        node = get_child(self._container, model_id)
        if node is not None:
            return node
        matches = [key for key in self._container if key.startswith(model_id)] if len(model_id) >= 6 else []
        if len(matches) != 1:
            raise InputError(
                f"model {model_id!r}",
                "no model has this id" if not matches else "several ids begin so",
                "see 'ptycho-bluesky models list'",
            )
        return get_child(self._container, matches[0])

    @staticmethod
    def _read(node: Any) -> bytes:
        return np.asarray(node.read(), dtype=np.uint8).tobytes()


def _move(node: Any, stage: ModelStage, reason: str) -> ModelRecord:
    """Set a node's stage by the metadata that were last read of it."""
    record = ModelRecord.from_dict(node.metadata)
    entry = _entry(stage, reason)
    promoted_s = entry["time_s"] if stage is ModelStage.PROMOTED else record.promoted_s
    record = replace(record, stage=stage, promoted_s=promoted_s)
    log = [*node.metadata.get("stage_log", []), entry]
    # What else stands there stays, as that the content was discarded.
    node.replace_metadata(jsonable({**node.metadata, **record.as_dict(), "stage_log": log}), drop_revision=True)
    return record


def _entry(stage: ModelStage, reason: str) -> dict[str, Any]:
    return {"stage": str(stage), "reason": reason, "time_s": time.time()}
