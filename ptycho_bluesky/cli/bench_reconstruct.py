"""``ptycho-bluesky bench reconstruct``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ptycho_bluesky.cli.options import VerboseOption, setup

__all__ = ["reconstruct"]


def reconstruct(
    scan: Annotated[
        Path | None, typer.Option(help="Scan of the speed rows; without it one is simulated, 516 frames of 128×128.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of the speed rows.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="Threads of both sides.")] = 2,
    picture: Annotated[Path | None, typer.Option(help="File (PNG) for the phases of a half-scan, by both.")] = None,
    json: Annotated[Path | None, typer.Option("--json", help="File for the rows.")] = None,
    verbose: VerboseOption = False,
) -> None:
    """Measure the reconstruction engines beside those of pty-chi (extra ptychi), interleaved on the same frames.

    Where torchvision is missing, which pty-chi asks for a blur that is not used here, a stand-in holds its place.

    Example: [cyan]ptycho-bluesky bench reconstruct --scan siemens-star-small.npz.bz2 --json reconstruct.json[/]
    """
    setup(verbose=verbose)
    from rich.console import Console

    from ptycho_bluesky.bench.reconstruct import ReconstructBench, run, satisfy_torchvision
    from ptycho_bluesky.bench.rows import print_table, table, write_report
    from ptycho_bluesky.io import read_measurement
    from ptycho_bluesky.simulation.scans import spiral_scan

    stand_in = satisfy_torchvision()
    console = Console(stderr=True)
    measurement = spiral_scan(516, 128)[0] if scan is None else read_measurement(scan)
    options = ReconstructBench(rounds=rounds, threads=threads, picture=picture)
    rows, seconds = [], {}
    with console.status("") as status:
        for part in run(measurement, options, progress=lambda what: status.update(what)):
            rows += part.rows
            seconds[part.name] = part.seconds
            console.print(table(part.rows, f"{part.name} ({part.seconds:.0f} s)"))
    print_table(rows, "reconstruct")
    if stand_in:
        console.print("torchvision is not installed: a stand-in satisfied pty-chi's import of it", highlight=False)
    if json is not None:
        write_report(json, "reconstruct", rows, torchvision_stand_in=stand_in, seconds=seconds)
