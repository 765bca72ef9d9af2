"""``ptycho-bluesky worker``: finished runs into better models."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from ptycho_bluesky.cli.options import ConfigOption, DataDirOption, VerboseOption, setup

if TYPE_CHECKING:
    from ptycho_bluesky.config import Settings

__all__ = ["command"]

UID_LENGTH = 36


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
        _cancel(settings, cancel)
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


def _cancel(settings: Settings, uid: str) -> None:
    """Ask for a run to be given up, unless it can be told that there is none of that uid.

    Raises
    ------
    InputError
        Neither the worker nor Tiled knows the run, or as of `ptycho_bluesky.workflow.requests.ask_cancel`.
    """
    from ptycho_bluesky.errors import InputError, UnreachableError
    from ptycho_bluesky.workflow.files import read_json
    from ptycho_bluesky.workflow.requests import ask_cancel
    from ptycho_bluesky.workflow.run_state import run_states
    from ptycho_bluesky.workflow.tiled_store import TiledStore

    told = "will be given up"
    waiting = read_json(settings.worker_dir / "status.json", {}).get("waiting", [])
    taken_up = any(state.uid.startswith(uid) for state in run_states(settings))
    # What is shorter than a uid is of a run that was taken up, or refused.
    if uid not in waiting and not taken_up and len(uid) >= UID_LENGTH:
        try:
            with TiledStore.connect(settings.tiled) as store:
                known = store.summary(uid) is not None
        except UnreachableError:
            told = "is not known to the worker, and Tiled does not answer; it will be given up if there is such a run"
        else:
            if not known:
                raise InputError(
                    f"run {uid!r}",
                    "neither the worker nor Tiled knows a run of this uid",
                    "see 'ptycho-bluesky worker --status', or wait until the writer has brought it to Tiled",
                )
    typer.echo(f"run {ask_cancel(settings, uid)} {told}")
