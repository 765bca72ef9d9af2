"""``ptycho-bluesky reconstruct``: a finished scan to object and probe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ptycho_bluesky.cli.options import ConfigOption, DataDirOption, VerboseOption, setup
from ptycho_bluesky.cli.scan_source import (
    CalibrationOption,
    DetectorPixelOption,
    DistanceOption,
    EnergyOption,
    LimitOption,
    ObjectPixelOption,
    SourceArgument,
    check_output,
    read_scan,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console
    from rich.progress import Progress, TaskID

    from ptycho_bluesky.config import Settings
    from ptycho_bluesky.reconstruction import EngineOptions
    from ptycho_bluesky.reconstruction.warm_start import WarmStart
    from ptycho_bluesky.reconstruction.workers import Workers
    from ptycho_bluesky.records import Measurement, Reconstruction

__all__ = ["command"]


def command(
    source: SourceArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="Product to write (HDF5, ptychodus layout).")],
    engine: Annotated[str | None, typer.Option(help="Engine: epie, rpie, cg or ptychi.")] = None,
    iterations: Annotated[int | None, typer.Option(help="Passes over all frames.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Frames of one update; 1: strictly one by one.")] = None,
    probe_modes: Annotated[int | None, typer.Option(help="Incoherent modes of the probe.")] = None,
    holdout: Annotated[
        float | None,
        typer.Option(help="Part of the frames left out for validation, 0 to 0.5; 0, with --labels 0.05, by default."),
    ] = None,
    half_scans: Annotated[
        int,
        typer.Option(
            min=0,
            help="Passes of each of two half-scans, whose Fourier ring correlation tells the resolution; together they "
            "cost as many passes over all frames. 0: none.",
        ),
    ] = 20,
    follow: Annotated[
        float,
        typer.Option(
            min=0.0,
            metavar="SECONDS",
            help="Reconstruct while the detector's file grows, drawing the image so far, until its writer closes it "
            "or, after the first frames, nothing has come for so many seconds. Ctrl-C ends it with what is there. 0: "
            "the scan is there.",
        ),
    ] = 0.0,
    warm_start: Annotated[
        str | None,
        typer.Option(
            help="Start from what is known: a model (file or id), a file of infer or reconstruct, or 'live', the run's "
            "image in Tiled."
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Label set to write for train (HDF5), if it is accepted; else the command fails and says why."
        ),
    ] = None,
    energy_ev: EnergyOption = None,
    distance_m: DistanceOption = None,
    detector_pixel_m: DetectorPixelOption = None,
    object_pixel_m: ObjectPixelOption = None,
    limit: LimitOption = None,
    calibration: CalibrationOption = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-O", help="Any option of the engine, as name=value; see the reference. Repeatable."),
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="File for the state after every pass.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on from a state that --checkpoint wrote.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the frames' order and of what is left out.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads; more than one only on idle cores, 0: torch decides.")] = 1,
    picture: Annotated[
        bool, typer.Option(help="Draw object, probe, error and ring correlation beside the product (PNG).")
    ] = True,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Reconstruct object and probe of a finished scan.

    The probe starts from the one in the file, from the zone plate's parameters, or is found in the mean frame; object
    and probe are then refined together at the true, sub-pixel positions. Without a geometry, in the file or by the
    options, positions are taken in object pixels and the product says so.

    Example: [cyan]ptycho-bluesky reconstruct siemens-star-small.npz.bz2 --engine epie --out star.h5[/]

    Example: [cyan]ptycho-bluesky reconstruct run.h5 --engine cg -O noise=poisson -O patience=10 --out run-cg.h5[/]

    Example: [cyan]ptycho-bluesky reconstruct run.h5 --warm-start model.onnx --labels labels.h5 --out run.h5[/]

    Example: [cyan]ptycho-bluesky reconstruct run.h5 --follow 60 --out object.h5[/] (while it is measured)

    Several processes share the work of the engine cg when torchrun starts them:
    [cyan]torchrun --nproc-per-node 2 --no-python ptycho-bluesky reconstruct run.h5 --engine cg --out run-cg.h5[/]
    """
    settings = setup(
        config,
        verbose,
        data_dir=data_dir,
        reconstruct__engine=engine,
        reconstruct__iterations=iterations,
        reconstruct__batch_size=batch_size,
        reconstruct__probe_modes=probe_modes,
        reconstruct__seed=seed,
    )
    from rich.console import Console

    from ptycho_bluesky.reconstruction import engine_options
    from ptycho_bluesky.reconstruction.workers import joined_workers

    stated_options = {
        "holdout_fraction": _holdout(holdout, labels, half_scans, settings),
        "device": device,
        "threads": threads,
        **_named_values(option or []),
    }
    options = engine_options(settings.reconstruct.engine).from_settings(settings.reconstruct, **stated_options)
    for path in (out, labels):
        if path is not None:
            check_output(path)
    stated = {
        "energy_eV": energy_ev,
        "distance_m": distance_m,
        "detector_pixel_m": detector_pixel_m,
        "object_pixel_m": object_pixel_m,
    }
    console = Console(stderr=True)
    if follow:
        from ptycho_bluesky.cli.follow import followed

        _refuse_beside_follow(limit=limit, calibration=calibration, warm_start=warm_start, resume=resume,
                              checkpoint=checkpoint, labels=labels, holdout=holdout)  # fmt: skip
        measurement, result = followed(source, options, settings, stated, follow, out, console, picture=picture)
        half_scans = 0 if result.provenance["stopped"] else half_scans
        _finish(measurement, result, options, out, half_scans, console, picture=picture, source=source)
        return
    measurement = read_scan(source, settings, stated, limit, calibration)
    start = None
    if warm_start is not None:
        from ptycho_bluesky.cli.known_image import read_warm_start

        start = read_warm_start(warm_start, source, measurement, options, settings)
    with joined_workers() as workers:
        console.quiet = workers.rank > 0
        result = _reconstruct(
            measurement, options, console, start=start, resume=resume, checkpoint=checkpoint, workers=workers
        )
    if workers.rank > 0:
        return
    result = _finish(
        measurement, result, options, out, half_scans, console, picture=picture, source=source, pixel=labels is not None
    )
    if labels is not None:
        _write_labels(labels, measurement, result, settings, console)


