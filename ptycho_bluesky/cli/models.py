"""``ptycho-bluesky models``: the registry."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ptycho_bluesky.cli.options import ConfigOption, DataDirOption, setup

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


def _move(model: str, stage: str, reason: str, config: Path | None, data_dir: Path | None) -> None:
    settings = setup(config, data_dir=data_dir)
    from ptycho_bluesky.records import ModelStage
    from ptycho_bluesky.workflow.tiled_store import TiledStore

    with TiledStore.connect(settings.tiled) as store:
        record = store.model_store.set_stage(model, ModelStage(stage), reason)
        serving = store.model_store.serving()
    typer.echo(f"{record.model_id} is {record.stage}; serving: {serving.model_id if serving else 'none'}")


@app.command("promote")
def promote(
    model: ModelArgument,
    reason: ReasonOption = "promoted by hand",
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Make a model serve.

    Example: [cyan]ptycho-bluesky models promote 3fa9c1 --reason "same sample as in March"[/]
    """
    _move(model, "promoted", reason, config, data_dir)


@app.command("reject")
def reject(
    model: ModelArgument,
    reason: ReasonOption = "rejected by hand",
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Take a model out of service; the one promoted before it serves again.

    Example: [cyan]ptycho-bluesky models reject 3fa9c1 --reason "stripes"[/]
    """
    _move(model, "rejected", reason, config, data_dir)


@app.command("rollback")
def rollback(
    reason: ReasonOption = "rolled back by hand", config: ConfigOption = None, data_dir: DataDirOption = None
) -> None:
    """Go back to the model that served before the present one, which is retired.

    Example: [cyan]ptycho-bluesky models rollback[/]
    """
    settings = setup(config, data_dir=data_dir)
    from ptycho_bluesky.workflow.tiled_store import TiledStore

    with TiledStore.connect(settings.tiled) as store:
        retired, serving = store.model_store.rollback(reason)
    typer.echo(f"{retired.model_id} is retired; serving: {serving.model_id if serving else 'none'}")


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
    from ptycho_bluesky.workflow.files import write_bytes
    from ptycho_bluesky.workflow.tiled_store import TiledStore

    with TiledStore.connect(settings.tiled) as store:
        record, content = store.model_store.get(model)
    write_bytes(out, content)
    typer.echo(f"{out} {record.model_id}")
