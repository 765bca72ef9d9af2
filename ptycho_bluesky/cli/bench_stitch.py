"""``ptycho-bluesky bench stitch``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ptycho_bluesky.cli.options import VerboseOption, setup

__all__ = ["stitch"]


def stitch(
    size: Annotated[int, typer.Option(help="Rows and columns of a patch.", min=8)] = 128,
    json: Annotated[Path | None, typer.Option("--json", help="File for the rows.")] = None,
    verbose: VerboseOption = False,
) -> None:
    """Measure how many patches a second one core places in the mosaic, and whether that holds as it grows.

    Example: [cyan]ptycho-bluesky bench stitch --json stitch.json[/]
    """
    setup(verbose=verbose)
    from rich.console import Console
    from rich.progress import Progress

    from ptycho_bluesky.bench.rows import print_table, write_report
    from ptycho_bluesky.bench.stitch import StitchBench, run

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("stitch", total=None)
        rows = run(
            StitchBench(size=size),
            lambda done, total, name: bar.update(task, completed=done, total=total, description=name),
        )
    print_table(rows, "stitch")
    if json is not None:
        write_report(json, "stitch", rows)
