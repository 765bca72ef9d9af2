"""``ptycho-bluesky bench live``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ptycho_bluesky.cli.options import VerboseOption, setup

__all__ = ["live"]


def live(
    model: Annotated[Path | None, typer.Option(help="Model file; by default the lean one of the package.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Published weights of PtychoNN 2.0, for the baselines.")] = None,
    size: Annotated[int, typer.Option(help="Rows and columns of a frame.")] = 128,
    rate: Annotated[float, typer.Option(help="Frames per second of the detector.", min=1)] = 1000.0,
    seconds: Annotated[float, typer.Option(help="Length of the main scan.", min=1)] = 60.0,
    engine: Annotated[str, typer.Option(help="Engine of the edge.")] = "openvino",
    precision: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    threads: Annotated[int, typer.Option(help="Threads of the network.", min=1)] = 2,
    batch_size: Annotated[int, typer.Option(help="Frames that the network reads at once.", min=1)] = 8,
    swaps: Annotated[int, typer.Option(help="Only promote so many models during a scan.", min=0)] = 0,
    curve: Annotated[bool, typer.Option("--curve", help="Only measure every model of the package.")] = False,
    json: Annotated[Path | None, typer.Option("--json", help="File for the rows.")] = None,
    verbose: VerboseOption = False,
) -> None:
    """Measure detector, pvAccess, edge and mosaic, each a process of its own, with the file source off.

    The simulated detector streams frames that were rendered beforehand on a clock that waits for nobody. Latency is
    counted from a frame's time stamp to the receipt, in another process, of the first whole mosaic that lists it.

    Example: [cyan]ptycho-bluesky bench live --rate 2000 --seconds 60 --json live.json[/]
    """
    setup(verbose=verbose)
    from rich.console import Console

    from ptycho_bluesky.bench.live import LiveBench, run
    from ptycho_bluesky.bench.live_curve import run_curve
    from ptycho_bluesky.bench.live_swaps import run_swaps
    from ptycho_bluesky.bench.rows import print_table, write_report

    options = LiveBench(model, weights, size, rate, seconds, engine, precision, threads, batch_size)
    console = Console(stderr=True)
    with console.status("starting") as status:
        if curve:
            report = run_curve(options, status.update)
        else:
            report = run_swaps(options, swaps, status.update) if swaps else run(options, status.update)
    print_table(report.rows, f"live: {report.extra['model']}")
    if json is not None:
        write_report(json, "live", report.rows, **report.extra)
