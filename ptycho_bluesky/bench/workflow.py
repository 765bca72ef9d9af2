"""`bench workflow`: overlap of stages, hand-off, model hand-over, and kills of every process."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ptycho_bluesky.bench.rows import Row
from ptycho_bluesky.bench.workflow_catalogue import startup
from ptycho_bluesky.bench.workflow_kills import KillReport, survive
from ptycho_bluesky.bench.workflow_latency import Latencies, handoff, handover
from ptycho_bluesky.bench.workflow_makespan import PAPER_STAGES_S, modelled, real
from ptycho_bluesky.bench.workflow_runs import make_runs
from ptycho_bluesky.config import Settings
from ptycho_bluesky.demo.processes import free_ports
from ptycho_bluesky.workflow.server import start_server

__all__ = ["PARTS", "WorkflowBench", "WorkflowReport", "run"]

PARTS = ("modelled", "real", "handoff", "handover", "catalogue", "kills")


@dataclass(frozen=True)
class WorkflowBench:
    """Options of the bench.

    Attributes
    ----------
    kills : int
    runs_modelled, runs_real : int
        Scans of each series.
    scale : float
        Seconds here for a second of the published stages.
    frames : int
        Of a scan that is really computed.
    acquire_s : float
        Seconds that such a scan takes.
    events : int
        Runs and models whose hand-over is timed.
    catalogue_runs : int
        Runs of the synthetic catalogue that a worker starts on.
    seed : int
    parts : tuple of str
        Which parts are measured.
    """

    kills: int = 8
    runs_modelled: int = 8
    runs_real: int = 5
    scale: float = 0.1
    frames: int = 400
    acquire_s: float = 1.0
    events: int = 12
    catalogue_runs: int = 20_000
    seed: int = 0
    parts: tuple[str, ...] = PARTS


@dataclass(frozen=True)
class WorkflowReport:
    """Rows, and what they were made of."""

    rows: list[Row]
    extra: dict[str, Any]


def settings_in(folder: Path) -> Settings:
    """Settings of an installation in a folder, on free ports of loopback."""
    tiled_port, publish, subscribe = free_ports(3)
    return Settings(
        data_dir=folder,
        tiled={"uri": f"http://127.0.0.1:{tiled_port}", "api_key": "bench"},  # pyright: ignore[reportArgumentType]
        zmq={  # pyright: ignore[reportArgumentType]
            "publish": f"127.0.0.1:{publish}",
            "subscribe": f"127.0.0.1:{subscribe}",
        },
        reconstruct={"iterations": 40},  # pyright: ignore[reportArgumentType]
        train={  # pyright: ignore[reportArgumentType]
            "architecture": "lean16",
            "frames_per_scan": 3000,
        },
        worker={"serve_pvs": False},  # pyright: ignore[reportArgumentType]
    )


def run(
    options: WorkflowBench,
    status: Callable[[str], None] = lambda _: None,
    save: Callable[[WorkflowReport], None] = lambda _: None,
) -> WorkflowReport:
    """Run the bench.

    Parameters
    ----------
    options : WorkflowBench
    status : callable, optional
        Told what is being done.
    save : callable, optional
        Given the report as far as it has got, after each part and each kill.
    """
    rows: list[Row] = []
    extra: dict[str, Any] = {"options": asdict(options), "stages_s": PAPER_STAGES_S, "simulated": True}
    report = WorkflowReport(rows, extra)
    with tempfile.TemporaryDirectory(prefix="bench-workflow-") as name:
        folder = Path(name)
        settings = settings_in(folder / "served")
        if set(options.parts) & {"modelled", "real", "handoff", "handover"}:
            status("Tiled starts")
            with start_server(settings):
                bench = _Served(options, settings, status, extra)
                for part in ("modelled", "real", "handoff", "handover"):
                    if part in options.parts:
                        rows += getattr(bench, part)()
                        save(report)
        if "catalogue" in options.parts:
            rows += _catalogue(options, folder / "catalogue", status, extra)
            save(report)
        if "kills" in options.parts and options.kills:

            def show(found: KillReport) -> None:
                save(WorkflowReport([*rows, *_kill_rows(options, found)], extra | {"kills": asdict(found)}))

            found = _kills(options, folder / "killed", status, show)
            rows += _kill_rows(options, found)
            extra["kills"] = asdict(found)
            save(report)
    return report


class _Served:
    """The parts that need a server and nothing killed."""

    def __init__(
        self, options: WorkflowBench, settings: Settings, status: Callable[[str], None], extra: dict[str, Any]
    ) -> None:
        self.options, self.settings, self.status, self.extra = options, settings, status, extra

    def _fresh(self, name: str) -> Settings:
        """Containers and a folder of this part's own, on the same server."""
        own = self.settings.model_copy(deep=True)
        own.data_dir = self.settings.data_dir / name
        for container in ("raw", "results", "labels", "models", "decisions"):
            setattr(own.tiled, container, f"{name}_{container}")
        return own

    def _runs(self, count: int, frames: int) -> list[Any]:
        return make_runs(self.settings.raw_dir, count, frames)

    def modelled(self) -> list[Row]:
        """Makespans with sleeping stages: nothing overlapped, scans overlapped, everything overlapped."""
        found = {}
        for name, overlapped, wait in (
            ("sequential", False, True),
            ("scans_ahead", False, False),
            ("overlapped", True, False),
        ):
            self.status(f"modelled stages, {name}")
            runs = self._runs(self.options.runs_modelled, 60)
            own = self._fresh(f"modelled_{name}")
            found[name] = modelled(own, runs, self.options.scale, overlapped=overlapped, wait=wait)
        self.extra["makespan_modelled_s"] = found
        ratio = found["sequential"] / found["overlapped"]
        return [
            Row("makespan_modelled", "1", "higher", ratio, 1.0, "one scan after the other", 3.0),
            Row("makespan_modelled_worker", "1", "higher", found["scans_ahead"] / found["overlapped"], 1.0,
                "one run at a time, scans not waiting"),
        ]  # fmt: skip

    def real(self) -> list[Row]:
        """Makespans with real stages."""
        found = {}
        for name in ("sequential", "overlapped"):
            self.status(f"real stages, {name}")
            runs = self._runs(self.options.runs_real, self.options.frames)
            own = self._fresh(f"real_{name}")
            found[name] = real(own, runs, self.options.acquire_s, overlapped=name == "overlapped")
        self.extra["makespan_real_s"] = found
        ratio = found["sequential"] / found["overlapped"]
        return [Row("makespan_real", "1", "higher", ratio, 1.0, "one scan after the other, two threads", 1.3)]

    def handoff(self) -> list[Row]:
        """Stop document to worker."""
        self.status("hand-off of runs")
        own = self._fresh("handoff")
        own.worker.min_frames = 10
        found = handoff(own, self._runs(self.options.events, 60), self.options.seed)
        return self._latency("handoff_latency", found, 20.0)

    def handover(self) -> list[Row]:
        """Model to edge."""
        self.status("hand-over of models")
        found = handover(
            self._fresh("handover"), self.settings.data_dir / "model_files", self.options.events, self.options.seed
        )
        return self._latency("model_handover", found, 5.0)

    def _latency(self, name: str, found: Latencies, target: float) -> list[Row]:
        ours, polled = statistics.mean(found.ours), statistics.mean(found.polled)
        self.extra[f"{name}_s"] = {"ours": found.ours, "polled": found.polled}
        return [
            Row(name, "1", "higher", polled / ours, 1.0, "polling every 5 s", target),
            Row(f"{name}_mean", "s", "lower", ours, polled, "polling every 5 s"),
            Row(f"{name}_missed", "1", "lower", found.missed, target=0),
        ]


