"""``ptycho-bluesky worker``: finished runs into better models."""

from __future__ import annotations

import contextlib
import sys
from typing import Annotated

import typer

from ptycho_bluesky.cli.options import ConfigOption, DataDirOption, VerboseOption, setup

__all__ = ["command"]


def command(
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    executor: Annotated[
        str | None, typer.Option(help="Where stages are computed: processes, inline, dask, parsl or globus.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Work on what is there, then exit.")] = False,
    status: Annotated[bool, typer.Option("--status", help="Print what the worker is doing with each run.")] = False,
    retry: Annotated[
        str | None, typer.Option(metavar="RUN", help="Let the worker take a failed run up again, and exit.")
    ] = None,
    cancel: Annotated[str | None, typer.Option(metavar="RUN", help="Have a run given up, and exit.")] = None,
    verbose: VerboseOption = False,
) -> None:
    """Reconstruct every finished run, learn from it, and promote the model if it is better.

    Run it where the computing power is; it needs nothing but Tiled. It may be stopped or killed at any time and goes
    on where it was. Runs with purpose 'reserved' or 'test' are reconstructed and never learned from.

    Example: [cyan]ptycho-bluesky worker --data-dir ptycho_data[/], and meanwhile [cyan]ptycho-bluesky worker
    --status[/]
    """
    settings = setup(config, verbose, data_dir=data_dir, worker__executor=executor)
    if status:
        from ptycho_bluesky.workflow.status import show_worker

        show_worker(settings)
        return
    if retry:
        from ptycho_bluesky.workflow.requests import ask_retry

        typer.echo(f"run {ask_retry(settings, retry)} will be taken up again")
        return
    if cancel:
        from ptycho_bluesky.workflow.requests import ask_cancel

        typer.echo(f"run {ask_cancel(settings, cancel)} will be given up")
        return
    from ptycho_bluesky.workflow.signals import stop_on_signals
    from ptycho_bluesky.workflow.worker import Worker

    def ready() -> None:
        typer.echo(f"READY worker tiled={settings.tiled.uri} executor={settings.worker.executor}")
        sys.stdout.flush()

    with stop_on_signals() as stop, contextlib.ExitStack() as stack:
        listener = None
        if settings.worker.serve_pvs:
            from ptycho_bluesky.workflow.status_pvs import StatusServer

            listener = StatusServer(settings.worker.prefix)
            stack.callback(listener.close)
        Worker(settings, listener=listener).run(stop, ready, once=once)