def _refuse_beside_follow(**given: object) -> None:
    """Fail where an option that needs the whole scan stands beside --follow.

    Raises
    ------
    InputError
        One does.
    """
    from ptycho_bluesky.errors import InputError

    named = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]
    if named:
        raise InputError(
            f"{', '.join(named)} beside --follow", "they need the whole scan", "reconstruct it again when it is over"
        )


def _finish(
    measurement: Measurement,
    result: Reconstruction,
    options: EngineOptions,
    out: Path,
    half_scans: int,
    console: Console,
    *,
    picture: bool,
    source: str,
    pixel: bool = False,
) -> Reconstruction:
    """Compare two half-scans, write product and picture, and say what came out."""
    from ptycho_bluesky.io import write_reconstruction
    from ptycho_bluesky.reconstruction.half_scans import stored_agreement
    from ptycho_bluesky.reconstruction.pictures import draw

    result = _with_provenance(result, {"source": {"name": source, **measurement.metadata}})
    if half_scans:
        result = _with_evidence(measurement, result, options, half_scans, console, pixel=pixel)
    write_reconstruction(out, result)
    if picture:
        draw(result, out.with_suffix(".png"), stored_agreement(result))
    console.print(_summary(result), highlight=False)
    typer.echo(out)
    return result


def _holdout(stated: float | None, labels: Path | None, half_scans: int, settings: Settings) -> float:
    """Part of the frames to leave out; labels are judged by some.

    Raises
    ------
    InputError
        Labels are asked for without what judges them.
    """
    from ptycho_bluesky.errors import InputError

    if labels is None:
        return stated or 0.0
    if not half_scans:
        raise InputError("--labels with --half-scans 0", "two half-scans judge the labels", "leave --half-scans out")
    return settings.reconstruct.labels.min_held_out if stated is None else stated


