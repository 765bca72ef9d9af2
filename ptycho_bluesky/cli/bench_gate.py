"""``ptycho-bluesky bench gate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ptycho_bluesky.cli.options import VerboseOption, setup

__all__ = ["gate"]


def gate(
    scans: Annotated[int, typer.Option(help="Scans of the experiment.", min=8)] = 40,
    size: Annotated[int, typer.Option(help="Rows and columns of a frame.")] = 64,
    budget: Annotated[int, typer.Option(help="Frame-updates of a retraining.", min=100)] = 13_000,
    probe_scans: Annotated[int, typer.Option(help="Scans after which the policy looks again.", min=1)] = 1,
    after: Annotated[str, typer.Option(help="What the sample changes to: deeper (letters) or shapes.")] = "deeper",
    seed: Annotated[int, typer.Option(help="Of samples and photons.", min=0)] = 7,
    out: Annotated[Path | None, typer.Option(help="Folder to keep everything in; what was cut short goes on.")] = None,
    json: Annotated[Path | None, typer.Option("--json", help="File for the rows.")] = None,
    verbose: VerboseOption = False,
) -> None:
    """Compare the update policy with retraining on every scan, while sample, probe and dose change.

    Both begin with the model of eight scans before the experiment and learn with the same budget and corpus from the
    same simulated scans; at the end candidates with shuffled labels are offered to the gate, and the last promotion is
    taken back.

    Example: [cyan]ptycho-bluesky bench gate --out gate --json gate.json[/]
    """
    setup(verbose=verbose)
    import logging
    from dataclasses import replace

    from rich.console import Console

    from ptycho_bluesky.bench.gate import GateBench, run
    from ptycho_bluesky.bench.gate_scans import ScanOptions
    from ptycho_bluesky.bench.rows import print_table, write_report
    from ptycho_bluesky.errors import InputError

    if not verbose:
        logging.getLogger("ptycho_bluesky").setLevel(logging.WARNING)
    if after not in ("deeper", "shapes"):
        raise InputError(f"--after {after}", "it is deeper or shapes")
    usual = ScanOptions(seed=seed, after=after)
    # A shorter experiment changes at the same parts of its length.
    changes = {
        name: round(getattr(usual, name) * scans / usual.num_scans)
        for name in ("sample_change", "probe_drift", "dose_change")
    }
    options = GateBench(
        scans=replace(usual, size_px=size, num_scans=scans, **changes), frames_per_scan=budget, probe_scans=probe_scans
    )
    with Console(stderr=True).status("starting") as status:
        report = run(options, out, status.update)
    print_table(report.rows, "gate")
    if json is not None:
        write_report(json, "gate", report.rows, **report.extra)
