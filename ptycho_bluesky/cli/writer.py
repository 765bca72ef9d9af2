"""``ptycho-bluesky writer``: journals into Tiled, and the document proxy."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ptycho_bluesky.cli.options import ConfigOption, DataDirOption, VerboseOption, setup

__all__ = ["command"]


def command(
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    proxy: Annotated[bool, typer.Option(help="Host the proxy between sessions and edges.")] = True,
    abandon_after_s: Annotated[
        float, typer.Option(min=1.0, help="Close a run without a stop document after this silence.")
    ] = 600.0,
    status: Annotated[
        bool, typer.Option("--status", help="Print the counters of the running writer and exit.")
    ] = False,
    verbose: VerboseOption = False,
) -> None:
    """Bring the documents of every scan into Tiled, and pass them on to the edges.

    Sessions journal their documents on disk; this follows the journals, so nothing is lost while it or Tiled is away:
    start it again and it catches up. Keep one running beside the session.

    Example: [cyan]ptycho-bluesky writer --data-dir ptycho_data[/]
    """
    settings = setup(config, verbose, data_dir=data_dir)
    if status:
        from ptycho_bluesky.workflow.status import show_writer

        show_writer(settings)
        return
    import contextlib

    from ptycho_bluesky.workflow.proxy import DocumentProxy
    from ptycho_bluesky.workflow.signals import stop_on_signals
    from ptycho_bluesky.workflow.writer import JournalWriter

    def ready() -> None:
        typer.echo(
            f"READY writer publish={settings.zmq.publish} subscribe={settings.zmq.subscribe} "
            f"journal={settings.journal_dir}"
        )
        sys.stdout.flush()

    with stop_on_signals() as stop, DocumentProxy(settings.zmq) if proxy else contextlib.nullcontext():
        JournalWriter(settings, abandon_after_s).run(stop, ready)
