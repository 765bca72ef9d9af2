"""``ptycho-bluesky bench engines``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from ptycho_bluesky.cli.options import VerboseOption, setup
from ptycho_bluesky.errors import InputError

if TYPE_CHECKING:
    from ptycho_bluesky.bench.engine_models import HeldOut
    from ptycho_bluesky.bench.engines import EngineReport

__all__ = ["engines"]

HELD_OUT_FRAMES = 400
PLAIN_WIDTH = 150
"""Columns of the tables where the output is no terminal."""
MODEL_SIZE = 128
"""Frames of the models that come with the package."""


def engines(
    weights: Annotated[
        Path | None,
        typer.Option(help="Weights of PtychoNN 2.0 (.pth, .safetensors) or a model file (.onnx), for the engines."),
    ] = None,
    frames: Annotated[
        Path | None, typer.Option(help="Recorded scan (npz, CXI, HDF5) on which integers are tested, with --weights.")
    ] = None,
    size: Annotated[int, typer.Option(help="Rows and columns of a frame.")] = MODEL_SIZE,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each case.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.01, help="Time of a case in a turn.")] = 0.2,
    threads: Annotated[int, typer.Option(min=1, help="Threads of every engine and of the baselines.")] = 2,
    json: Annotated[Path | None, typer.Option("--json", help="File for the rows.")] = None,
    verbose: VerboseOption = False,
) -> None:
    """Measure how many frames a second each engine reads, and what integers and small networks cost in similarity.

    Plain PyTorch is measured in the same turns. The frontier at the end holds the models that come with the package,
    all trained on the same simulated frames.

    Example: [cyan]ptycho-bluesky bench engines --weights ptychonn2_26id_phase.pth --json engines.json[/]
    """
    setup(verbose=verbose)
    import logging

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from ptycho_bluesky.bench.engines import EngineBench, run

    logging.getLogger("ptycho_bluesky").setLevel(logging.DEBUG if verbose else logging.WARNING)
    options = EngineBench(rounds=rounds, seconds=seconds, num_threads=threads)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("simulated frames", total=None)
        content, held_out, trained, source = _prepare(weights, frames, size)
        report = run(
            content,
            held_out,
            trained,
            options,
            lambda done, total, text: bar.update(task, completed=done, total=total or None, description=text),
        )
    report.remarks.insert(0, source)
    _show(report)
    if json is not None:
        from dataclasses import asdict

        from ptycho_bluesky.bench.rows import write_report

        frontier = [asdict(point) for point in report.frontier]
        write_report(json, "engines", report.rows, frontier=frontier, remarks=report.remarks)


def _prepare(
    weights: Path | None, frames: Path | None, size: int
) -> tuple[bytes, HeldOut, dict[str, tuple[bytes, HeldOut]], str]:
    """Model, frames, models trained on the same data, and one sentence on where they come from."""
    from ptycho_bluesky.bench.corpus import CorpusOptions, SimulatedCorpus
    from ptycho_bluesky.bench.engine_models import from_frames, from_labels
    from ptycho_bluesky.bench.shipped import shipped_model, shipped_models
    from ptycho_bluesky.inference.engine import read_model_file
    from ptycho_bluesky.models import build
    from ptycho_bluesky.models.export import to_onnx

    if frames is not None and weights is None:
        raise InputError(f"--frames {frames}", "models that come with the package have their own", "give --weights too")
    stated = shipped_models()
    labels = SimulatedCorpus(CorpusOptions(**{**stated["corpus"], "size_px": size})).held_out()
    own = from_labels(labels, HELD_OUT_FRAMES)
    trained = {name: (shipped_model(name).read_bytes(), own) for name in stated["models"]} if size == MODEL_SIZE else {}
    if weights is not None:
        content = read_model_file(weights, (size, size))
        image, position, pixel = labels.image, labels.position_m, labels.pixel_size_m
        if frames is not None:
            from ptycho_bluesky.io import read_measurement

            scan = read_measurement(frames)
            image, position, pixel = np.asarray(scan.image), scan.position_m, scan.step_px_m
        data = "simulated frames" if frames is None else frames.name
        source = f"engines' rows: {weights.name} on {data}; frontier: models trained on simulated frames"
        return content, from_frames(image, position, pixel, HELD_OUT_FRAMES), trained, source
    if not trained:
        content = to_onnx(build("ptychonn2"), (size, size), 1.0, {"sqrt": True, "scale": 0.1})
        return content, own, {}, f"PtychoNN 2.0 without training: no model of {size} pixels comes with the package"
    source = "models trained on simulated frames, judged on a simulated scan that none has seen"
    return trained["ptychonn2"][0], own, trained, source


def _show(report: EngineReport) -> None:
    from rich.console import Console
    from rich.table import Table

    from ptycho_bluesky.bench.rows import table

    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    console.print(table([row for row in report.rows if "_frontier_" not in row.metric], "engines"))
    frontier = Table(title="speed against similarity, batch 8")
    for heading in ("model", "precision", "frames/s", "SSIM", "loss"):
        frontier.add_column(heading, justify="left" if heading in {"model", "precision"} else "right")
    for point in report.frontier:
        cells = (f"{point.frames_per_s:.0f}", f"{point.ssim:.4f}", f"{point.ssim_loss:+.4f}")
        frontier.add_row(point.model, point.precision, *cells)
    console.print(frontier)
    for remark in report.remarks:
        console.print(f"· {remark}", highlight=False)
