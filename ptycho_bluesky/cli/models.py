"""``ptycho-bluesky models``: the registry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ptycho_bluesky.cli.options import ConfigOption, DataDirOption, setup

if TYPE_CHECKING:
    from ptycho_bluesky.records import ModelRecord

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="List, inspect and move models: which one reads the next scan.\n\n"
    "A model is named by the hash of its content; its first six characters are enough. The model promoted last serves; "
    "edges swap to it within seconds.",
)

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Id of the model, or its first characters.")]
ReasonOption = Annotated[str, typer.Option("--reason", "-r", help="Why; kept in the model's log.")]


@app.command("list")
def list_models(config: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """List every model, oldest first, with what it scored on frames that it had not seen.

    Example: [cyan]ptycho-bluesky models list[/]
    """
    settings = setup(config, data_dir=data_dir)
    from ptycho_bluesky.workflow.status import show_models
    from ptycho_bluesky.workflow.tiled_store import TiledStore

    with TiledStore.connect(settings.tiled) as store:
        show_models(store.model_store)


@app.command("show")
def show(model: ModelArgument, config: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """Show all that is known of a model, and the log of its stages.

    Example: [cyan]ptycho-bluesky models show 3fa9c1[/]
    """
    settings = setup(config, data_dir=data_dir)
    from ptycho_bluesky.workflow.status import show_model
    from ptycho_bluesky.workflow.tiled_store import TiledStore

    with TiledStore.connect(settings.tiled) as store:
        show_model(store.model_store, model)


@app.command("promote")
def promote(
    model: ModelArgument,
    reason: ReasonOption = "promoted by hand",
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Make a model serve its regime; the one that served it is retired.

    Example: [cyan]ptycho-bluesky models promote 3fa9c1 --reason "same sample as in March"[/]
    """
    settings = setup(config, data_dir=data_dir)
    from ptycho_bluesky.workflow.tiled_store import TiledStore

    with TiledStore.connect(settings.tiled) as store:
        record = store.model_store.promote(model, reason)
        _tell(record, store.model_store.serving())


@app.command("reject")
def reject(
    model: ModelArgument,
    reason: ReasonOption = "rejected by hand",
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Take a model out of service; the one promoted before it serves again.

    Where no such model is left, none serves its regime.

    Example: [cyan]ptycho-bluesky models reject 3fa9c1 --reason "stripes"[/]
    """
    settings = setup(config, data_dir=data_dir)
    from ptycho_bluesky.workflow.tiled_store import TiledStore

    with TiledStore.connect(settings.tiled) as store:
        _tell(*store.model_store.reject(model, reason))


@app.command("rollback")
def rollback(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="The serving model to go back from, where several serve a regime each."),
    ] = None,
    reason: ReasonOption = "rolled back by hand",
    force: Annotated[bool, typer.Option("--force", help="Even if no model is left that it succeeded.")] = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Go back to the model that served before the present one, which is retired.

    Example: [cyan]ptycho-bluesky models rollback[/]
    """
    settings = setup(config, data_dir=data_dir)
    from ptycho_bluesky.workflow.tiled_store import TiledStore

    with TiledStore.connect(settings.tiled) as store:
        _tell(*store.model_store.rollback(reason, model_id=model, force=force))


def _tell(record: ModelRecord, serving: ModelRecord | None) -> None:
    typer.echo(f"{record.model_id} is {record.stage}; serving: {serving.model_id if serving else 'none'}")


@app.command("export")
def export(
    model: ModelArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write (ONNX).")],
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Write a model to a file, checked against its hash.

    Example: [cyan]ptycho-bluesky models export 3fa9c1 --out model.onnx[/]
    """
    settings = setup(config, data_dir=data_dir)
    from ptycho_bluesky.cli.scan_source import check_output
    from ptycho_bluesky.workflow.files import write_bytes
    from ptycho_bluesky.workflow.tiled_store import TiledStore

    check_output(out)
    with TiledStore.connect(settings.tiled) as store:
        record, content = store.model_store.get(model)
    write_bytes(out, content)
    typer.echo(f"{out} {record.model_id}")


@app.command("collect")
def collect(
    keep: Annotated[int, typer.Option(min=0, help="Retired and rejected models kept of each regime.")] = 3,
    days: Annotated[float, typer.Option(min=0, help="Nothing younger is touched.")] = 1.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Remove the files of models that nobody will ask for again; their records stay.

    Kept are promoted models, their parents, and the newest retired and rejected ones of each regime.

    Example: [cyan]ptycho-bluesky models collect --keep 3 --days 7[/]
    """
    settings = setup(config, data_dir=data_dir)
    from ptycho_bluesky.training.registry import collect_garbage, superfluous
    from ptycho_bluesky.workflow.tiled_store import TiledStore

    with TiledStore.connect(settings.tiled) as store:
        find = superfluous if dry_run else collect_garbage
        found = find(store.model_store, keep=keep, min_age_s=days * 86_400.0)
    for record in found:
        typer.echo(f"{record.model_id} {record.stage}")
    typer.echo(f"{len(found)} models {'would be' if dry_run else 'were'} removed")


@app.command("suggest")
def suggest(
    source: Annotated[str, typer.Argument(metavar="FILE|RUN", help="First scan of the experiment, as far as it is.")],
    frames: Annotated[int, typer.Option(min=8, help="Frames of it that are looked at.")] = 200,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Rank earlier models as starting points for a new experiment, beside starting from scratch.

    The first frames are compared with those of the corpus that each model was trained on: geometry, mean pattern (the
    probe) and how frames differ from it (the sample).

    Example: [cyan]ptycho-bluesky models suggest scan.h5[/], then [cyan]ptycho-bluesky models promote MODEL[/]
    """
    settings = setup(config, data_dir=data_dir)
    from ptycho_bluesky.cli.scan_source import read_scan
    from ptycho_bluesky.workflow.suggesting import show_suggestions, suggest_models
    from ptycho_bluesky.workflow.tiled_store import TiledStore

    unstated: dict[str, float | None] = dict.fromkeys(("energy_eV", "distance_m", "detector_pixel_m", "object_pixel_m"))
    measured = read_scan(source, settings, unstated, frames)
    with TiledStore.connect(settings.tiled) as store:
        show_suggestions(suggest_models(settings, store.model_store, measured))
