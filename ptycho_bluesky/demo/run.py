"""Runs a demo from start to report."""

from __future__ import annotations

import os
import time
from pathlib import Path

from rich.console import Console

from ptycho_bluesky.bench.rows import print_table
from ptycho_bluesky.demo import recorded, report, simulated
from ptycho_bluesky.demo.display import Display
from ptycho_bluesky.demo.facility import Facility
from ptycho_bluesky.demo.options import DemoOptions
from ptycho_bluesky.demo.recorded import RecordedDemo
from ptycho_bluesky.demo.results import DemoResult, rows
from ptycho_bluesky.demo.simulated import SimulatedDemo
from ptycho_bluesky.errors import InputError

__all__ = ["run_demo"]


def run_demo(options: DemoOptions, console: Console) -> Path:
    """Run the demo and write its report.

    Parameters
    ----------
    options : DemoOptions
    console : Console
        Where progress is shown.

    Returns
    -------
    path
        The report's page.

    Raises
    ------
    InputError
        The report folder holds an earlier demo, or an option cannot be met.
    """
    _make_folder(options.out)
    begun = time.monotonic()
    display = Display(1, console)
    demo = RecordedDemo(options, display) if options.recorded else SimulatedDemo(options, display)
    display.set_steps(demo.steps)
    with display:
        display.step("starting")
        facility = demo.facility(live_plot=not options.headless and _has_screen())
        with facility:
            result = demo.run(facility)
            result.add_stage("total", time.monotonic() - begun)
            page = _report(options, result, facility)
            print_table(rows(result), result.title, console)
            if options.keep:
                _wait_for_interrupt(facility, console, page)
    return page


def _make_folder(folder: Path) -> None:
    if any((folder / name).exists() for name in ("report.json", "config.yml")):
        raise InputError(
            f"folder {folder} holds an earlier demo", "a report is never overwritten", "name another --out"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"folder {folder}: {error}", "the report needs a writable folder", "name another --out"
        ) from error


def _has_screen() -> bool:
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _report(options: DemoOptions, result: DemoResult, facility: Facility) -> Path:
    result.browse = (
        f"start it again with 'ptycho-bluesky tiled --config {facility.config_file}' and browse "
        f"{facility.settings.tiled.uri}"
    )
    text = recorded.summary(result) if options.recorded else simulated.summary(result)
    return report.write(result, options.out, simulated=options.recorded is None, summary=text)


def _wait_for_interrupt(facility: Facility, console: Console, page: Path) -> None:
    from ptycho_bluesky.workflow.server import web_address

    for name in ("worker", "edge", "writer", "ioc"):
        facility.processes.children[name].stop()
    console.print(f"Report: {page}\nBrowse {web_address(facility.settings)}; Ctrl-C ends.", highlight=False)
    try:
        while facility.processes.children["tiled"].alive:
            time.sleep(0.5)
    except KeyboardInterrupt:
        console.print("stopping Tiled")
