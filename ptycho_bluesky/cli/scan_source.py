"""The argument ``FILE|RUN`` of several subcommands, the options that state a geometry, and models by file or id."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ptycho_bluesky.config import Settings
    from ptycho_bluesky.records import Measurement
    from ptycho_bluesky.workflow.detector_scan import DetectorScan

__all__ = [
    "CalibrationOption",
    "DetectorPixelOption",
    "DistanceOption",
    "EnergyOption",
    "LimitOption",
    "ModelOption",
    "ObjectPixelOption",
    "SourceArgument",
    "check_output",
    "detector_scan",
    "is_file",
    "is_waited_for",
    "read_model",
    "read_scan",
]

SourceArgument = Annotated[
    str, typer.Argument(metavar="FILE|RUN", help="CXI, NeXus/HDF5 or .npz[.bz2] file, or the uid of a run in Tiled.")
]
EnergyOption = Annotated[
    float | None, typer.Option("--energy-eV", help="Photon energy, where the file does not state it.")
]
DistanceOption = Annotated[float | None, typer.Option("--distance-m", help="Sample to detector.")]
DetectorPixelOption = Annotated[float | None, typer.Option("--detector-pixel-m", help="Pitch of the detector.")]
ObjectPixelOption = Annotated[
    float | None, typer.Option("--object-pixel-m", help="Pixel at the sample, instead of the three above.")
]
CalibrationOption = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        exists=True,
        dir_okay=False,
        help="File of calibrate, applied to this scan whatever its format; frames are taken as the detector laid them.",
    ),
]
LimitOption = Annotated[int | None, typer.Option(help="Use the first frames only.")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="ONNX file, PyTorch state dict or safetensors of PtychoNN 2.0, or the id of a model in the registry.",
    ),
]


def is_file(source: str) -> bool:
    """Whether a source is a file; else it may be the uid of a run.

    Raises
    ------
    InputError
        It looks like a path, and nothing is there.
    """
    from ptycho_bluesky.errors import InputError

    if Path(source).exists():
        return True
    if Path(source).suffix or "/" in source:
        raise InputError(f"file {source}", "it does not exist", "check the path, or give the uid of a run")
    return False


def is_waited_for(source: str) -> None:
    """Fail where a source cannot become a file that grows.

    Raises
    ------
    InputError
        Its folder does not exist: it is the uid of a run, or a path with a mistake.
    """
    from ptycho_bluesky.errors import InputError

    path = Path(source)
    if not path.exists() and (not path.suffix or not path.parent.is_dir()):
        raise InputError(
            f"file {source}", "a growing file, or one that is about to be made, is followed", "give the detector's file"
        )


def read_scan(
    source: str,
    settings: Settings,
    stated: dict[str, float | None],
    limit: int | None = None,
    calibration: Path | None = None,
) -> Measurement:
    """Read a file by its path, else a run by its uid.

    Parameters
    ----------
    source : str
        Path or uid.
    settings : Settings
    stated : dict
        ``energy_eV``, ``distance_m``, ``detector_pixel_m`` and ``object_pixel_m``, None where not stated.
    limit : int, optional
        Frames to read.
    calibration : Path, optional
        File of `calibrate` for this scan; by default that of the settings holds for areaDetector files, a run says for
        itself how its detector stood, and other files hold canonical frames.

    Raises
    ------
    InputError
        There is no such file or run, or it cannot be read.
    UnreachableError
        Tiled does not answer.
    """
    from ptycho_bluesky.errors import InputError

    if calibration is not None:
        return _read_calibrated(source, settings, stated, limit, calibration)
    if is_file(source):
        from ptycho_bluesky.io import read_measurement

        return read_measurement(
            Path(source),
            energy_eV=stated["energy_eV"],
            distance_m=stated["distance_m"],
            detector_pixel_m=stated["detector_pixel_m"],
            object_pixel_m=stated["object_pixel_m"],
            limit=limit,
            detector=settings.detector,
            orientation=settings.geometry.orientation if settings.geometry.orientation != "identity" else None,
        )
    given = [name for name in ("energy_eV", "distance_m", "detector_pixel_m") if stated[name] is not None]
    if given:
        raise InputError(f"{', '.join(given)} beside a run", "a run states its own geometry", "leave them out")
    from ptycho_bluesky.workflow.tiled_store import TiledStore

    with TiledStore.connect(settings.tiled) as store:
        return store.read_run(source, object_pixel_m=stated["object_pixel_m"], limit=limit)


def detector_scan(source: str, settings: Settings, stated: dict[str, float | None]) -> DetectorScan:
    """Scan as the detector laid it, of a file by its path, else of a run by its uid; see `read_scan` for errors."""
    from ptycho_bluesky.workflow.detector_scan import file_scan, run_scan

    if is_file(source):
        return file_scan(Path(source), stated)
    from ptycho_bluesky.workflow.tiled_store import TiledStore

    with TiledStore.connect(settings.tiled) as store:
        return run_scan(store, source, stated)


def _read_calibrated(
    source: str, settings: Settings, stated: dict[str, float | None], limit: int | None, calibration: Path
) -> Measurement:
    from ptycho_bluesky.config import load_calibration

    detector, orientation = load_calibration(calibration)
    return detector_scan(source, settings, stated).build(detector, limit, orientation)


def read_model(model: str, settings: Settings) -> bytes | Path:
    """Path of a model file, or the content of a model in the registry by its id or the beginning of it.

    Raises
    ------
    InputError
        There is no such file or model.
    UnreachableError
        It is no file, and Tiled does not answer.
    """
    from ptycho_bluesky.errors import InputError

    if Path(model).exists():
        return Path(model)
    if Path(model).suffix or "/" in model:
        raise InputError(f"model file {model}", "it does not exist", "check the path, or give the id of a model")
    from ptycho_bluesky.workflow.tiled_store import TiledStore

    with TiledStore.connect(settings.tiled) as store:
        found = [record.model_id for record in store.model_store.records() if record.model_id.startswith(model)]
        if len(found) != 1:
            raise InputError(
                f"model {model}", f"it names {len(found)} models of the registry", "ptycho-bluesky models list"
            )
        return store.model_store.get(found[0])[1]


def check_output(out: Path) -> None:
    """Fail before the work rather than after it.

    Raises
    ------
    StorageError
        The folder of a file to be written does not exist or cannot be written.
    """
    from ptycho_bluesky.errors import StorageError

    folder = out.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise StorageError(f"folder {folder} of --out", "it must exist and be writable", "make it or name another")
