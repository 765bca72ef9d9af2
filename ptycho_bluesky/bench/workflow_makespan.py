"""How much sooner a series of scans is learned from when the stages of different runs overlap."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from bluesky_tiled_plugins import TiledWriter

from ptycho_bluesky.bench.workflow_runs import Run
from ptycho_bluesky.config import Settings
from ptycho_bluesky.records import ModelRecord, ModelStage
from ptycho_bluesky.training.registry import content_id
from ptycho_bluesky.workflow.executors import make_executor
from ptycho_bluesky.workflow.files import write_bytes, write_json
from ptycho_bluesky.workflow.stages import Job, LearningStages, Stages
from ptycho_bluesky.workflow.tiled_store import TiledStore
from ptycho_bluesky.workflow.worker import Worker

__all__ = ["PAPER_STAGES_S", "SleepingStages", "makespan", "modelled", "real"]

PAPER_STAGES_S = {"acquire": 10.0, "reconstruct": 60.0, "label": 2.0, "validate": 1.0, "train": 5.3, "gate": 1.0}
"""Seconds of each stage for a scan of 963 frames in the published system: a scan of 10 s; 500 iterations a minute on
one GPU; 50 epochs over the scan's pairs at 108 819 pairs in ten minutes on eight GPUs. Cutting labels, validating and
gating are not published; these are what they take beside the others here."""
PARALLEL = 8
"""Reconstructions at once in the modelled case: one node of eight GPUs."""


class SleepingStages:
    """Stages that take their time and compute nothing.

    Parameters
    ----------
    scale : float
        Seconds here for a second there.
    """

    def __init__(self, scale: float) -> None:
        self._scale = scale

    def _sleep(self, stage: str) -> None:
        time.sleep(self._scale * PAPER_STAGES_S[stage])

    def reconstruct(self, job: Job) -> dict[str, Any]:
        """Sleep."""
        self._sleep("reconstruct")
        return {}

    def label(self, job: Job, purpose: str, reserved: bool) -> dict[str, Any]:
        """Sleep."""
        self._sleep("label")
        return {"accepted": True, "reason": ""}

    def validate(self, job: Job, model: str | None) -> dict[str, Any]:
        """Sleep."""
        self._sleep("validate")
        return {}

    def glance(self, job: Job, model: str) -> dict[str, Any]:
        """Never asked for: every run is learned from."""
        return {}

    def score(self, job: Job, model: str) -> dict[str, Any]:
        """Never asked for: nothing mismatches here."""
        return {"score": 0.0}

    def train(self, job: Job, runs: Sequence[str], parent: str | None, regime: Mapping[str, Any]) -> dict[str, Any]:
        """Sleep, and leave a file with a record."""
        self._sleep("train")
        content = f"{job.folder} {time.time_ns()}".encode()
        record = ModelRecord(
            model_id=content_id(content),
            parent_id="",
            stage=ModelStage.CANDIDATE,
            architecture="none",
            image_shape=(64, 64),
            patch_shape=(64, 64),
            pixel_size_m=float("nan"),
            count_scale=1.0,
            training_runs=tuple(runs),
            recipe={},
            validation={},
            geometry=None,
            regime=regime,
            created_s=time.time(),
        )
        write_bytes(job.files.model, content)
        write_json(job.files.record, record.as_dict())
        return {"model_id": record.model_id}

    def gate(
        self, job: Job, reserved: str | None, serving: str | None, older: Mapping[str, str], foreign: Mapping[str, str]
    ) -> dict[str, Any]:
        """Sleep, and promote."""
        self._sleep("gate")
        return {"promote": True, "reason": "modelled", "gain": 0.0}


@dataclass(frozen=True)
class Series:
    """How a series of scans is taken and worked on.

    Attributes
    ----------
    acquire_s : float
        Seconds from the beginning of a scan to its stop document.
    wait : bool
        Whether the next scan is begun only when the one before is decided on.
    """

    acquire_s: float
    wait: bool


def makespan(
    settings: Settings, stages: Stages, executor: Callable[[], Executor] | None, runs: Sequence[Run], series: Series
) -> float:
    """Seconds from the beginning of the first scan to the last decision in Tiled.

    Raises
    ------
    RuntimeError
        The worker ended, or a run failed.
    """
    stop, ready = threading.Event(), threading.Event()
    worker = Worker(settings, stages, executor)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            worker.run(stop, ready.set)
        except BaseException as error:
            failures.append(error)
            raise

    thread = threading.Thread(target=work, name="bench-worker")
    # Makes the containers that the worker listens to.
    TiledStore.connect(settings.tiled).close()
    thread.start()
    try:
        with TiledStore.connect(settings.tiled) as store:
            ready.wait(60.0)
            time.sleep(1.0)  # the websocket's subscription stands
            began = time.monotonic()
            for number, run in enumerate(runs):
                if not series.wait:
                    time.sleep(max(0.0, began + (number + 1) * series.acquire_s - time.monotonic()))
                else:
                    time.sleep(series.acquire_s)
                put_run(store, run)
                if series.wait:
                    _decided(store, [run], failures)
            _decided(store, runs, failures)
            return time.monotonic() - began
    finally:
        stop.set()
        thread.join(60.0)


def put_run(store: TiledStore, run: Run) -> None:
    """Write a run's documents into Tiled."""
    writer = TiledWriter(store.raw)
    for name, doc in run.documents:
        writer(name, doc)


def _decided(store: TiledStore, runs: Sequence[Run], failures: Sequence[BaseException]) -> None:
    for run in runs:
        while (decision := store.decision(run.uid)) is None:
            if failures:
                raise RuntimeError("the worker ended") from failures[0]
            time.sleep(0.05)
        if decision["outcome"] == "failed":
            raise RuntimeError(f"run {run.uid}: {decision['reason']}")


def modelled(settings: Settings, runs: Sequence[Run], scale: float, *, overlapped: bool, wait: bool) -> float:
    """Makespan with sleeping stages in the published proportions."""
    settings.worker.max_in_flight = PARALLEL if overlapped else 1
    return makespan(
        settings,
        SleepingStages(scale),
        lambda: ThreadPoolExecutor(PARALLEL),
        runs,
        Series(scale * PAPER_STAGES_S["acquire"], wait),
    )


def real(settings: Settings, runs: Sequence[Run], acquire_s: float, *, overlapped: bool) -> float:
    """Makespan with the worker's own stages in processes of this machine.

    One after the other, a stage may use both cores; overlapped, each has one.
    """
    settings.worker.max_in_flight = settings.worker.max_workers = 2 if overlapped else 1
    settings.train.num_threads = 1 if overlapped else 2
    pool = make_executor(settings.worker)
    # Processes that stand ready, as in a service that runs for weeks: their start is not part of the work.
    for future in [pool.submit(_import_stages) for _ in range(2 * settings.worker.max_workers)]:
        future.result()
    return makespan(settings, LearningStages(), lambda: pool, runs, Series(acquire_s, wait=not overlapped))


def _import_stages() -> None:
    import ptycho_bluesky.reconstruction
    import ptycho_bluesky.training.trainer  # noqa: F401

    time.sleep(0.5)
