"""What the worker does and has decided, as process variables."""

from __future__ import annotations

import math
import uuid

import pytest

from ptycho_bluesky.workflow.run_state import RunState
from ptycho_bluesky.workflow.status_pvs import StatusServer, decision_values, status_values

STATUS = {
    "under_way": ["abcdefgh-1"],
    "waiting": ["x", "y"],
    "unpublished": [],
    "tiled_reachable": True,
    "outcomes": {"promoted": 3, "failed": 1},
}
STATE = RunState(
    "run-1",
    outcome="rejected",
    reason="score 0.4 is not better",
    done={
        "validate": {"figures": {"mismatch": 0.25, "ssim_serving": 0.5}},
        "train": {"model_id": "cafe"},
        "gate": {"figures": {"candidate_score": 0.4, "serving_score": None, "forgotten": 0.01, "gain": -0.02}},
        "look": {"state": "suspended"},
        "retrain": {"state": "following"},
    },
)


def test_values():
    values = status_values(STATUS)
    assert values["State"] == "working"
    assert (values["Runs:Waiting"], values["Outcomes:Promoted"], values["Outcomes:Skipped"]) == (2, 3, 0)
    assert status_values({**STATUS, "under_way": []})["State"] == "idle"
    values = decision_values(STATE)
    assert values["Decision:Mismatch"] == 0.25
    assert math.isnan(values["Decision:Serving"])
    assert (values["Decision:Outcome"], values["Decision:Model"]) == ("rejected", "cafe")
    assert (values["Decision:Gain"], values["Decision:PolicyState"]) == (-0.02, "following")
    left_alone = RunState("run-2", outcome="skipped", done={"look": {"go_on": False, "state": "suspended"}})
    assert decision_values(left_alone)["Decision:PolicyState"] == "suspended"
    assert decision_values(RunState("run-3"))["Decision:PolicyState"] == ""


def test_served():
    pva = pytest.importorskip("pvaccess")
    prefix = f"T{uuid.uuid4().hex[:6]}:"
    server = StatusServer(prefix)
    try:
        server(STATUS, None)
        server({**STATUS, "waiting": []}, STATE)

        def read(name: str):
            return pva.Channel(prefix + name).get("value")["value"]

        assert read("Decision:Candidate") == 0.4
        assert read("Decision:Reason") == "score 0.4 is not better"
        assert read("Decision:Gain") == -0.02
        assert read("Decision:PolicyState") == "following"
        assert read("Runs:Waiting") == 0
        assert read("Outcomes:Failed") == 1
    finally:
        server.close()
