"""``ptycho-bluesky bench``: measurements of this machine, one subcommand each."""

from __future__ import annotations

from importlib import import_module

import typer

__all__ = ["BENCHES", "app"]

BENCHES: tuple[str, ...] = (
    "engines",
    "stitch",
    "live",
    "soak",
    "trust",
    "loader",
    "train",
    "learning",
    "reconstruct",
    "gate",
    "workflow",
)
"""Subcommands in the order of ``--help``; each is the function of that name in ``cli/bench_<name>.py``."""

app = typer.Typer(
    no_args_is_help=True,
    help="Measure this machine: frames per second, latency, image quality, each beside a baseline of the same run.\n\n"
    "Every subcommand prints a table and writes the same rows with [cyan]--json FILE[/].",
)
for _name in BENCHES:
    app.command(_name)(getattr(import_module(f"ptycho_bluesky.cli.bench_{_name}"), _name))
