"""``ptycho-bluesky bench train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ptycho_bluesky.cli.options import VerboseOption, setup

__all__ = ["train"]


def train(
    size: Annotated[int, typer.Option(help="Rows and columns of the frames that are learned from.", min=16)] = 64,
    scans: Annotated[int, typer.Option(help="Simulated scans to train on.", min=1)] = 3,
    seconds: Annotated[float, typer.Option(help="For which the released loop learns; ours a fifth.", min=1.0)] = 420.0,
    rate_size: Annotated[int, typer.Option(help="Rows and columns of the frames for the speed.", min=16)] = 128,
    threads: Annotated[int, typer.Option(help="CPU threads of both; more pay on idle cores alone.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="Of weights and batches.")] = 0,
    json: Annotated[Path | None, typer.Option("--json", help="File for the rows, with both curves.")] = None,
    verbose: VerboseOption = False,
) -> None:
    """Measure the trainer beside the released recipe's plain PyTorch loop, in turns; some eleven minutes.

    PtychoNN 2.0 on the same simulated frames, from its first weights: frames a second at the published frame size,
    and, at a quarter of it, the time to the same validation loss on a scan that neither trains on.

    Example: [cyan]ptycho-bluesky bench train --json train.json[/]
    """
    setup(verbose=verbose)
    from rich.console import Console
    from rich.progress import Progress

    from ptycho_bluesky.bench.rows import print_table, write_report
    from ptycho_bluesky.bench.train import TrainBench, run

    bench = TrainBench(
        size_px=size,
        num_scans=scans,
        seconds=seconds,
        slice_s=min(TrainBench.slice_s, seconds),
        rate_size_px=rate_size,
        num_threads=threads,
        seed=seed,
    )
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("train", total=None)
        rows, found = run(
            bench, lambda done, total, name: bar.update(task, completed=done, total=total, description=name)
        )
    print_table(rows, "train")
    if json is not None:
        write_report(json, "train", rows, **found)
