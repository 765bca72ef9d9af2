"""``ptycho-bluesky infer``: a finished scan read by a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ptycho_bluesky.cli.options import ConfigOption, DataDirOption, VerboseOption, setup
from ptycho_bluesky.cli.scan_source import (
    CalibrationOption,
    DetectorPixelOption,
    DistanceOption,
    EnergyOption,
    LimitOption,
    ModelOption,
    ObjectPixelOption,
    SourceArgument,
    check_output,
    read_model,
    read_scan,
)

if TYPE_CHECKING:
    from ptycho_bluesky.records import FrameCounts, Measurement, Mosaic

__all__ = ["command"]


def command(
    source: SourceArgument,
    model: ModelOption,
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write (HDF5): patches, positions, mosaic.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Frames read at once.")] = 32,
    engine: Annotated[str | None, typer.Option(help="auto, torch or onnxruntime.")] = None,
    energy_ev: EnergyOption = None,
    distance_m: DistanceOption = None,
    detector_pixel_m: DetectorPixelOption = None,
    object_pixel_m: ObjectPixelOption = None,
    limit: LimitOption = None,
    calibration: CalibrationOption = None,
    picture: Annotated[bool, typer.Option(help="Draw the mosaic beside the file (PNG).")] = True,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Read every frame of a finished scan with a network, and stitch the patches.

    The scan takes the path of a live one: the same join, the same inference, the same mosaic and frame log. Patches go
    to the file batch by batch, so a scan larger than the memory can be read, and a crash costs the last batch at most.

    Example: [cyan]ptycho-bluesky infer siemens-star-small.npz.bz2 --model ptychonn2_26id_phase.pth --out star.h5[/]
    """
    settings = setup(config, verbose, data_dir=data_dir, edge__engine=engine)
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ptycho_bluesky.inference import load_model
    from ptycho_bluesky.io.products import InferenceWriter
    from ptycho_bluesky.streaming.replay import replay_run

    check_output(out)
    stated = {
        "energy_eV": energy_ev,
        "distance_m": distance_m,
        "detector_pixel_m": detector_pixel_m,
        "object_pixel_m": object_pixel_m,
    }
    measurement = read_scan(source, settings, stated, limit, calibration)
    side = min(measurement.image.shape[1:])
    loaded = load_model(
        read_model(str(model), settings),
        settings.edge.engine,
        num_threads=settings.edge.num_threads,
        precision=settings.edge.precision,
        image_shape=(side, side),
    )
    console = Console(stderr=True)
    columns = (TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    metadata = {"source": source, "model_id": loaded.model_id, "engine": loaded.engine.name}
    with (
        InferenceWriter(
            out, geometry=measurement.geometry, pixel_size_m=measurement.pixel_size_m, metadata=metadata
        ) as writer,
        Progress(*columns, console=console) as bar,
    ):
        task = bar.add_task(f"infer ({loaded.engine.name})", total=len(measurement))
        mosaic, counts = replay_run(
            measurement,
            loaded,
            batch_size=batch_size,
            on_batch=writer.append,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
        writer.finish(mosaic)
    if picture:
        from ptycho_bluesky.streaming.pictures import draw_mosaic

        draw_mosaic(mosaic, out.with_suffix(".png"))
    _report(console, measurement, mosaic, counts)
    typer.echo(out)
    if counts.lost or counts.unaccounted:
        raise typer.Exit(1)


def _report(console: object, measurement: Measurement, mosaic: Mosaic, counts: FrameCounts) -> None:
    from rich.console import Console

    assert isinstance(console, Console)
    unit = "object pixels" if measurement.pixel_size_m is None else "m"
    text = ", ".join(f"{value} {name}" for name, value in counts.as_dict().items() if value)
    console.print(
        f"{text}\nmosaic of {mosaic.frame.shape[0]} × {mosaic.frame.shape[1]} pixels of "
        f"{mosaic.frame.pixel_size_m:.4g} {unit}, {int((mosaic.coverage > 0).sum())} covered",
        highlight=False,
    )
    console.print(_trust(mosaic), highlight=False)


def _trust(mosaic: Mosaic) -> str:
    """What the residuals say, in a line."""
    import numpy as np

    residual = mosaic.frame_log["residual"]
    checked = np.isfinite(residual)
    if not checked.any():
        return "no physics residual: the model carries no probe of these frames' grid"
    flagged = np.count_nonzero(mosaic.frame_log["flag"][checked])
    return (
        f"physics residual {np.median(residual[checked]):.3g} (median; 1: shot noise alone), {flagged} frames flagged"
    )
