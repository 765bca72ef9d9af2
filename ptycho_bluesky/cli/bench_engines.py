"""``ptycho-bluesky bench engines``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ptycho_bluesky.cli.options import VerboseOption, setup

__all__ = ["engines"]


def engines(
    weights: Annotated[
        Path | None, typer.Option(help="Weights of PtychoNN 2.0 (.pth, .safetensors) or a model file (.onnx).")
    ] = None,
    size: Annotated[int, typer.Option(help="Rows and columns of a frame.")] = 128,
    json: Annotated[Path | None, typer.Option("--json", help="File for the rows.")] = None,
    verbose: VerboseOption = False,
) -> None:
    """Measure how many frames a second each engine reads, beside plain PyTorch in the same minutes.

    Example: [cyan]ptycho-bluesky bench engines --weights ptychonn2_26id_phase.pth --json engines.json[/]
    """
    setup(verbose=verbose)
    import numpy as np
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ptycho_bluesky.bench.engines import run
    from ptycho_bluesky.bench.rows import table, write_report
    from ptycho_bluesky.inference.engine import read_model_file
    from ptycho_bluesky.models import build
    from ptycho_bluesky.models.export import to_onnx

    content = read_model_file(weights, (size, size)) if weights else to_onnx(build("ptychonn2"), (size, size))
    frames = np.random.default_rng(0).poisson(20.0, (16, size, size)).astype(np.uint16)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("engines", total=None)
        rows = run(
            content,
            frames,
            progress=lambda done, total, name: bar.update(task, completed=done, total=total, description=name),
        )
    Console().print(table(rows, "engines"))
    if json is not None:
        write_report(json, "engines", rows)
