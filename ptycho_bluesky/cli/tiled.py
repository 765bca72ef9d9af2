"""``ptycho-bluesky tiled``: the embedded data service."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from ptycho_bluesky.cli.options import ConfigOption, DataDirOption, VerboseOption, setup

__all__ = ["command"]


def command(
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    uri: Annotated[str | None, typer.Option(help="Address to serve at, e.g. http://127.0.0.1:8000.")] = None,
    readable: Annotated[
        list[Path] | None, typer.Option(help="Further folder with detector files; may be given several times.")
    ] = None,
    verbose: VerboseOption = False,
) -> None:
    """Serve runs, live images, labels and models from a folder on this machine.

    Beamlines that have a Tiled server of their own set [bold]tiled.uri[/] to it instead and never start this one.

    Example: [cyan]ptycho-bluesky tiled --data-dir ptycho_data[/], then open the address that it prints in a browser.
    """
    settings = setup(config, verbose, data_dir=data_dir, tiled__uri=uri)
    for noisy in ("alembic", "tiled", "uvicorn"):
        logging.getLogger(noisy).setLevel(logging.DEBUG if verbose else logging.WARNING)
    from rich.console import Console

    from ptycho_bluesky.workflow.server import serve, web_address

    def ready() -> None:
        Console(stderr=True).print(f"Browse at {web_address(settings)}", highlight=False)
        typer.echo(f"READY tiled uri={settings.tiled.uri} dir={settings.tiled_dir}")
        sys.stdout.flush()

    serve(settings, readable or [], ready)
