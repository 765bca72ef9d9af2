"""``ptycho-bluesky edge``: live inference beside the detector."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ptycho_bluesky.cli.options import ConfigOption, DataDirOption, VerboseOption, setup
from ptycho_bluesky.errors import InputError

__all__ = ["command"]


def command(
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    engine: Annotated[str | None, typer.Option(help="auto, torch or onnxruntime.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Frames that the network reads at once.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the network.")] = None,
    prefix: Annotated[str | None, typer.Option(help="Of the process variables that the edge serves.")] = None,
    models: Annotated[
        Path | None, typer.Option(help="Take models from this local registry instead of Tiled.", file_okay=False)
    ] = None,
    modulo: Annotated[
        str | None, typer.Option(help="K/N: read only every N-th frame, from the K-th (0 to N−1), beside other edges.")
    ] = None,
    tiled: Annotated[bool, typer.Option(help="Write results to Tiled; else they stay in DATA_DIR/edge.")] = True,
    verbose: VerboseOption = False,
) -> None:
    """Read and stitch the frames of every scan while it runs.

    Frames come over pvAccess, documents over 0MQ, models from the registry: a better one is swapped in between two
    batches. What the stream missed is read back from the detector's file when the scan has ended. Start it at any
    time, also half-way through a scan; runs that ended without it are caught up. The mosaic is on pvAccess
    (PREFIX + Mosaic:Image, with every counter) and in Tiled (results/RUN/live).

    Several edges share one stream with [cyan]--modulo 0/2[/], [cyan]--modulo 1/2[/] and a prefix of their own each;
    [cyan]ptycho-bluesky merge[/] puts their mosaics together.

    Example: [cyan]ptycho-bluesky edge --data-dir ptycho_data[/]
    """
    settings = setup(
        config,
        verbose,
        data_dir=data_dir,
        edge__engine=engine,
        edge__batch_size=batch_size,
        edge__num_threads=threads,
        edge__prefix=prefix,
        **_share(modulo),
    )
    from ptycho_bluesky.callbacks.edge_service import EdgeService
    from ptycho_bluesky.workflow.signals import stop_on_signals

    source = None
    if models is not None:
        from ptycho_bluesky.training.registry import LocalModelStore

        source = LocalModelStore(models)
    with stop_on_signals() as stop:
        service = EdgeService(settings, tiled=tiled, models=source)
        try:
            service.start()
            typer.echo(
                f"READY edge prefix={settings.edge.prefix} documents={settings.zmq.subscribe} "
                f"model={service.slot.model_id[:12] or 'none'}"
            )
            sys.stdout.flush()
            stop.wait()
        finally:
            service.close()


def _share(modulo: str | None) -> dict[str, int]:
    """Settings of ``K/N``."""
    if modulo is None:
        return {}
    index, _, count = modulo.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise InputError(f"--modulo {modulo}", "it is K/N with K from 0 to N−1", "e.g. --modulo 0/2")
    return {"edge__share_index": int(index), "edge__share_count": int(count)}
