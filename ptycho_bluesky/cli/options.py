"""Options that several subcommands share."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler

from ptycho_bluesky.config import Settings, load_settings

__all__ = ["ConfigOption", "DataDirOption", "VerboseOption", "setup"]

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML configuration; also PTYCHO_BLUESKY_CONFIG.")
]
DataDirOption = Annotated[
    Path | None, typer.Option("--data-dir", help="Folder of raw files, journals, spools and models.")
]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Log debugging messages.")]


def setup(config: Path | None = None, verbose: bool = False, **flags: Any) -> Settings:
    """Load the settings, start logging to stderr and set the EPICS environment of this process.

    Parameters
    ----------
    config : path, optional
        YAML file.
    verbose : bool
        Log at DEBUG instead of INFO.
    **flags
        Settings that were given on the command line, dots written as two underscores (``edge__batch_size=4``).

    Returns
    -------
    Settings
    """
    logging.basicConfig(
        level=logging.INFO,
        format="%(message)s",
        handlers=[RichHandler(console=Console(stderr=True), show_path=False, rich_tracebacks=False)],
        force=True,
    )
    logging.getLogger("ptycho_bluesky").setLevel(logging.DEBUG if verbose else logging.INFO)
    logging.getLogger("simulated_iocs").setLevel(logging.DEBUG if verbose else logging.INFO)
    for noisy in ("httpx", "caproto", "numexpr", "ophyd", "bluesky"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    settings = load_settings(config, {key.replace("__", "."): value for key, value in flags.items()})
    settings.epics.apply()
    return settings
