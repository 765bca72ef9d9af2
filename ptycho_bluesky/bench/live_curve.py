"""How good an image at what rate: every model of the package on the full path, overloaded."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ptycho_bluesky.bench.live import LiveBench, LiveReport, Progress
from ptycho_bluesky.bench.live_models import BenchModel, register
from ptycho_bluesky.bench.live_run import LiveStage
from ptycho_bluesky.bench.live_scene import LiveScene
from ptycho_bluesky.bench.rows import Row
from ptycho_bluesky.bench.shipped import shipped_model, shipped_models
from ptycho_bluesky.training.registry import LocalModelStore

__all__ = ["run_curve"]


def run_curve(options: LiveBench, progress: Progress = lambda text: None) -> LiveReport:
    """Stream faster than any edge reads, and note what each model's edge makes of it.

    Returns
    -------
    LiveReport
        For each model that comes with the package the frames per second of the full path, from the first exposure to
        the image that lists the last frame, and the similarity of its mosaic of a scan that it has never seen.
    """
    progress("rendering frames")
    scene = LiveScene.render(options.size, options.num_frames)
    scores = {}
    for name, entry in shipped_models()["models"].items():
        scores[name] = entry["held_out"]["ssim"]
        if entry.get("int8", {}).get("accepted"):
            scores[f"{name}_int8"] = scores[name] - entry["int8"]["ssim_loss"]
    report = LiveReport(extra={"model": "all of the package", "scans": {}})
    settings = {name: getattr(options, name) for name in ("engine", "precision", "batch_size")}
    with (
        tempfile.TemporaryDirectory(prefix="bench-live-") as folder,
        LiveStage(scene, Path(folder), num_threads=options.threads, **settings) as stage,
    ):
        for name, ssim in sorted(scores.items(), key=lambda item: item[1]):
            progress(name)
            models = stage.folder / f"models-{name}"
            register(BenchModel.read(shipped_model(name), options.size), LocalModelStore(models))
            with stage.edge(models) as edge:
                edge.scan(100.0, 2.0)
                outcome = edge.scan(options.overload_rate, options.short_s / 2)
            report.extra["scans"][name] = outcome.as_dict()
            report.rows.append(Row(f"curve_{name}_frames_per_s", "1/s", "higher", outcome.sustained))
            report.rows.append(Row(f"curve_{name}_ssim", "1", "higher", ssim))
    return report
