"""``bench live``: from a detector's clock to the mosaic in another process, at a rate that nobody can slow down."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ptycho_bluesky.bench.live_models import BenchModel, published, register, shipped, untrained
from ptycho_bluesky.bench.live_run import LiveStage, Outcome
from ptycho_bluesky.bench.live_scene import LiveScene
from ptycho_bluesky.bench.rows import Row
from ptycho_bluesky.training.registry import LocalModelStore

__all__ = ["LiveBench", "LiveReport", "run"]

Progress = Callable[[str], None]

LATENCY_P50_MS, LATENCY_P99_MS = 60.0, 200.0
TRANSPORT_RATE = 5000.0
KEPT_UP = 0.98
"""Share of the offered rate under which a row fails."""
RELEASED = "released consumer, PtychoNN 2.0 in float32"
RELEASED_SAME = "released consumer, same model and precision"


@dataclass(frozen=True)
class LiveBench:
    """What is measured.

    Attributes
    ----------
    model : path, optional
        Model file; by default the one that comes with the package, else an untrained lean network of the same speed.
    weights : path, optional
        Published weights of PtychoNN 2.0; random ones are as fast.
    size : int
        Rows and columns of a frame.
    rate : float
        Frames per second.
    seconds : float
        Of the main scan.
    engine, precision : str
        Of the edge.
    threads, batch_size : int
        Of the edge.
    num_frames : int
        Frames rendered beforehand.
    short_s : float
        Of every other scan.
    steps : tuple of float
        Rates tried beyond ``rate``, in multiples of it, until one fails.
    float_rates : tuple of float
        Rates tried with PtychoNN 2.0, until one fails.
    overload_rate : float
        Rate of the stream on which edge and released consumer are compared: more than either reads, nothing lost.
    """

    model: Path | None = None
    weights: Path | None = None
    size: int = 128
    rate: float = 1000.0
    seconds: float = 60.0
    engine: str = "openvino"
    precision: str = "auto"
    threads: int = 2
    batch_size: int = 8
    num_frames: int = 4096
    short_s: float = 8.0
    steps: tuple[float, ...] = (1.5, 2.0, 2.5, 3.0, 4.0)
    float_rates: tuple[float, ...] = (200.0, 400.0, 600.0, 800.0)
    overload_rate: float = 4000.0


@dataclass
class LiveReport:
    """Rows, and everything measured behind them (JSON-able)."""

    rows: list[Row] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


def run(options: LiveBench | None = None, progress: Progress = lambda text: None) -> LiveReport:
    """Measure the live path with real processes on loopback.

    Parameters
    ----------
    options : LiveBench, optional
    progress : callable, optional
        Told what is going on.

    Returns
    -------
    LiveReport
    """
    options = options or LiveBench()
    progress("rendering frames")
    scene = LiveScene.render(options.size, options.num_frames)
    model = choose_model(options)
    network = published(options.weights, options.size)
    report = LiveReport(extra={"model": model.name, "baseline_model": network.name, "scans": {}})
    settings = {name: getattr(options, name) for name in ("engine", "precision", "batch_size")}
    with tempfile.TemporaryDirectory(prefix="bench-live-") as folder:
        stage = LiveStage(scene, Path(folder), num_threads=options.threads, **settings)
        with stage:
            progress("transport and join")
            report.rows += transport_rows(stage, options)
            main, highest, most = _with_model(stage, model, options, report, progress)
            progress("released consumer")
            released = released_rate(stage, network, options, "float32")
            same = released_rate(stage, model, options, options.precision)
            best_float = _float_ladder(stage, network, options, report, progress)
    report.rows[:0] = live_rows(options, main, highest, released)
    over = Row("live_frames_per_s_same_model", "1/s", "higher", most, same, RELEASED_SAME)
    report.rows.insert(1, over)
    report.rows.append(Row("ptychonn2_float_frames_per_s", "1/s", "higher", best_float, released, RELEASED))
    return report


def choose_model(options: LiveBench) -> BenchModel:
    """The model of the options, the shipped one, or an untrained network of the lean family."""
    if options.model is not None:
        return BenchModel.read(options.model, options.size)
    return shipped(options.size) or untrained("lean8", options.size)


def live_rows(options: LiveBench, main: Outcome, highest: float, released: float) -> list[Row]:
    """Rows of the main scan."""
    counts, rate = main.counts, options.rate
    sustained = main.sustained
    return [
        Row("live_frames_per_s", "1/s", "higher", sustained, released, RELEASED, KEPT_UP * rate),
        Row("live_highest_frames_per_s", "1/s", "higher", highest, target=2000.0),
        Row("offered_frames_per_s", "1/s", "higher", main.offered, target=KEPT_UP * rate),
        Row("frames_missed", "1", "lower", counts["missed"], target=0.0),
        Row("frames_recovered", "1", "lower", counts["recovered"], target=0.0),
        Row("frames_lost", "1", "lower", counts["lost"], target=0.0),
        Row("frames_unaccounted", "1", "lower", counts["unaccounted"], target=0.0),
        Row("frames_never_shown", "1", "lower", main.unlisted, target=0.0),
        Row("latency_p50_ms", "ms", "lower", main.latency_ms[0], target=LATENCY_P50_MS),
        Row("latency_p99_ms", "ms", "lower", main.latency_ms[1], target=LATENCY_P99_MS),
        Row("mosaics_per_s", "1/s", "higher", main.images_per_s),
        Row("detector_cpu_us_per_frame", "µs", "lower", main.cpu_us["detector"]),
        Row("edge_cpu_us_per_frame", "µs", "lower", main.cpu_us["edge"]),
        Row("receiver_cpu_us_per_frame", "µs", "lower", main.cpu_us["receiver"]),
    ]


def transport_rows(stage: LiveStage, options: LiveBench) -> list[Row]:
    """Stream at 5 000 frames/s into a process that joins frames and does nothing else."""
    with stage.process("transport", "ptycho_bluesky.bench.live_transport", stage.channel) as process:
        process.wait_ready()
        time.sleep(1.0)  # the channel connects
        run = stage.new_run(round(TRANSPORT_RATE * options.short_s))
        before = process.ask(documents=list(run.opening()))
        report = stage.stream(run, TRANSPORT_RATE)
        deadline = time.monotonic() + 10.0
        while (account := process.ask())["joined"] < run.count and time.monotonic() < deadline:
            time.sleep(0.01)
        drained_s = max(report["begun_s"] + report["seconds"], time.time()) - report["begun_s"]
    rate = account["joined"] / drained_s
    missed = run.count - account["joined"]
    cpu_us = 1e6 * (account["cpu_s"] - before["cpu_s"]) / run.count
    return [
        Row("transport_frames_per_s", "1/s", "higher", rate, target=KEPT_UP * TRANSPORT_RATE),
        Row("transport_missed", "1", "lower", missed, target=0.0),
        Row("transport_cpu_us_per_frame", "µs", "lower", cpu_us),
        Row("transport_detector_cpu_us_per_frame", "µs", "lower", 1e6 * report["cpu_s"] / run.count),
    ]


def _with_model(
    stage: LiveStage, model: BenchModel, options: LiveBench, report: LiveReport, progress: Progress
) -> tuple[Outcome, float, float]:
    """The main scan, faster ones until one fails, and an overload.

    Returns the main scan's outcome, the highest rate that held, and the frames per second of the overload.
    """
    models = stage.folder / "models-main"
    register(model, LocalModelStore(models))
    highest = 0.0
    with stage.edge(models) as edge:
        edge.scan(options.rate / 2, 2.0)  # the first frames of a process are no measure of it
        progress(f"{options.rate:.0f} frames/s for {options.seconds:.0f} s")
        main = edge.scan(options.rate, options.seconds)
        report.extra["scans"]["main"] = main.as_dict()
        outcome, rate = main, options.rate
        for step in options.steps:
            if not outcome.kept_up:
                break
            highest, rate = rate, options.rate * step
            progress(f"{rate:.0f} frames/s")
            outcome = edge.scan(rate, options.short_s)
            report.extra["scans"][f"rate_{rate:.0f}"] = outcome.as_dict()
        else:
            highest = rate if outcome.kept_up else highest
        progress("overload")
        over = edge.scan(options.overload_rate, options.short_s / 2)
        report.extra["scans"]["overload"] = over.as_dict()
    return main, highest, over.sustained


def _float_ladder(
    stage: LiveStage, network: BenchModel, options: LiveBench, report: LiveReport, progress: Progress
) -> float:
    """Highest rate at which PtychoNN 2.0 in floating point misses nothing."""
    models = stage.folder / "models-published"
    register(network, LocalModelStore(models))
    best = 0.0
    with stage.edge(models) as edge:
        edge.scan(min(options.float_rates) / 2, 2.0)
        for rate in options.float_rates:
            progress(f"PtychoNN 2.0 at {rate:.0f} frames/s")
            outcome = edge.scan(rate, options.short_s)
            report.extra["scans"][f"ptychonn2_{rate:.0f}"] = outcome.as_dict()
            if not outcome.kept_up:
                break
            best = rate
    return best


def released_rate(stage: LiveStage, model: BenchModel, options: LiveBench, precision: str) -> float:
    """Frames per second that the released consumer's logic reads and stitches of an overloading stream."""
    path = model.write(stage.folder)
    pixel_m = stage.scene.geometry.object_pixel_m
    arguments = (stage.channel, str(path), options.engine, precision, str(pixel_m))
    with stage.process("released", "ptycho_bluesky.bench.live_released", *arguments) as process:
        process.wait_ready()
        time.sleep(1.0)
        run = stage.new_run(round(options.overload_rate * options.short_s / 2))
        before = process.ask()
        report = stage.stream(run, options.overload_rate)
        deadline = time.monotonic() + options.short_s
        while (after := process.ask())["frames"] - before["frames"] < run.count - 8 and time.monotonic() < deadline:
            time.sleep(0.1)
    return (after["frames"] - before["frames"]) / (after["last_s"] - report["begun_s"])
