"""``ptycho-bluesky bench soak``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ptycho_bluesky.cli.options import VerboseOption, setup

__all__ = ["soak"]


def soak(
    minutes: Annotated[float, typer.Option(help="How long.", min=0.01)] = 20.0,
    model: Annotated[Path | None, typer.Option(help="Model file; by default the lean one of the package.")] = None,
    size: Annotated[int, typer.Option(help="Rows and columns of a frame.")] = 128,
    rate: Annotated[float, typer.Option(help="Frames per second of the detector.", min=1)] = 1000.0,
    seconds: Annotated[float, typer.Option(help="Length of each run.", min=1)] = 30.0,
    engine: Annotated[str, typer.Option(help="Engine of the edge.")] = "openvino",
    threads: Annotated[int, typer.Option(help="Threads of the network.", min=1)] = 2,
    json: Annotated[Path | None, typer.Option("--json", help="File for the rows.")] = None,
    verbose: VerboseOption = False,
) -> None:
    """Run scan after scan at full rate: the edge's memory must stay as it is, every counter must be exact.

    Results of closed runs are removed, as a store that has taken them would. By default it takes 20 minutes.

    Example: [cyan]ptycho-bluesky bench soak --minutes 20 --rate 1000 --json soak.json[/]
    """
    setup(verbose=verbose)
    from rich.console import Console

    from ptycho_bluesky.bench.live import LiveBench
    from ptycho_bluesky.bench.live_soak import run_soak
    from ptycho_bluesky.bench.rows import print_table, write_report

    options = LiveBench(model=model, size=size, rate=rate, seconds=seconds, engine=engine, threads=threads)
    with Console(stderr=True).status("starting") as status:
        report = run_soak(options, minutes, status.update)
    print_table(report.rows, f"soak: {report.extra['model']}")
    if json is not None:
        write_report(json, "soak", report.rows, **report.extra)
