"""``ptycho-bluesky train``: train a network on labels from files."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ptycho_bluesky.cli.options import ConfigOption, DataDirOption, VerboseOption, setup

if TYPE_CHECKING:
    from ptycho_bluesky.cli.training_data import TrainData
    from ptycho_bluesky.training.distributed import Ranks
    from ptycho_bluesky.training.options import TrainOptions
    from ptycho_bluesky.training.trainer import TrainResult

__all__ = ["command"]


def command(
    labels: Annotated[
        list[Path] | None,
        typer.Argument(help="Label-set files (.h5), or folders of them; the corpus of the configuration by default."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Model file to write (ONNX).")] = Path("model.onnx"),
    parent: Annotated[Path | None, typer.Option(help="Model file to start from; its runs are rehearsed.")] = None,
    validate: Annotated[
        Path | None,
        typer.Option(help="Label-set file of a run that is not trained on, for the figures."),
    ] = None,
    architecture: Annotated[
        str | None,
        typer.Option(help="ptychonn2 (phase), ptychonn (phase and amplitude), lean8 … lean32 (the centre, fast)."),
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="default or published.")] = None,
    frames_per_scan: Annotated[
        int | None, typer.Option(help="Budget: frame-updates spent for each scan that is new to the parent.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Frames in an optimiser step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Learning rate of the default recipe.")] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the corpus, of the published recipe.")] = 50,
    augment: Annotated[str, typer.Option(help="auto, on or off: turned and mirrored frames.")] = "auto",
    split: Annotated[
        str,
        typer.Option(
            help="Without --validate, what is kept out of the training: nothing (none), a fifth of the scans (scan), "
            "or an area of the newest (area)."
        ),
    ] = "none",
    buffer_frames: Annotated[
        int | None, typer.Option(help="Read the corpus from disk, this many frames in memory; 0 holds all of it.")
    ] = None,
    rehearsal_frames: Annotated[
        int | None, typer.Option(help="Frames of old runs to train on; 0 takes all of them.")
    ] = None,
    log_dir: Annotated[Path | None, typer.Option(help="Folder for curve.csv and TensorBoard's files.")] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other option of the trainer (docs: training)."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    seed: Annotated[int | None, typer.Option(help="Of the first weights and the order of the frames.")] = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Train a network on pairs of diffraction frames and labels.

    Labels come from finished reconstructions: the worker writes one file a run. Training spends a fixed number of
    frame-updates for each scan that its parent has not seen, and goes over all scans while doing so. Ctrl-C keeps a
    checkpoint beside the model file; the same command then goes on from it. Started by torchrun, its processes train
    one model together.

    Example: [cyan]ptycho-bluesky train ptycho_data/corpus --validate reserved.h5 --out model.onnx[/]
    """
    settings = setup(
        config,
        verbose,
        data_dir=data_dir,
        train__architecture=architecture,
        train__recipe=recipe,
        train__frames_per_scan=frames_per_scan,
        train__batch_size=batch_size,
        train__learning_rate=learning_rate,
        train__rehearsal_frames=rehearsal_frames,
        train__buffer_frames=buffer_frames,
        train__seed=seed,
    )
    from ptycho_bluesky.cli.training_data import read_data, read_parent
    from ptycho_bluesky.training.distributed import Ranks
    from ptycho_bluesky.training.options import TrainOptions

    start = None if parent is None else read_parent(parent)
    changes: dict[str, object] = {
        "epochs": epochs,
        "augment": augment,
        "device": device,
        **_key_values(options or []),
    }
    if start is not None and architecture is None:
        changes["architecture"] = start.architecture
    chosen = TrainOptions.from_settings(settings.train, **changes)
    ranks = Ranks.from_environment(device)
    try:
        if ranks.first:
            _check_out(out)
        data = read_data(labels or [settings.corpus_dir], validate, split, start)
        if isinstance(data.corpus, list) and buffer_frames is None and "buffer_frames" not in changes:
            chosen = chosen.model_copy(update={"buffer_frames": 0})  # what is configured is for a corpus
        console = Console(stderr=True, quiet=not ranks.first)
        content = None if start is None else start.content
        result = _train(data, chosen, content, out, log_dir, ranks, console)
        if ranks.first:
            _finish(result, out, console)
    except BaseException:
        ranks.close(failed=True)
        raise
    ranks.close()


def _finish(result: TrainResult, out: Path, console: Console) -> None:
    """Leave no empty folder of checkpoints, and say what was done."""
    checkpoints = _checkpoints(out)
    if checkpoints.is_dir() and not any(checkpoints.iterdir()):
        checkpoints.rmdir()
    _report(result, console)
    typer.echo(f"{out} {result.record.model_id}")


def _key_values(stated: list[str]) -> dict[str, object]:
    """Values of ``KEY=VALUE``, each read as YAML."""
    import yaml

    from ptycho_bluesky.errors import InputError

    found: dict[str, object] = {}
    for each in stated:
        key, equals, value = each.partition("=")
        if not equals or not key:
            raise InputError(f"--set {each}", "it names a key and a value", "write KEY=VALUE")
        found[key] = yaml.safe_load(value)
    return found


def _check_out(out: Path) -> None:
    """Fail before the training rather than after it."""
    from ptycho_bluesky.cli.scan_source import check_output
    from ptycho_bluesky.errors import InputError

    check_output(out)
    if out.exists() and not out.is_file():
        raise InputError(f"--out {out}", "the model is written to a file", "name a file, such as model.onnx")


def _checkpoints(out: Path) -> Path:
    return out.with_name(f"{out.name}.checkpoint")


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM: the checkpoint is written between two steps, and a second Ctrl-C cannot cut it."""
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda which, _: received.append(which))
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _train(
    data: TrainData,
    options: TrainOptions,
    parent: bytes | None,
    out: Path,
    log_dir: Path | None,
    ranks: Ranks,
    console: Console,
) -> TrainResult:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ptycho_bluesky.training.trainer import TrainingStoppedError, train
    from ptycho_bluesky.workflow.files import write_bytes

    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar, _stop_signals() as stopping:
        task = bar.add_task("training", total=None, loss="")

        def show(done: int, total: int, loss: float) -> None:
            bar.update(task, completed=done, total=total, loss=f"{loss:.4f} rad")

        try:
            return train(
                data.corpus,
                options,
                runs=data.runs,
                parent=parent,
                validation=data.validation,
                progress=show,
                checkpoint_dir=_checkpoints(out),
                log_dir=log_dir,
                should_stop=lambda: bool(stopping),
                ranks=ranks,
                # whole or not at all: a model of this name may be in use
                write=lambda result: write_bytes(out, result.content),
            )
        except TrainingStoppedError as error:
            console.print(f"{error}; the same command goes on from there", highlight=False)
            raise typer.Exit(130) from error


def _report(result: TrainResult, console: Console) -> None:
    rate = result.frame_updates / max(result.seconds, 1e-9)
    console.print(
        f"{result.frame_updates} frame-updates in {result.seconds:.0f} s ({rate:.0f}/s), last loss "
        f"{result.curve['loss_rad'][-1]:.4f} rad",
        highlight=False,
    )
    for name, value in result.figures.items():
        console.print(f"  {name}: {value:.4g}", highlight=False)
