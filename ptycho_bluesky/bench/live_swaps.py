"""Models promoted while frames arrive: nothing may be missed, and nobody may notice."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ptycho_bluesky.bench.live import KEPT_UP, LiveBench, LiveReport, Progress, choose_model
from ptycho_bluesky.bench.live_models import BenchModel, register, untrained
from ptycho_bluesky.bench.live_run import LiveStage
from ptycho_bluesky.bench.live_scene import LiveScene
from ptycho_bluesky.bench.rows import Row
from ptycho_bluesky.records import FrameState, ModelStage
from ptycho_bluesky.training.registry import LocalModelStore

__all__ = ["run_swaps", "swap_pauses_s"]

FIRST_S = 2.0
"""Time before the first promotion, and after the last."""


def run_swaps(options: LiveBench, swaps: int, progress: Progress = lambda text: None) -> LiveReport:
    """Promote models, each another than the one before, evenly over one scan.

    Parameters
    ----------
    options : LiveBench
    swaps : int
        Promotions.
    progress : callable, optional

    Returns
    -------
    LiveReport
    """
    progress("rendering frames")
    scene = LiveScene.render(options.size, options.num_frames)
    first = choose_model(options)
    models = [first, untrained("lean8", options.size, seed=1), untrained("lean8", options.size, seed=2)]
    report = LiveReport(extra={"model": first.name, "swaps": swaps})
    settings = {name: getattr(options, name) for name in ("engine", "precision", "batch_size")}
    with tempfile.TemporaryDirectory(prefix="bench-live-") as folder:
        stage = LiveStage(scene, Path(folder), num_threads=options.threads, **settings)
        store = LocalModelStore(stage.folder / "models")
        for model in models:
            register(model, store, promote=model is first)
        with stage, stage.edge(store.directory) as edge:
            edge.scan(options.rate / 2, 2.0)
            progress(f"{swaps} promotions at {options.rate:.0f} frames/s")
            promoted: list[str] = []
            outcome = edge.scan(
                options.rate, options.seconds, lambda: _promote(store, models, swaps, options.seconds, promoted)
            )
            assert edge.result is not None
            log = edge.result.mosaic.frame_log
            known = {model.model_id for model in models}
            strangers = set(edge.result.mosaic.model_ids) - known
            unread = int(((log["state"] == FrameState.INFERRED) & (log["model"] < 0)).sum())
            pauses_s, ordinary_s = swap_pauses_s(edge.batches)
    batch_s = options.batch_size / options.rate
    report.extra["scan"] = outcome.as_dict()
    report.extra["pauses_ms"] = [1e3 * pause for pause in pauses_s]
    worst = max(pauses_s, default=0.0) / batch_s
    report.rows += [
        Row("swap_frames_per_s", "1/s", "higher", outcome.sustained, target=KEPT_UP * options.rate),
        Row("swap_count", "1", "higher", len(pauses_s), target=float(swaps)),
        Row("swap_frames_missed", "1", "lower", outcome.counts["missed"], target=0.0),
        Row("swap_frames_lost", "1", "lower", outcome.counts["lost"], target=0.0),
        Row("swap_frames_unaccounted", "1", "lower", outcome.counts["unaccounted"], target=0.0),
        Row("swap_frames_of_no_whole_model", "1", "lower", unread + len(strangers), target=0.0),
        Row("swap_pause_batches", "1", "lower", worst, target=1.0),
        Row("swap_pause_ms_median", "ms", "lower", *_beside(pauses_s, ordinary_s, 50), "batches without a swap"),
        Row("swap_pause_ms_95", "ms", "lower", *_beside(pauses_s, ordinary_s, 95), "batches without a swap"),
        Row("swap_latency_p99_ms", "ms", "lower", outcome.latency_ms[1], target=200.0),
    ]
    return report


def _promote(
    store: LocalModelStore, models: Sequence[BenchModel], swaps: int, seconds: float, promoted: list[str]
) -> None:
    """Promote the models in turn, evenly over the scan."""
    period_s = (seconds - 2 * FIRST_S) / max(swaps, 1)
    begun_s = time.monotonic() + FIRST_S
    for k in range(swaps):
        time.sleep(max(0.0, begun_s + k * period_s - time.monotonic()))
        model_id = models[(k + 1) % len(models)].model_id
        store.set_stage(model_id, ModelStage.PROMOTED, f"swap {k}")
        promoted.append(model_id)


def _beside(pauses_s: Sequence[float], ordinary_s: Sequence[float], percent: float) -> tuple[float, float]:
    """A percentile of the swaps' pauses, and of those that the machine makes anyhow, in ms."""
    ours, theirs = (float(np.percentile(each or [0.0], percent)) * 1e3 for each in (pauses_s, ordinary_s))
    return ours, theirs


def swap_pauses_s(batches: Sequence[Sequence[Any]]) -> tuple[list[float], list[float]]:
    """By how much longer than usual batches were in coming.

    Parameters
    ----------
    batches : sequence of (float, int, str)
        When each batch was done, its frames, and the model that read it.

    Returns
    -------
    pauses_s : list of float
        Of the first batch of each new model; the usual time is the median of those between batches.
    ordinary_s : list of float
        Of all others.
    """
    done_s = np.array([batch[0] for batch in batches])
    gaps = np.diff(done_s)
    if not len(gaps):
        return [], []
    pauses = np.maximum(gaps - np.median(gaps), 0.0)
    models = [batch[2] for batch in batches]
    swapped = np.array([new != old for old, new in pairwise(models)])
    return pauses[swapped].tolist(), pauses[~swapped].tolist()
