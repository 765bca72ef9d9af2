"""``ptycho-bluesky ioc``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ptycho_bluesky.cli.options import ConfigOption, VerboseOption, setup

__all__ = ["command"]


def command(
    role: Annotated[
        str, typer.Argument(help="What to serve: [bold]beamline[/] (all), [bold]stage[/], or [bold]detector[/].")
    ] = "beamline",
    sample: Annotated[
        str, typer.Option(help="demo, star, letters, pattern, or a JSON file of a sample map or experiment.")
    ] = "demo",
    recorded: Annotated[Path | None, typer.Option(help="Play a recorded scan (CXI, NeXus, npz) instead.")] = None,
    size: Annotated[int, typer.Option(help="Rows and columns of a simulated frame.")] = 64,
    areas: Annotated[int, typer.Option(help="Areas of random shapes on the sample 'demo'.")] = 12,
    seed: Annotated[int, typer.Option(help="Seed of sample, noise and faults.")] = 0,
    prefix: Annotated[str | None, typer.Option(help="Prefix of the process variables; default from settings.")] = None,
    flux: Annotated[float | None, typer.Option(help="Photons a second on the sample.")] = None,
    jitter_m: Annotated[float, typer.Option(help="Standard deviation of the stage's positions in m.")] = 0.0,
    drift: Annotated[float, typer.Option(help="Fraction of the flux that is lost during a scan.")] = 0.0,
    hot_pixels: Annotated[int, typer.Option(help="Pixels that always saturate.")] = 0,
    dead_pixels: Annotated[int, typer.Option(help="Pixels that always show 0.")] = 0,
    dark_counts: Annotated[float, typer.Option(help="Mean dark counts a pixel and frame.")] = 0.0,
    energy_eV: Annotated[float | None, typer.Option("--energy-eV", help="Photon energy.")] = None,
    distance_m: Annotated[float | None, typer.Option(help="Sample to detector.")] = None,
    detector_pixel_m: Annotated[float | None, typer.Option(help="Pitch of a detector pixel.")] = None,
    object_pixel_m: Annotated[
        float | None, typer.Option(help="Pixel at the sample of a recording that does not state its geometry.")
    ] = None,
    ca_port: Annotated[int | None, typer.Option(help="Channel Access port.")] = None,
    pva_port: Annotated[int | None, typer.Option(help="pvAccess port.")] = None,
    config: ConfigOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Serve a simulated beamline: stage, trajectory controller, detector, shutter, attenuator, energy, monitor.

    Its process variables are those of the EPICS motor record and areaDetector. Frames are rendered before the detector
    is armed and then leave on a free-running clock, on pvAccess and into an HDF5 file. Ctrl-C ends it.

    Example: [bold]ptycho-bluesky ioc --sample star --size 128[/], or a measured scan as if it were being taken:
    [bold]ptycho-bluesky ioc --recorded scan.cxi[/].
    """
    settings = setup(config, verbose, epics__ca_server_port=ca_port, epics__pva_server_port=pva_port)
    from pydantic import ValidationError

    from ptycho_bluesky.errors import InputError
    from simulated_iocs.options import BeamlineOptions

    stated = settings.geometry
    geometry = {
        "energy_eV": energy_eV or stated.energy_eV,
        "distance_m": distance_m or stated.distance_m,
        "detector_pixel_m": detector_pixel_m or stated.detector_pixel_m,
    }
    content: dict[str, Any] = {
        "role": role,
        "prefix": prefix or settings.epics.prefix,
        "sample": sample,
        "recorded": recorded,
        "size_px": size,
        "areas": areas,
        "seed": seed,
        "flux_photons_per_s": flux,
        "position_jitter_m": jitter_m,
        "beam_drift": drift,
        "hot_pixels": hot_pixels,
        "dead_pixels": dead_pixels,
        "dark_counts": dark_counts,
        "object_pixel_m": object_pixel_m or stated.object_pixel_m,
        **({f"recorded_{name}": value for name, value in geometry.items()} if recorded else geometry),
    }
    try:
        options = BeamlineOptions(**{name: value for name, value in content.items() if value is not None})
    except ValidationError as error:
        where = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'options'}: {e['msg']}" for e in error.errors())
        raise InputError(where, "", "correct the option") from error

    from simulated_iocs.server import ready_line, run

    run(options, on_ready=lambda beamline: typer.echo(ready_line(beamline)))
