"""``ptycho-bluesky bench workflow``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ptycho_bluesky.cli.options import VerboseOption, setup

__all__ = ["workflow"]


def workflow(
    kills: Annotated[int, typer.Option(help="Random kills of worker, executor, writer, Tiled and trainer.", min=0)] = 8,
    part: Annotated[
        list[str] | None,
        typer.Option(help="Only modelled, real, handoff, handover, catalogue or kills; may be given several times."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the moments of scans and kills.")] = 0,
    json: Annotated[Path | None, typer.Option("--json", help="File for the rows.")] = None,
    verbose: VerboseOption = False,
) -> None:
    """Measure how stages of different runs overlap, how soon runs and models are handed over, and what kills cost.

    Everything runs on this machine, on loopback: Tiled, the writer, the worker and its processes. The file of --json is
    brought up to date after each part and each kill; Ctrl-C ends the kills and counts what became of the runs so far.

    Example: [cyan]ptycho-bluesky bench workflow --kills 8 --json workflow.json[/]
    """
    setup(verbose=verbose)
    import logging
    import signal
    import time

    from rich.console import Console

    from ptycho_bluesky.bench.rows import print_table, write_report
    from ptycho_bluesky.bench.workflow import PARTS, WorkflowBench, WorkflowReport, run
    from ptycho_bluesky.errors import InputError

    if unknown := sorted(set(part or ()) - set(PARTS)):
        raise InputError(f"--part {unknown[0]}", f"known ones are {', '.join(PARTS)}")
    if not verbose:
        logging.getLogger("ptycho_bluesky").setLevel(logging.ERROR)
    options = WorkflowBench(kills=kills, seed=seed, parts=tuple(part or PARTS))
    # The processes that it starts are stopped also when it is told to end.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console, began = Console(stderr=True), time.monotonic()

    def tell(what: str) -> None:
        line.update(what)
        if not console.is_terminal:
            console.print(f"{time.monotonic() - began:6.0f} s  {what}", soft_wrap=True)

    def save(report: WorkflowReport) -> None:
        if json is not None:
            write_report(json, "workflow", report.rows, **report.extra)

    with console.status("starting") as line:
        report = run(options, tell, save)
    print_table(report.rows, "workflow")
