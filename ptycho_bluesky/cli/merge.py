"""``ptycho-bluesky merge``: one mosaic of the shares of several edges."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ptycho_bluesky.cli.options import ConfigOption, DataDirOption, VerboseOption, setup

__all__ = ["command"]


def command(
    run: Annotated[str, typer.Argument(help="Uid of the run, or its beginning.")],
    edges: Annotated[int, typer.Option(help="How many edges shared the stream.", min=1)] = 2,
    out: Annotated[Path | None, typer.Option(help="Picture (PNG) of the merged mosaic.", dir_okay=False)] = None,
    tiled: Annotated[bool, typer.Option(help="Write it to Tiled (results/RUN/live) as well.")] = True,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Put the mosaics of edges that shared a stream together, as if one edge had read every frame.

    Each edge ([cyan]ptycho-bluesky edge --modulo K/N[/]) leaves its result in DATA_DIR/edge/share-K-of-N. The merged
    one lies in DATA_DIR/edge/RUN.npz.

    Example: [cyan]ptycho-bluesky merge 3f2a --edges 2 --out merged.png[/]
    """
    settings = setup(config, verbose, data_dir=data_dir)
    from ptycho_bluesky.errors import InputError
    from ptycho_bluesky.streaming.merging import merge_results, share_dir
    from ptycho_bluesky.streaming.pictures import draw_mosaic
    from ptycho_bluesky.streaming.spool import Spool

    spools = [Spool(share_dir(settings.edge_dir, (k, edges))) for k in range(edges)]
    found = {uid for spool in spools for uid in spool.uids() if uid.startswith(run)}
    if len(found) != 1:
        raise InputError(f"run {run}", f"{len(found)} runs of {edges} edges begin so", f"look into {settings.edge_dir}")
    uid = found.pop()
    merged = merge_results([spool.read(uid) for spool in spools])
    path = Spool(settings.edge_dir).write(merged)
    if out is not None:
        draw_mosaic(merged.mosaic, out)
    if tiled:
        from ptycho_bluesky.workflow.tiled_store import TiledStore

        with TiledStore.connect(settings.tiled) as store:
            store.write_mosaic(
                merged.mosaic,
                merged.counts,
                complete=merged.complete,
                geometry=merged.geometry,
                metadata=merged.metadata,
            )
    counts = merged.counts
    typer.echo(
        f"{path}: {counts.generated} generated, {counts.inferred} inferred, {counts.recovered} recovered, "
        f"{counts.rejected} rejected, {counts.lost} lost"
    )