def _catalogue(options: WorkflowBench, folder: Path, status: Callable[[str], None], extra: dict[str, Any]) -> list[Row]:
    report = startup(settings_in(folder), options.catalogue_runs, status)
    extra["catalogue"] = asdict(report) | {"runs": options.catalogue_runs}
    return [
        Row("catalogue_start", "s", "lower", report.fresh_s, target=10.0),
        Row("catalogue_start_again", "s", "lower", report.again_s, target=10.0),
        Row("catalogue_memory", "MB", "lower", max(report.fresh_mb, report.again_mb)),
    ]


def _kills(
    options: WorkflowBench, folder: Path, status: Callable[[str], None], show: Callable[[KillReport], None]
) -> KillReport:
    settings = settings_in(folder)
    settings.reconstruct.iterations = 10
    settings.train.frames_per_scan = 1000
    settings.worker.catch_up_period_s = 10.0
    return survive(settings, options.kills, options.seed, status, show)


def _kill_rows(options: WorkflowBench, report: KillReport) -> list[Row]:
    rows = [
        Row("kills", "1", "higher", len(report.kills), target=options.kills),
        Row("runs_taken", "1", "higher", report.runs),
    ]
    if report.counted:
        rows += [
            Row("runs_promoted", "1", "higher", report.outcomes.get("promoted", 0)),
            Row("runs_lost", "1", "lower", len(report.lost), target=0),
            Row("runs_duplicated", "1", "lower", len(report.duplicated), target=0),
        ]
    return rows
