"""Logging of a session that no command started."""

from __future__ import annotations

import logging

from rich.console import Console
from rich.logging import RichHandler

__all__ = ["to_terminal"]


def to_terminal(level: int = logging.INFO) -> None:
    """Show messages of ptycho_bluesky on the terminal's error stream; those of others from WARNING on."""
    handler = RichHandler(console=Console(stderr=True), show_path=False, rich_tracebacks=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler], force=True)
    logging.getLogger("ptycho_bluesky").setLevel(level)
