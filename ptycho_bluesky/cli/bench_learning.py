"""``ptycho-bluesky bench learning``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ptycho_bluesky.cli.options import VerboseOption, setup

__all__ = ["learning"]


def learning(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the experiment, curve and pictures.")] = Path(
        "learning"
    ),
    seeds: Annotated[int, typer.Option(help="Experiments, each with another sample and other weights.", min=1)] = 1,
    first_seed: Annotated[int, typer.Option(help="Seed of the first.")] = 0,
    shapes: Annotated[int, typer.Option(help="Scans of random shapes.", min=2)] = 13,
    letters: Annotated[int, typer.Option(help="Scans of letters behind them.", min=2)] = 6,
    points: Annotated[int, typer.Option(help="Frames of a scan.", min=50)] = 963,
    size: Annotated[int, typer.Option(help="Rows and columns of a frame.", min=32)] = 64,
    architecture: Annotated[str, typer.Option(help="Network.")] = "ptychonn2",
    frames_per_scan: Annotated[int, typer.Option(help="Frame-updates after each scan.", min=8)] = 6_000,
    threads: Annotated[int, typer.Option(help="CPU threads; more pay on idle cores alone.", min=1)] = 1,
    minutes: Annotated[float, typer.Option(help="Begin no scan after this time; the same command goes on.")] = 45.0,
    json: Annotated[Path | None, typer.Option("--json", help="File for the rows.")] = None,
    verbose: VerboseOption = False,
) -> None:
    """Follow a simulated experiment: how well reserved scans are read after each scan that was learned from.

    Scans of random shapes, then of letters, which the network has not seen before. What was done is kept in the folder;
    the same command goes on where it was stopped.

    Example: [cyan]ptycho-bluesky bench learning --out learning --json learning.json[/]
    """
    setup(verbose=verbose)
    import time

    from rich.console import Console
    from rich.progress import Progress

    from ptycho_bluesky.bench.learning import LearningBench, read_scores, rows_of, run
    from ptycho_bluesky.bench.learning_pictures import draw_curve, draw_pictures
    from ptycho_bluesky.bench.rows import Row, print_table, write_report

    began, rows, scores = time.monotonic(), list[Row](), {}
    bench = LearningBench(shapes, letters, points, size, architecture, frames_per_scan, threads, first_seed)
    for seed in range(first_seed, first_seed + seeds):
        bench = LearningBench(shapes, letters, points, size, architecture, frames_per_scan, threads, seed)
        folder = out / f"seed-{seed}"
        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task("learning", total=None)
            finished = run(
                bench,
                folder,
                lambda done, total, name, bar=bar, task=task: bar.update(
                    task, completed=done, total=total, description=name
                ),
                60 * minutes - (time.monotonic() - began),
            )
        if not finished:
            typer.echo(f"seed {seed}: {len(read_scores(folder))} scans done; the same command goes on", err=True)
            raise typer.Exit(75)
        scores[seed] = read_scores(folder)
        suffix = "" if seeds == 1 else f"_seed_{seed}"
        rows += [Row(**{**vars(row), "metric": row.metric + suffix}) for row in rows_of(bench, scores[seed])]
        shown = (1, max(2, shapes // 3), shapes, shapes + letters)
        draw_pictures(folder / "pictures.png", bench, folder, shown)
    draw_curve(out / "curve.png", bench, scores)
    print_table(rows, "learning")
    if json is not None:
        write_report(json, "learning", rows, scores=scores)
