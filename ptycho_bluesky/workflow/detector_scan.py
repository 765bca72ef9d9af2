"""A scan as its detector laid it, from a file of any format or from a run in Tiled: what a calibration looks at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ptycho_bluesky.config import DetectorSettings
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.io import read_measurement
from ptycho_bluesky.io.area_detector import FRAMES
from ptycho_bluesky.io.calibrated import as_calibrated
from ptycho_bluesky.io.frames import FramesOnDemand
from ptycho_bluesky.io.hdf5 import HDF5_SIGNATURE, dataset, has_dataset, open_file
from ptycho_bluesky.records import Measurement

__all__ = ["DetectorScan", "file_scan", "run_scan"]

Stated = Mapping[str, float | None]


@dataclass(frozen=True)
class DetectorScan:
    """Frames before anything is cut, masked or turned.

    Attributes
    ----------
    name : str
        File or run.
    frames : array-like, shape (n, H, W)
        Counts; read when indexed.
    build : callable
        ``build(detector, limit, orientation)``: the measurement of the first frames, cut, masked and turned.
    """

    name: str
    frames: Any
    build: Callable[[DetectorSettings, int | None, str], Measurement]


def file_scan(path: Path, stated: Stated | None = None) -> DetectorScan:
    """Scan in a file: areaDetector NeXus, CXI, NXcxi_ptycho, ``.npz``.

    Parameters
    ----------
    path : Path
    stated : mapping, optional
        Geometry where the file has none (``energy_eV``, …).

    Raises
    ------
    InputError
        The file cannot be read, or holds no frames.
    """
    known: dict[str, Any] = dict(stated or {})
    if _is_area_detector(path):
        with open_file(path) as file:
            shape = dataset(file, FRAMES).shape
        if len(shape) != 3 or not shape[0]:
            raise InputError(f"{FRAMES} of shape {shape}", "it holds frames (n, H, W)")
        frames = FramesOnDemand(path, FRAMES, np.arange(shape[0]))
        return DetectorScan(
            str(path),
            frames,
            lambda detector, limit, orientation: read_measurement(
                path, limit=limit, detector=detector, orientation=orientation, **known
            ),
        )
    found = read_measurement(path, **known)
    return DetectorScan(
        str(path),
        found.image,
        lambda detector, limit, orientation: as_calibrated(found, detector, orientation, limit=limit),
    )


def _is_area_detector(path: Path) -> bool:
    if not path.is_file():
        raise InputError(f"file {path}", "it does not exist", "check the path, or give the uid of a run")
    with path.open("rb") as stream:
        if stream.read(len(HDF5_SIGNATURE)) != HDF5_SIGNATURE:
            return False
    with open_file(path) as file:
        return has_dataset(file, FRAMES)


def run_scan(store: Any, uid: str, stated: Stated | None = None) -> DetectorScan:
    """Scan of a run in Tiled.

    Parameters
    ----------
    store : TiledStore
    uid : str
        Of the run, or the beginning of it.
    stated : mapping, optional
        ``object_pixel_m`` is used for a run that states neither geometry nor pixel.

    Raises
    ------
    InputError
        There is no such run, it holds no frames, or a geometry is stated beside its own.
    """
    known = dict(stated or {})
    given = [name for name, value in known.items() if value is not None and name != "object_pixel_m"]
    if given:
        raise InputError(f"{', '.join(given)} beside a run", "a run states its own geometry", "leave them out")
    found: Measurement = store.read_run(uid, object_pixel_m=known.get("object_pixel_m"), as_laid=True)
    pixel_px = found.metadata["canonical_px"]

    return DetectorScan(
        f"run {found.run_uid}",
        found.image,
        lambda detector, limit, orientation: as_calibrated(
            found, detector, orientation, limit=limit, pixel_px=pixel_px
        ),
    )
