"""``ptycho-bluesky replay``: a finished run through the edge again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ptycho_bluesky.cli.options import ConfigOption, DataDirOption, VerboseOption, setup
from ptycho_bluesky.cli.scan_source import ModelOption, check_output, read_model

if TYPE_CHECKING:
    from ptycho_bluesky.config import Settings
    from ptycho_bluesky.streaming.core import RunResult

__all__ = ["command"]


def command(
    run: Annotated[str, typer.Argument(metavar="RUN|JOURNAL", help="Uid of a run, or the path of its journal.")],
    model: ModelOption = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Picture to draw (PNG).")] = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Play the documents of a finished run through the edge, frames from the detector's file, and print the account.

    Use it to see what another model makes of a scan, or to check that every frame of a run is accounted for: the exit
    code is 1 when a frame is lost or unaccounted for. The documents come from the session's journal, else from Tiled.

    Example: [cyan]ptycho-bluesky replay 3f2a9c1d --model model.onnx --out scan.png[/]
    """
    settings = setup(config, verbose, data_dir=data_dir)
    from rich.console import Console

    from ptycho_bluesky.inference import LoadedModel, load_model
    from ptycho_bluesky.streaming.closing import ClosingOptions
    from ptycho_bluesky.streaming.pictures import draw_mosaic
    from ptycho_bluesky.streaming.replay import replay_documents

    if out is not None:
        check_output(out)
    documents = _documents(run, settings)
    loaded: LoadedModel | None = None
    if model is not None:
        side = _frame_side(documents)
        loaded = load_model(
            read_model(model, settings),
            settings.edge.engine,
            num_threads=settings.edge.num_threads,
            precision=settings.edge.precision,
            image_shape=None if side is None else (side, side),
        )
    console = Console()
    with console.status("playing"):
        # a finished run's file grows no more: one that is not there will not come
        results = replay_documents(documents, loaded, closing=ClosingOptions(wait_s=2.0, grace_s=0.2))
    for result in results:
        console.print(_table(result))
        if out is not None:
            draw_mosaic(result.mosaic, out)
            typer.echo(out)
    if any(result.counts.lost or result.counts.unaccounted for result in results):
        raise typer.Exit(1)


def _documents(run: str, settings: Settings) -> list[tuple[str, dict[str, Any]]]:
    """Documents of a finished run, from a journal's path, by uid from the journals, or from Tiled."""
    from ptycho_bluesky.errors import InputError
    from ptycho_bluesky.workflow.journals import Journal
    from ptycho_bluesky.workflow.tiled_store import TiledStore

    paths = [Path(run)] if Path(run).is_file() else sorted(settings.journal_dir.glob(f"{run}*.jsonl"))
    if len(paths) > 1:
        raise InputError(f"run {run}", f"it names {len(paths)} runs", "give more of the uid")
    if paths:
        documents = [document for _, document in Journal(paths[0]).new_documents()]
    else:
        with TiledStore.connect(settings.tiled) as store:
            documents = [(str(name), dict(doc)) for name, doc in store.run(run).documents()]
    if not any(name == "stop" for name, _ in documents):
        raise InputError(f"run {run}", "it has not stopped", "wait for its end, or watch it with the edge")
    return documents


def _frame_side(documents: list[tuple[str, dict[str, Any]]]) -> int | None:
    shape = documents[0][1].get("ptycho", {}).get("frame_shape")
    return None if shape is None else min(int(size) for size in shape)


def _table(result: RunResult) -> Any:
    from rich.table import Table

    table = Table("count", "frames", title=f"run {result.mosaic.run_uid[:8]}")
    for name, value in result.counts.as_dict().items():
        table.add_row(name, str(value))
    for reason, value in result.metadata["rejected_by_reason"].items():
        table.add_row(f"rejected: {reason}", str(value))
    return table
