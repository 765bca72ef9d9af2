"""``ptycho-bluesky bench trust``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ptycho_bluesky.cli.options import VerboseOption, setup

__all__ = ["trust"]


def trust(
    model: Annotated[
        str, typer.Option("--model", "-m", help="One of the models that come with the package.")
    ] = "lean16",
    json: Annotated[Path | None, typer.Option("--json", help="File for the rows.")] = None,
    verbose: VerboseOption = False,
) -> None:
    """Measure how often the edge flags frames that its model can read, and scans that it cannot.

    A network trained on simulated random shapes reads scans of shapes that it has not seen, and scans with one fault
    each: another defocus, a probe without central stop, a shifted centre, 40 times the counts, a transposed detector,
    no sample, a thicker sample. Letters, which are new to it but which it reads, are reported beside them.

    Example: [cyan]ptycho-bluesky bench trust --json trust.json[/]
    """
    setup(verbose=verbose)
    import logging

    from rich.console import Console
    from rich.progress import Progress

    from ptycho_bluesky.bench.corpus import CorpusOptions
    from ptycho_bluesky.bench.rows import print_table, write_report
    from ptycho_bluesky.bench.shipped import shipped_model, shipped_models
    from ptycho_bluesky.bench.trust import TrustBench, run

    logging.getLogger("ptycho_bluesky.streaming").setLevel(logging.ERROR)  # every scan of the bench would be told of
    bench = TrustBench(CorpusOptions(**shipped_models()["corpus"]))
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("trust", total=None)
        rows = run(
            bench,
            shipped_model(model).read_bytes(),
            lambda done, total, name: bar.update(task, completed=done, total=total, description=name),
        )
    print_table(rows, "trust")
    if json is not None:
        write_report(json, "trust", rows, model=model)
