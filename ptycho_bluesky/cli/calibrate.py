"""``ptycho-bluesky calibrate``: how the detector stands in the beam, measured from a scan and locked in a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ptycho_bluesky.cli.options import ConfigOption, DataDirOption, VerboseOption, setup
from ptycho_bluesky.cli.scan_source import (
    DetectorPixelOption,
    DistanceOption,
    EnergyOption,
    ObjectPixelOption,
    SourceArgument,
    check_output,
    detector_scan,
)

if TYPE_CHECKING:
    from rich.console import Console


__all__ = ["command"]

STATED = ("energy_eV", "distance_m", "detector_pixel_m", "object_pixel_m")


def command(
    source: SourceArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="Calibration to write (YAML); its mask lies beside it.")],
    num_px: Annotated[
        int | None, typer.Option(help="Side of the region of interest; else as large as it fits.")
    ] = None,
    orientation: Annotated[bool, typer.Option(help="Measure the orientation as well, by reconstructions.")] = True,
    pixel: Annotated[bool, typer.Option(help="Check the pixel size as well, by reconstructions.")] = True,
    prior: Annotated[
        str,
        typer.Option(help="What tells an orientation from its twin: none, absorbing, defocus-positive or -negative."),
    ] = "none",
    frames: Annotated[int, typer.Option(help="Frames to look at.", min=50)] = 400,
    energy_ev: EnergyOption = None,
    distance_m: DistanceOption = None,
    detector_pixel_m: DetectorPixelOption = None,
    object_pixel_m: ObjectPixelOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Measure bad pixels, beam centre, orientation and pixel size from a scan, and lock them in a file.

    The file is named by the key [bold]calibration[/] of the configuration: from then on edge, worker and readers cut,
    mask and turn frames alike, and every run's documents say how. Frames alone leave two orientations that explain them
    equally, a half turn with the conjugate object apart; a prior tells them apart: that the sample absorbs where its
    phase is negative, or the side of the focus on which it stands. Without one the result says that it is ambiguous,
    and no orientation is locked.

    Example: [cyan]ptycho-bluesky calibrate scan.h5 --out calibration.yml --prior absorbing[/]

    Example: [cyan]ptycho-bluesky calibrate 3f9c2a --out calibration.yml --num-px 128 --prior defocus-positive[/]
    """
    settings = setup(
        config,
        verbose,
        data_dir=data_dir,
        geometry__energy_eV=energy_ev,
        geometry__distance_m=distance_m,
        geometry__detector_pixel_m=detector_pixel_m,
        geometry__object_pixel_m=object_pixel_m,
    )
    check_output(out)
    import yaml
    from rich.console import Console
    from rich.progress import Progress

    from ptycho_bluesky.workflow.calibration import calibrate

    console = Console(stderr=True)
    stated = {name: getattr(settings.geometry, name) for name in STATED}
    scan = detector_scan(source, settings, stated)
    with Progress(console=console) as bar:
        task = bar.add_task("calibrate", total=None)
        content = calibrate(
            scan,
            out.with_suffix(".mask.npy"),
            num_px=num_px,
            prior=prior if orientation else None,
            max_frames=frames,
            pixel=pixel,
            progress=lambda done, total, name: bar.update(task, completed=done, total=total, description=name),
        )
    out.write_text(yaml.safe_dump(content, sort_keys=False))
    _report(console, content)
    typer.echo(out)


def _report(console: Console, content: dict[str, Any]) -> None:
    """What was found, and what the person has to decide."""
    import yaml

    console.print(yaml.safe_dump(content["measured"], sort_keys=False), highlight=False)
    found, pixel = (content["measured"].get(name) or {} for name in ("orientation", "pixel"))
    if found and not found["found"]:
        console.print("[yellow]no orientation explains the frames much better than the others: none is locked[/]")
    elif found.get("resolved_by") == "ambiguous":
        console.print(
            f"[yellow]ambiguous: {found['operation']} and its twin {found['twin']} explain the frames alike; no "
            "orientation is locked. State --prior, or geometry.orientation by hand[/]"
        )
    if pixel and not pixel["agrees"]:
        console.print(
            f"[yellow]the frames ask for a pixel {pixel['measured_over_stated']:.3f} times the stated one: check "
            "energy, distance and detector pixel[/]"
        )
