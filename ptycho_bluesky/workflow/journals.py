"""Journals of sessions, read while they grow: which documents are new, and to which run each belongs."""

from __future__ import annotations

import json
import logging
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Document", "Journal", "abandoned_stop", "merge_stream_datums"]

logger = logging.getLogger(__name__)

Document = tuple[str, dict[str, Any]]
ABANDONED_REASON = "the session ended without a stop document"


class Journal:
    """A file of documents, one JSON object ``{"name", "doc"}`` a line, as bluesky's JSONLinesWriter lays it out.

    Parameters
    ----------
    path : path
        The file; our sessions keep one run in each, bluesky's own writer may append several.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damaged = 0
        self._offset = 0
        self._run_of: dict[str, str] = {}

    def new_documents(self) -> list[tuple[str, Document]]:
        """Documents appended since the last call, each with the uid of its run; a line still being written waits."""
        with self.path.open("rb") as file:
            file.seek(self._offset)
            content = file.read()
        end = content.rfind(b"\n") + 1
        self._offset += end
        return self._documents_in(content[:end])

    def documents(self, uid: str) -> list[Document]:
        """Every document of a run, from the file's beginning to where `new_documents` has read."""
        with self.path.open("rb") as file:
            content = file.read(self._offset)
        damaged = self.damaged
        found = self._documents_in(content)
        self.damaged = damaged
        return [document for run, document in found if run == uid]

    def _documents_in(self, content: bytes) -> list[tuple[str, Document]]:
        found = []
        for line in content.splitlines():
            document = self._parse(line)
            uid = None if document is None else self._run_uid(*document)
            if document is None or uid is None:
                self.damaged += 1
                logger.error("%s: a line that is no document of a run is skipped: %.80r", self.path, line)
                continue
            found.append((uid, document))
        return found

    @staticmethod
    def _parse(line: bytes) -> Document | None:
        try:
            content = json.loads(line)
            return str(content["name"]), dict(content["doc"])
        except (ValueError, KeyError, TypeError):
            return None

    def _run_uid(self, name: str, doc: dict[str, Any]) -> str | None:
        """Run of a document: named in it, or known through its descriptor or resource."""
        if name == "start":
            uid = doc.get("uid")
        elif "run_start" in doc:
            uid = doc["run_start"]
        else:
            parent = doc.get("descriptor") or doc.get("stream_resource") or doc.get("resource")
            uid = self._run_of.get(str(parent))
        if uid is not None and name in ("descriptor", "resource", "stream_resource") and "uid" in doc:
            self._run_of[str(doc["uid"])] = str(uid)
        return None if uid is None else str(uid)


def merge_stream_datums(documents: Iterable[Document]) -> list[Document]:
    """Join stream datums of one resource that follow on each other, at the place of the last of them.

    A server that takes 0.1 s for each falls behind a scan that emits six of them every 0.2 s; joined, whatever has
    piled up costs one request a resource.
    """
    merged: list[Document] = []
    open_at: dict[str, int] = {}
    for name, doc in documents:
        if name == "stream_datum":
            resource = str(doc["stream_resource"])
            last = open_at.get(resource)
            previous = None if last is None else merged[last][1]
            if (
                last is not None
                and previous is not None
                and previous["descriptor"] == doc["descriptor"]
                and previous["indices"]["stop"] == doc["indices"]["start"]
                and previous["seq_nums"]["stop"] == doc["seq_nums"]["start"]
            ):
                joined = dict(doc)
                for span in ("indices", "seq_nums"):
                    joined[span] = {"start": previous[span]["start"], "stop": doc[span]["stop"]}
                merged[last] = (name, joined)
                continue
            open_at[resource] = len(merged)
        merged.append((name, doc))
    return merged


def abandoned_stop(documents: Sequence[Document], time_s: float) -> dict[str, Any]:
    """Stop document for a run whose session died: always the same for the same journal.

    Parameters
    ----------
    documents : sequence
        What the journal holds of the run, its start first.
    time_s : float
        When the journal was last written, seconds since the epoch.
    """
    start = documents[0][1]
    stream_of = {doc["uid"]: doc["name"] for name, doc in documents if name == "descriptor"}
    events = Counter(stream_of.get(doc["descriptor"], "") for name, doc in documents if name == "event")
    for name, doc in documents:
        if name == "event_page":
            events[stream_of.get(doc["descriptor"], "")] += len(doc["seq_num"])
    return {
        "uid": str(uuid.uuid5(uuid.NAMESPACE_URL, f"ptycho-bluesky:abandoned:{start['uid']}:{len(documents)}")),
        "time": time_s,
        "run_start": start["uid"],
        "exit_status": "abort",
        "reason": ABANDONED_REASON,
        "num_events": dict(events),
    }
