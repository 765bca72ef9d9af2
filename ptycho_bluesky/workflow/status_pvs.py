"""Status and decisions of the worker as process variables on pvAccess."""

from __future__ import annotations

import logging
import math
import threading
from importlib import import_module
from typing import Any

from ptycho_bluesky.workflow.run_state import OUTCOMES, RunState

__all__ = ["StatusServer", "decision_values", "status_values"]

logger = logging.getLogger(__name__)

NUMBERS = {
    "Decision:Mismatch": "mismatch",
    "Decision:Candidate": "candidate_score",
    "Decision:Serving": "serving_score",
    "Decision:Constant": "constant_score",
    "Decision:Forgotten": "forgotten",
    "Decision:Gain": "gain",
    "Decision:SsimLive": "ssim_serving",
    "Decision:ProbeSimilarity": "probe_similarity",
}
"""Names of variables and the figures of a decision that they show; NaN where there is none."""
TEXTS = (
    "State",
    "Runs:UnderWay",
    "Decision:Run",
    "Decision:Outcome",
    "Decision:Reason",
    "Decision:Model",
    "Decision:PolicyState",
)
COUNTS = (
    "Runs:Waiting",
    "Runs:Unpublished",
    "Tiled:Reachable",
    *(f"Outcomes:{name.capitalize()}" for name in OUTCOMES),
)


def status_values(status: dict[str, Any]) -> dict[str, Any]:
    """Values of the variables that show the worker's status."""
    outcomes = status["outcomes"]
    return {
        "State": "working" if status["under_way"] else "idle",
        "Runs:UnderWay": ",".join(uid[:8] for uid in status["under_way"]),
        "Runs:Waiting": len(status["waiting"]),
        "Runs:Unpublished": len(status["unpublished"]),
        "Tiled:Reachable": int(status["tiled_reachable"]),
        **{f"Outcomes:{name.capitalize()}": int(outcomes.get(name, 0)) for name in OUTCOMES},
    }


def decision_values(state: RunState) -> dict[str, Any]:
    """Values of the variables that show the last decision."""
    figures = state.figures
    numbers = {name: figures.get(key) for name, key in NUMBERS.items()}
    return {
        **{name: math.nan if value is None else float(value) for name, value in numbers.items()},
        "Decision:Run": state.uid,
        "Decision:Outcome": state.outcome,
        "Decision:Reason": state.reason,
        "Decision:Model": state.model_id,
        "Decision:PolicyState": _policy_state(state),
    }


def _policy_state(state: RunState) -> str:
    """State of the update policy that a run met last, "" where every run is learned from."""
    found = (state.done.get(name, {}).get("state") for name in ("retrain", "look"))
    return str(next((each for each in found if each), ""))


class StatusServer:
    """Serves the worker's process variables; an instance is a listener of `ptycho_bluesky.workflow.worker.Worker`.

    Parameters
    ----------
    prefix : str
        Of every name.

    Notes
    -----
    ``Runs:UnderWay`` and the other texts are strings, counts are integers, the figures of the last decision doubles.
    """

    def __init__(self, prefix: str) -> None:
        pva: Any = import_module("pvaccess")
        self.prefix = prefix
        self._lock = threading.Lock()
        self._server = pva.PvaServer()
        kinds = {
            **dict.fromkeys(TEXTS, pva.STRING),
            **dict.fromkeys(COUNTS, pva.LONG),
            **dict.fromkeys(NUMBERS, pva.DOUBLE),
        }
        blank = {pva.STRING: "", pva.LONG: 0, pva.DOUBLE: math.nan}
        self._objects: dict[str, Any] = {}
        for name, kind in kinds.items():
            self._server.addRecord(prefix + name, pva.PvObject({"value": kind}, {"value": blank[kind]}))
            self._objects[name] = pva.PvObject({"value": kind})
        self._shown: dict[str, Any] = {}

    def __call__(self, status: dict[str, Any], state: RunState | None) -> None:
        """Show a status, and a decision if one was taken."""
        values = status_values(status) | ({} if state is None else decision_values(state))
        with self._lock:
            for name, value in values.items():
                if self._shown.get(name) != value:
                    self._objects[name]["value"] = value
                    self._server.update(self.prefix + name, self._objects[name])
                    self._shown[name] = value

    def close(self) -> None:
        """Stop serving."""
        with self._lock:
            self._server.stop()
