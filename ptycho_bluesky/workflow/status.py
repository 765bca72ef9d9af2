"""Tables for a person: what the writer and the worker are doing, and which models there are."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ptycho_bluesky.config import Settings
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.workflow.files import read_json
from ptycho_bluesky.workflow.run_state import read_stage, run_states

if TYPE_CHECKING:
    from ptycho_bluesky.workflow.model_store import TiledModelStore

__all__ = ["ago", "show_model", "show_models", "show_worker", "show_writer"]


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


COLOUR = {
    "promoted": "green",
    "switched": "green",
    "rejected": "yellow",
    "skipped": "dim",
    "cancelled": "dim",
    "failed": "red",
}
SHOWN_RUNS = 40


def show_worker(settings: Settings, console: Console | None = None) -> None:
    """Print what the worker has done, and is doing, with the newest runs, and every run that failed.

    Raises
    ------
    InputError
        None has run on this data directory.
    """
    console = console or Console()
    content: Mapping[str, Any] | None = read_json(settings.worker_dir / "status.json")
    if content is None:
        raise InputError(f"no worker has run on {settings.data_dir}", "", "start one with 'ptycho-bluesky worker'")
    states = list(run_states(settings))
    newest = {state.uid for state in states[-SHOWN_RUNS:]}
    shown = [state for state in states if state.uid in newest or not state.outcome or state.outcome == "failed"]
    title = "Worker" if len(shown) == len(states) else f"Worker: {len(shown)} of {len(states)} runs"
    table = _table(title, ("scan", "run", "purpose", "stage", "seconds", "SSIM\nlive", "model", "updated"))
    for state in shown:
        stage = read_stage(settings, state.uid) or ""
        ssim = state.figures.get("ssim_serving")
        table.add_row(
            "" if state.scan_id is None else str(state.scan_id),
            state.uid[:8],
            state.purpose,
            f"[{COLOUR.get(stage, 'cyan')}]{stage}[/]",
            f"{sum(state.stage_seconds.values()):.0f}",
            "" if ssim is None else f"{ssim:.3f}",
            state.model_id[:8],
            ago(state.updated_s),
        )
    console.print(table)
    _print_reasons(console, {state.uid[:8]: state.reason for state in shown})
    if failed := [state.uid[:8] for state in states if state.outcome == "failed"]:
        console.print(
            f"[red]{len(failed)} runs could not be worked on[/]; after the cause is removed: "
            f"ptycho-bluesky worker --retry {failed[-1]}",
            highlight=False,
        )
    waiting, unpublished = content["waiting"], content["unpublished"]
    tiled = "answers" if content["tiled_reachable"] else "[red]does not answer[/]"
    console.print(
        f"Tiled {tiled}; {len(waiting)} runs wait, results of {len(unpublished)} are not yet in Tiled; "
        f"last change {ago(content['time_s'])}",
        highlight=False,
    )


def _table(title: str, names: tuple[str, ...]) -> Table:
    """Table for a terminal of 80 columns: a stage is the longest entry, and alone may take a second line."""
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in names:
        table.add_column(name, overflow="fold", no_wrap=name != "stage")
    return table


def _print_reasons(console: Console, reasons: Mapping[str, str]) -> None:
    """Print sentences below a table, where they have the width of the terminal and stay one line when piped on."""
    for name, reason in reasons.items():
        if line := " ".join(reason.split()):
            console.print(f"{name} {escape(line)}", highlight=False, soft_wrap=True)


def show_models(models: TiledModelStore, console: Console | None = None) -> None:
    """Print the registry, oldest model first."""
    console = console or Console()
    serving = models.serving()
    table = _table("Models", ("model", "parent", "stage", "runs", "frames", "pixel", "score", "made"))
    records, reasons = models.metadata(), dict[str, str]()
    for record in models.records():
        log = records[record.model_id].get("stage_log") or [{}]
        score = record.validation.get("score")
        pixel = record.pixel_size_m
        mark = " [bold green]serves[/]" if serving and record.model_id == serving.model_id else ""
        table.add_row(
            record.model_id[:12],
            record.parent_id[:12] or "—",
            f"{record.stage}{mark}",
            str(len(record.training_runs)),
            "×".join(map(str, record.image_shape)),
            "unknown" if math.isnan(pixel) else f"{pixel * 1e9:.2f} nm",
            "" if score is None else f"{score:.3f}",
            ago(record.created_s),
        )
        reasons[record.model_id[:12]] = str(log[-1].get("reason", ""))
    console.print(table)
    _print_reasons(console, reasons)


def show_model(models: TiledModelStore, model_id: str, console: Console | None = None) -> None:
    """Print all that is known of one model.

    Raises
    ------
    InputError
        There is no such model.
    """
    metadata = models.describe(model_id)
    (console or Console()).print_json(data=metadata)
