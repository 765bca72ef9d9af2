"""``bench soak``: run after run at full rate, for as long as asked: memory flat, counters exact, disk bounded."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from ptycho_bluesky.bench.live import KEPT_UP, LiveBench, LiveReport, Progress, choose_model
from ptycho_bluesky.bench.live_models import register
from ptycho_bluesky.bench.live_run import LiveEdge, LiveStage
from ptycho_bluesky.bench.live_scene import LiveScene
from ptycho_bluesky.bench.rows import Row
from ptycho_bluesky.training.registry import LocalModelStore

__all__ = ["folder_bytes", "memory_drift", "run_soak"]

MAX_DISK_BYTES = 5e9
MAX_DRIFT = 0.05


def run_soak(options: LiveBench, minutes: float, progress: Progress = lambda text: None) -> LiveReport:
    """Scan after scan of ``options.seconds`` until the time is over.

    Parameters
    ----------
    options : LiveBench
    minutes : float
    progress : callable, optional

    Returns
    -------
    LiveReport
        Rows; ``extra["runs"]`` holds what came of each scan, with the edge's memory after it.
    """
    progress("rendering frames")
    scene = LiveScene.render(options.size, options.num_frames)
    model = choose_model(options)
    report = LiveReport(extra={"model": model.name, "minutes": minutes, "runs": []})
    settings = {name: getattr(options, name) for name in ("engine", "precision", "batch_size")}
    with tempfile.TemporaryDirectory(prefix="bench-soak-") as folder:
        stage = LiveStage(scene, Path(folder), num_threads=options.threads, **settings)
        models = stage.folder / "models"
        register(model, LocalModelStore(models))
        with stage, stage.edge(models) as edge:
            edge.scan(options.rate / 2, 2.0)
            runs = _runs(edge, options, minutes, progress)
    report.extra["runs"] = runs
    report.rows = soak_rows(runs, options)
    return report


def _runs(edge: LiveEdge, options: LiveBench, minutes: float, progress: Progress) -> list[dict[str, Any]]:
    end_s = time.monotonic() + 60.0 * minutes
    runs: list[dict[str, Any]] = []
    while not runs or time.monotonic() + options.seconds <= end_s:
        progress(f"run {len(runs) + 1}, {max(end_s - time.monotonic(), 0) / 60:.1f} minutes left")
        outcome = edge.scan(options.rate, options.seconds)
        disk = folder_bytes(edge.stage.folder)
        runs.append({**outcome.as_dict(), "rss_bytes": edge.load["rss_bytes"], "disk_bytes": disk})
    return runs


def soak_rows(runs: list[dict[str, Any]], options: LiveBench) -> list[Row]:
    """Rows of a soak."""
    generated = sum(run["counts"]["generated"] for run in runs)
    inferred = sum(run["counts"]["inferred"] for run in runs)
    wrong = sum(run["counts"][name] for run in runs for name in ("missed", "lost", "unaccounted", "recovered"))
    memory = [run["rss_bytes"] for run in runs]
    asked = len(runs) * round(options.rate * options.seconds)
    return [
        Row("soak_minutes", "min", "higher", len(runs) * options.seconds / 60.0),
        Row("soak_runs", "1", "higher", len(runs)),
        Row("soak_frames_inferred", "1", "higher", inferred, asked, "frames offered", float(asked)),
        Row("soak_frames_miscounted", "1", "lower", wrong + abs(generated - asked), target=0.0),
        Row("soak_frames_never_shown", "1", "lower", sum(run["unlisted"] for run in runs), target=0.0),
        Row("soak_lowest_rate", "1/s", "higher", min(run["sustained"] for run in runs), target=KEPT_UP * options.rate),
        Row("soak_memory_drift", "1", "lower", memory_drift(memory), target=MAX_DRIFT),
        Row("soak_memory_mib", "MiB", "lower", max(memory) / 2**20),
        Row("soak_disk_gb", "GB", "lower", max(run["disk_bytes"] for run in runs) / 1e9, target=MAX_DISK_BYTES / 1e9),
        Row("soak_latency_p99_ms", "ms", "lower", max(run["latency_ms"][1] for run in runs)),
    ]


def memory_drift(memory: list[float]) -> float:
    """Largest deviation of the memory after any run from that after the first, as a fraction of it."""
    held = np.asarray(memory, dtype=np.float64)
    return float(np.abs(held / held[0] - 1.0).max())


def folder_bytes(folder: Path) -> int:
    """Size of the files in a folder; one that is removed meanwhile counts nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total
