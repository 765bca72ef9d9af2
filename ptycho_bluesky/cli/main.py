"""Entry point of ``ptycho-bluesky``: one module a subcommand."""

from __future__ import annotations

import sys
from importlib import import_module

import typer
from rich.console import Console

from ptycho_bluesky._version import __version__
from ptycho_bluesky.errors import InputError

__all__ = ["main"]

COMMANDS: tuple[str, ...] = (
    "demo",
    "ioc",
    "tiled",
    "writer",
    "edge",
    "merge",
    "worker",
    "session",
    "calibrate",
    "reconstruct",
    "infer",
    "train",
    "replay",
    "models",
    "bench",
)
"""Subcommands in the order of ``--help``; each is the function ``command`` of the module of that name beside this."""


def _version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit


def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Live ptychographic imaging for Bluesky beamlines: see the picture while the scan runs."""


def build_app() -> typer.Typer:
    """Assemble the application from the modules named in `COMMANDS`."""
    app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")
    app.callback()(_root)
    for name in COMMANDS:
        module = import_module(f"ptycho_bluesky.cli.{name.replace('-', '_')}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name)
        else:
            app.command(name=name)(module.command)
    return app


def main() -> None:
    """Run the command line; errors of input end with their message and exit code 2, not with a traceback."""
    try:
        build_app()()
    except InputError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {error}", highlight=False)
        sys.exit(2)


if __name__ == "__main__":
    main()
