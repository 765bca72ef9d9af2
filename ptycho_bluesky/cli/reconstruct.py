"""``ptycho-bluesky reconstruct``: a finished scan to object and probe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ptycho_bluesky.cli.options import ConfigOption, DataDirOption, VerboseOption, setup

if TYPE_CHECKING:
    from ptycho_bluesky.config import Settings
    from ptycho_bluesky.records import Measurement

__all__ = ["command"]


def command(
    source: Annotated[
        str,
        typer.Argument(metavar="FILE|RUN", help="CXI, NeXus/HDF5 or .npz[.bz2] file, or the uid of a run in Tiled."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Product to write (HDF5, ptychodus layout).")],
    engine: Annotated[str | None, typer.Option(help="Engine: epie.")] = None,
    iterations: Annotated[int | None, typer.Option(help="Passes over all frames.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Frames of one simultaneous update.")] = None,
    probe_modes: Annotated[int | None, typer.Option(help="Incoherent modes of the probe.")] = None,
    holdout: Annotated[float, typer.Option(help="Part of the frames left out for validation, 0 to 0.5.")] = 0.0,
    energy_ev: Annotated[
        float | None, typer.Option("--energy-eV", help="Photon energy, where the file does not state it.")
    ] = None,
    distance_m: Annotated[float | None, typer.Option("--distance-m", help="Sample to detector.")] = None,
    detector_pixel_m: Annotated[float | None, typer.Option("--detector-pixel-m", help="Pitch of the detector.")] = None,
    object_pixel_m: Annotated[
        float | None, typer.Option("--object-pixel-m", help="Pixel at the sample, instead of the three above.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Use the first frames only.")] = None,
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
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ptycho_bluesky.io import write_reconstruction
    from ptycho_bluesky.reconstruction import EpieOptions, reconstruct
    from ptycho_bluesky.reconstruction.pictures import draw

    options = EpieOptions.from_settings(settings.reconstruct, holdout_fraction=holdout, device=device, threads=threads)
    _check_folder(out)
    stated = {
        "energy_eV": energy_ev,
        "distance_m": distance_m,
        "detector_pixel_m": detector_pixel_m,
        "object_pixel_m": object_pixel_m,
    }
    measurement = _read(source, settings, stated, limit)
    console = Console(stderr=True)
    columns = (TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("error {task.fields[error]}"), console=console) as bar:
        task = bar.add_task(options.engine, total=options.iterations, error="–")
        result = reconstruct(
            measurement,
            options,
            progress=lambda done, total, error: bar.update(task, completed=done, total=total, error=f"{error:.5f}"),
        )
    write_reconstruction(out, result)
    if picture:
        draw(result, out.with_suffix(".png"))
    seconds = result.provenance["duration_s"]
    rate = options.iterations * len(result.position_m) / seconds
    console.print(
        f"{len(result.position_m)} frames, {options.iterations} passes in {seconds:.1f} s "
        f"({rate:.0f} frame-updates/s)\nerror {result.error[0]:.4g} → {result.error[-1]:.4g}; "
        f"probe from: {result.provenance['probe_start']}",
        highlight=False,
    )
    typer.echo(out)


def _check_folder(out: Path) -> None:
    """Fail before the work rather than after it."""
    import os

    from ptycho_bluesky.errors import StorageError

    folder = out.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise StorageError(f"folder {folder} of --out", "it must exist and be writable", "make it or name another")


def _read(source: str, settings: Settings, stated: dict[str, float | None], limit: int | None) -> Measurement:
    """A file by its path, else a run by its uid."""
    from ptycho_bluesky.errors import InputError
    from ptycho_bluesky.io import read_measurement

    if Path(source).exists():
        return read_measurement(
            Path(source),
            energy_eV=stated["energy_eV"],
            distance_m=stated["distance_m"],
            detector_pixel_m=stated["detector_pixel_m"],
            object_pixel_m=stated["object_pixel_m"],
            limit=limit,
        )
    if Path(source).suffix or "/" in source:
        raise InputError(f"file {source}", "it does not exist", "check the path, or give the uid of a run")
    given = [name for name in ("energy_eV", "distance_m", "detector_pixel_m") if stated[name] is not None]
    if given:
        raise InputError(f"{', '.join(given)} beside a run", "a run states its own geometry", "leave them out")
    from ptycho_bluesky.workflow.tiled_store import TiledStore

    with TiledStore.connect(settings.tiled) as store:
        return store.read_run(source, object_pixel_m=stated["object_pixel_m"], limit=limit)
