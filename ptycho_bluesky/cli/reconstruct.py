"""``ptycho-bluesky reconstruct``: a finished scan to object and probe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ptycho_bluesky.cli.options import ConfigOption, DataDirOption, VerboseOption, setup
from ptycho_bluesky.cli.scan_source import (
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
    from rich.console import Console

    from ptycho_bluesky.reconstruction import EngineOptions
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
    holdout: Annotated[float, typer.Option(help="Part of the frames left out for validation, 0 to 0.5.")] = 0.0,
    energy_ev: EnergyOption = None,
    distance_m: DistanceOption = None,
    detector_pixel_m: DetectorPixelOption = None,
    object_pixel_m: ObjectPixelOption = None,
    limit: LimitOption = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-O", help="Any option of the engine, as name=value; see the reference. Repeatable."),
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="File for the state after every pass.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on from a state that --checkpoint wrote.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the frames' order and of what is left out.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads; more than one only on idle cores, 0: torch decides.")] = 1,
    picture: Annotated[bool, typer.Option(help="Draw object, probe and error beside the product (PNG).")] = True,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Reconstruct object and probe of a finished scan.

    The probe starts from the one in the file, from the zone plate's parameters, or is found in the mean frame; object
    and probe are then refined together at the true, sub-pixel positions. Without a geometry, in the file or by the
    options, positions are taken in object pixels and the product says so.

    Example: [cyan]ptycho-bluesky reconstruct siemens-star-small.npz.bz2 --engine epie --out star.h5[/]

    Several processes share the work of the engine cg when torchrun starts them:
    [cyan]torchrun --nproc-per-node 2 --no-python ptycho-bluesky reconstruct run.h5 --engine cg --out run-cg.h5[/]

    Example: [cyan]ptycho-bluesky reconstruct run.h5 --engine cg -O noise=poisson -O patience=10 --out run-cg.h5[/]
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

    from ptycho_bluesky.io import write_reconstruction
    from ptycho_bluesky.reconstruction import engine_options
    from ptycho_bluesky.reconstruction.pictures import draw
    from ptycho_bluesky.reconstruction.workers import joined_workers

    stated_options = {"holdout_fraction": holdout, "device": device, "threads": threads, **_named_values(option or [])}
    options = engine_options(settings.reconstruct.engine).from_settings(settings.reconstruct, **stated_options)
    check_output(out)
    stated = {
        "energy_eV": energy_ev,
        "distance_m": distance_m,
        "detector_pixel_m": detector_pixel_m,
        "object_pixel_m": object_pixel_m,
    }
    measurement = read_scan(source, settings, stated, limit)
    console = Console(stderr=True)
    with joined_workers() as workers:
        console.quiet = workers.rank > 0
        result = _reconstruct(measurement, options, console, resume=resume, checkpoint=checkpoint, workers=workers)
    if workers.rank > 0:
        return
    write_reconstruction(out, result)
    if picture:
        draw(result, out.with_suffix(".png"))
    seconds = result.provenance["duration_s"]
    passes = len(result.error)
    rate = passes * len(result.position_m) / seconds
    console.print(
        f"{len(result.position_m)} frames, {passes} passes in {seconds:.1f} s "
        f"({rate:.0f} frame-updates/s)\nerror {result.error[0]:.4g} → {result.error[-1]:.4g}; "
        f"probe from: {result.provenance['probe_start']}",
        highlight=False,
    )
    typer.echo(out)


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
    resume: Path | None,
    checkpoint: Path | None,
    workers: Workers,
) -> Reconstruction:
    """Reconstruct behind a bar that shows the error."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ptycho_bluesky.reconstruction import reconstruct

    columns = (TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("error {task.fields[error]}"), console=console) as bar:
        task = bar.add_task(options.engine, total=options.iterations, error="–")
        return reconstruct(
            measurement,
            options,
            progress=lambda done, total, error: bar.update(task, completed=done, total=total, error=f"{error:.5f}"),
            resume=resume,
            checkpoint=checkpoint,
            workers=workers,
        )
