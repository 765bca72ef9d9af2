"""What a worker needs to know of a run before it reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["SUMMARY", "RunSummary", "summary_of"]

SUMMARY = (
    "{start: {uid: start.uid, time: start.time, scan_id: start.scan_id, "
    "ptycho: start.ptycho && {purpose: start.ptycho.purpose || 'train'}}, stop: stop && {uid: stop.uid}}"
)
"""JMESPath of what a worker needs to know of a run."""


@dataclass(frozen=True)
class RunSummary:
    """One run of the catalogue.

    Attributes
    ----------
    uid : str
    time_s : float
        Time of the start document, seconds since the epoch.
    start : dict
        Start document.
    stop : dict or None
        Stop document; None while the run is open.
    """

    uid: str
    time_s: float
    start: Mapping[str, Any]
    stop: Mapping[str, Any] | None

    @property
    def is_ptycho(self) -> bool:
        """Whether it is a ptychographic scan of ours."""
        return bool(self.start.get("ptycho"))

    @property
    def purpose(self) -> str:
        """``train``, ``reserved`` or ``test``; "" for other runs."""
        return str((self.start.get("ptycho") or {}).get("purpose", "train")) if self.is_ptycho else ""

    def brief(self) -> RunSummary:
        """The same with no more of the documents than tells the run: a trajectory is long."""
        start: dict[str, Any] = {name: self.start.get(name) for name in ("uid", "time", "scan_id")}
        if self.is_ptycho:
            start["ptycho"] = {"purpose": self.purpose}
        return RunSummary(self.uid, self.time_s, start, {"uid": self.stop.get("uid")} if self.stop else None)


def summary_of(uid: str, metadata: Mapping[str, Any]) -> RunSummary:
    """Summary of a run by the metadata of its node."""
    return RunSummary(uid, float(metadata["start"].get("time", 0.0)), metadata["start"], metadata.get("stop"))