def _summary(result: Reconstruction) -> str:
    from ptycho_bluesky.reconstruction.half_scans import stored_agreement

    seconds, frames = result.provenance["duration_s"], len(result.position_m)
    updates = result.provenance.get("frame_updates", len(result.error) * frames)
    text = (
        f"{frames} frames, {updates / frames:.0f} passes in {seconds:.1f} s "
        f"({updates / seconds:.0f} frame-updates/s)\nerror {result.error[0]:.4g} → {result.error[-1]:.4g}; "
        f"probe from: {result.provenance['probe_start']}"
    )
    if result.provenance.get("followed"):
        text += f"\nfollowed while it was measured: first image after {result.provenance['first_image_frames']} frames"
    rings = stored_agreement(result)
    if rings is None:
        return text
    metres = f", {rings.resolution_m * 1e9:.3g} nm" if rings.resolution_m > 0 else ""
    return (
        f"{text}\nhalf-scans ({2 * rings.passes} passes over halves in {rings.duration_s:.1f} s): half period resolved "
        f"{rings.resolution_px:.2f} px{metres} (½ bit), objects correlate by {rings.correlation:.3f}"
    )


def _with_evidence(
    measurement: Measurement,
    result: Reconstruction,
    options: EngineOptions,
    passes: int,
    console: Console,
    *,
    pixel: bool,
) -> Reconstruction:
    """The reconstruction with the agreement of its half-scans, and on demand the check of its pixel, behind a bar."""
    from ptycho_bluesky.reconstruction.evidence import gather_evidence
    from ptycho_bluesky.reconstruction.half_scans import try_half_scans

    with _bar(console) as bar:
        task = bar.add_task("half-scans", total=2 * passes, error="–")
        gather = gather_evidence if pixel else try_half_scans
        return _with_provenance(result, gather(measurement, result, options, passes, _shown(bar, task)))


def _with_provenance(result: Reconstruction, entries: dict[str, Any]) -> Reconstruction:
    from dataclasses import replace

    return replace(result, provenance={**result.provenance, **entries})


def _write_labels(
    path: Path, measurement: Measurement, result: Reconstruction, settings: Settings, console: Console
) -> None:
    """Cut and judge labels, and write them if they pass."""
    from dataclasses import replace

    from ptycho_bluesky.reconstruction.evidence import stored_evidence
    from ptycho_bluesky.training.corpus import write_label_set
    from ptycho_bluesky.training.label_check import check_labels
    from ptycho_bluesky.training.labels import make_labels

    found = make_labels(result, measurement)
    check = check_labels(found, result, measurement, stored_evidence(result), settings.reconstruct.labels)
    if not check.accepted:
        console.print(f"[bold red]labels rejected:[/] {check.reason}", highlight=False)
        raise typer.Exit(1)
    console.print(f"labels accepted: {check.reason}", highlight=False)
    write_label_set(path, replace(found, provenance={**found.provenance, "check": check.as_dict()}))
    typer.echo(path)


def _named_values(options: list[str]) -> dict[str, str]:
    """Values of ``name=value``; the engine's options class checks and converts them."""
    from ptycho_bluesky.errors import InputError

    parted = [option.partition("=") for option in options]
    bad = [name for name, equals, _ in parted if not (name and equals)]
    if bad:
        raise InputError(f"--option {bad[0]}", "it reads name=value", "for example -O momentum=0.5")
    return {name: value for name, _, value in parted}


def _reconstruct(
    measurement: Measurement,
    options: EngineOptions,
    console: Console,
    *,
    start: WarmStart | None,
    resume: Path | None,
    checkpoint: Path | None,
    workers: Workers,
) -> Reconstruction:
    """Reconstruct behind a bar that shows the error."""
    from ptycho_bluesky.reconstruction import reconstruct

    with _bar(console) as bar:
        task = bar.add_task(options.engine, total=options.iterations, error="–")
        return reconstruct(
            measurement,
            options,
            probe=None if start is None else start.probe,
            object=None if start is None else start.object,
            progress=_shown(bar, task),
            resume=resume,
            checkpoint=checkpoint,
            workers=workers,
        )


def _bar(console: Console) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, TextColumn("error {task.fields[error]}"), console=console)


def _shown(bar: Progress, task: TaskID) -> Callable[[int, int, float], None]:
    return lambda done, total, error: bar.update(task, completed=done, total=total, error=f"{error:.5f}")
