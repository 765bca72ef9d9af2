"""Tables for a person: what the writer and the worker are doing, and which models there are."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from ptycho_bluesky.config import Settings
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.workflow.files import read_json

__all__ = ["ago", "show_writer"]


def ago(time_s: float | None) -> str:
    """How long ago a time was, in words."""
    if not time_s:
        return "—"
    seconds = max(0.0, time.time() - time_s)
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def show_writer(settings: Settings, console: Console | None = None) -> None:
    """Print the counters that the document writer left last.

    Raises
    ------
    InputError
        None has run on this data directory.
    """
    from ptycho_bluesky.workflow.writer import status_path

    content: Mapping[str, Any] | None = read_json(status_path(settings))
    if content is None:
        raise InputError(f"no writer has run on {settings.data_dir}", "", "start one with 'ptycho-bluesky writer'")
    table = Table(title="Document writer", show_header=False)
    for name, value in content.items():
        if name not in ("failures", "time_s"):
            table.add_row(name.replace("_", " "), str(value))
    table.add_row("last change", ago(content.get("time_s")))
    for uid, reason in content.get("failures", {}).items():
        table.add_row(f"[red]run {uid}[/]", reason)
    (console or Console()).print(table)
