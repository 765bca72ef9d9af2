"""``ptycho-bluesky demo``: the whole loop with one command."""

from __future__ import annotations

import logging
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

from ptycho_bluesky.cli.options import VerboseOption
from ptycho_bluesky.errors import InputError

__all__ = ["command"]


def command(
    out: Annotated[
        Path | None, typer.Option(help="Report folder, new or empty; by default ptycho_demo_<time> here.")
    ] = None,
    scans: Annotated[int, typer.Option(help="Scans of random shapes before the scan of letters.")] = 7,
    size: Annotated[int, typer.Option(help="Rows and columns of a frame, a multiple of 16.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of sample, noise, weights and batches.")] = 0,
    recorded: Annotated[
        Path | None, typer.Option(help="Play this recorded scan (npz, CXI, HDF5) instead of simulating one.")
    ] = None,
    points: Annotated[int, typer.Option(help="Points of each simulated scan.")] = 963,
    budget: Annotated[int | None, typer.Option(help="Frame-updates of training spent on each new scan.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave Tiled running until Ctrl-C, to browse.")] = False,
    headless: Annotated[bool, typer.Option("--headless", help="Open no window, even where there is a screen.")] = False,
    disturb: Annotated[
        bool, typer.Option("--disturb", help="Kill and restart edge, worker, writer and Tiled once each on the way.")
    ] = False,
    verbose: VerboseOption = False,
) -> None:
    """Run the whole loop here: scan, infer and stitch live, reconstruct, train, test, swap, scan again.

    Everything is started on loopback and free ports and stopped at the end. The folder that it leaves holds a page with
    pictures ([bold]index.html[/]), [bold]report.json[/], the data and the logs.

    Examples: [cyan]ptycho-bluesky demo[/] (simulated, about 10 minutes on two cores);
    [cyan]ptycho-bluesky demo --scans 2 --budget 4000[/] (a quick look);
    [cyan]ptycho-bluesky demo --recorded siemens-star-small.npz.bz2[/].
    """
    from pydantic import ValidationError

    from ptycho_bluesky.demo.options import DemoOptions
    from ptycho_bluesky.demo.run import run_demo

    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING, format="%(name)s: %(message)s")
    folder = out or Path(f"ptycho_demo_{time.strftime('%Y%m%d_%H%M%S')}")
    try:
        options = DemoOptions(
            out=folder, scans=scans, size=size, seed=seed, recorded=recorded, num_points=points, keep=keep,
            headless=headless, disturb=disturb, frames_per_scan=budget,
        )  # fmt: skip
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"--{first['loc'][0]} = {first['input']!r}: {first['msg']}") from error
    signal.signal(signal.SIGTERM, _interrupt)
    # A job that a shell started in the background inherits an ignored SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    console = Console()
    try:
        page = run_demo(options, console)
    except KeyboardInterrupt:
        console.print("interrupted; every process was stopped")
        raise typer.Exit(130) from None
    console.print(f"\nReport: [bold]{page}[/]", highlight=False)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Treat SIGTERM like Ctrl-C, so that the children are stopped."""
    raise KeyboardInterrupt
