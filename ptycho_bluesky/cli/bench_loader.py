"""``ptycho-bluesky bench loader``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ptycho_bluesky.cli.options import VerboseOption, setup

__all__ = ["loader"]


def loader(
    frames: Annotated[int, typer.Option(help="Frames of the synthetic corpus.", min=256)] = 4096,
    size: Annotated[int, typer.Option(help="Rows and columns of a frame.", min=16)] = 128,
    rounds: Annotated[int, typer.Option(help="Turns of every loader.", min=1)] = 2,
    seed: Annotated[int, typer.Option(help="Of frames and shuffles.")] = 0,
    json: Annotated[Path | None, typer.Option("--json", help="File for the rows.")] = None,
    verbose: VerboseOption = False,
) -> None:
    """Measure how fast two ranks load a corpus that does not fit into their memory.

    Against PyTorch's DataLoader and DistributedSampler with a cache of the same memory, a re-creation of NoPFS's
    policy, and h5py frame by frame; the page cache is dropped all the while.

    Example: [cyan]ptycho-bluesky bench loader --json loader.json[/]
    """
    setup(verbose=verbose)
    from rich.console import Console
    from rich.progress import Progress

    from ptycho_bluesky.bench.loader import LoaderBench, run
    from ptycho_bluesky.bench.rows import print_table, write_report

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("loader", total=None)
        rows = run(
            LoaderBench(num_frames=frames, size_px=size, rounds=rounds, seed=seed),
            lambda done, total, name: bar.update(task, completed=done, total=total, description=name),
        )
    print_table(rows, "loader")
    if json is not None:
        write_report(json, "loader", rows)
