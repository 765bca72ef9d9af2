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
    from ptycho_bluesky.records import LabelSet
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
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    seed: Annotated[int | None, typer.Option(help="Of the first weights and the order of the frames.")] = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Train a network on pairs of diffraction frames and labels.

    Labels come from finished reconstructions: the worker writes one file a run. Training spends a fixed number of
    frame-updates for each scan that its parent has not seen, and goes over all scans while doing so. Ctrl-C keeps a
    checkpoint beside the model file; the same command then goes on from it.

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
        train__seed=seed,
    )
    from ptycho_bluesky.training.options import TrainOptions

    start = _read_parent(parent)
    changes = {"epochs": epochs, "augment": augment, "device": device}
    if start is not None and architecture is None:
        changes["architecture"] = _architecture(start)
    options = TrainOptions.from_settings(settings.train, **changes)
    label_sets, validation = _read_labels(labels or [settings.corpus_dir], validate)
    console = Console(stderr=True)
    result = _train(label_sets, validation, options, start, out, console)
    _write(out, result.content)
    checkpoints = _checkpoints(out)
    if checkpoints.is_dir() and not any(checkpoints.iterdir()):
        checkpoints.rmdir()
    _report(result, console)
    typer.echo(f"{out} {result.record.model_id}")


def _read_labels(paths: list[Path], validate: Path | None) -> tuple[list[LabelSet], LabelSet | None]:
    from ptycho_bluesky.errors import InputError
    from ptycho_bluesky.training.corpus import read_label_set

    label_sets = [read_label_set(path) for path in _label_files(paths)]
    validation = read_label_set(validate) if validate else None
    if validation is not None and validation.run_uid in {each.run_uid for each in label_sets}:
        raise InputError(f"run {validation.run_uid}", "a run that is trained on cannot validate", "name another run")
    return label_sets, validation


def _read_parent(path: Path | None) -> bytes | None:
    from ptycho_bluesky.errors import InputError

    try:
        return path.read_bytes() if path else None
    except OSError as error:
        raise InputError(f"model {path}: {error}", "the file must be readable") from error


def _architecture(parent: bytes) -> str:
    from ptycho_bluesky.models.export import read_manifest

    return str(read_manifest(parent).get("architecture", ""))


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
    label_sets: list[LabelSet],
    validation: LabelSet | None,
    options: TrainOptions,
    parent: bytes | None,
    out: Path,
    console: Console,
) -> TrainResult:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ptycho_bluesky.training.trainer import TrainingStoppedError, train

    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar, _stop_signals() as stopping:
        task = bar.add_task("training", total=None, loss="")

        def show(done: int, total: int, loss: float) -> None:
            bar.update(task, completed=done, total=total, loss=f"{loss:.4f} rad")

        try:
            return train(
                label_sets,
                options,
                parent=parent,
                validation=validation,
                progress=show,
                checkpoint_dir=_checkpoints(out),
                should_stop=lambda: bool(stopping),
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


def _label_files(paths: list[Path]) -> list[Path]:
    from ptycho_bluesky.errors import InputError
    from ptycho_bluesky.training.corpus import Corpus

    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += Corpus(path).files()
        elif path.is_file():
            files.append(path)
    if not files:
        raise InputError(
            f"no label sets in {', '.join(map(str, paths))}", "training needs at least one", "reconstruct a run first"
        )
    return files


def _write(path: Path, content: bytes) -> None:
    from ptycho_bluesky.errors import StorageError

    try:
        path.write_bytes(content)
    except OSError as error:
        raise StorageError(f"model {path}: {error}", "free space or name another file") from error
