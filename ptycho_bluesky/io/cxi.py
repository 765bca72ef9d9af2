"""CXI files, and the NeXus definition NXcxi_ptycho that is built on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.io.assemble import RawScan, StatedGeometry, scaled_probe
from ptycho_bluesky.io.frames import FramesOnDemand, canonical_frames, square_window
from ptycho_bluesky.io.hdf5 import dataset, has_dataset, open_file, read_scalar, read_string
from ptycho_bluesky.io.units import energy_factor_ev, length_factor_m, real_numbers

__all__ = ["is_cxi", "read_cxi"]

ENTRY = "/entry_1"
_DETECTOR = f"{ENTRY}/instrument_1/detector_1"
DATA = (f"{ENTRY}/data_1/data", f"{_DETECTOR}/data")
TRANSLATION = (
    f"{ENTRY}/sample_1/geometry_1/translation",
    f"{ENTRY}/data_1/translation",
    f"{_DETECTOR}/translation",
)
MOTORS = f"{ENTRY}/sample_1/transformations"
PROBE = (f"{ENTRY}/instrument_1/source_1/illumination", f"{ENTRY}/image_1/data")
MASK = f"{_DETECTOR}/mask"
BEAM_ENERGY = (f"{ENTRY}/instrument_1/beam_1/incident_beam_energy", f"{ENTRY}/instrument_1/beam_1/energy")
SOURCE_ENERGY = f"{ENTRY}/instrument_1/source_1/energy"
DEFINITION = f"{ENTRY}/definition"
NEXUS_DEFINITIONS = ("NXcxi_ptycho", "NXptycho")

BAD_PIXEL_BITS = 0xFFFF & ~0x0020
"""CXI 1.6, table of pixel masks: the lower 16 bits say what is wrong, but for 0x20 (inside a peak)."""


def is_cxi(file: h5py.File) -> bool:
    """Whether the file has the frames where CXI and NXcxi_ptycho have them."""
    return any(has_dataset(file, path) for path in DATA)


def read_cxi(path: Path, limit: int | None = None, centre_px: tuple[int, int] | None = None) -> RawScan:
    """Read a scan.

    Parameters
    ----------
    path : Path
    limit : int, optional
        Frames to read at most.
    centre_px : tuple of int, optional
        Detector pixel (row, column) of the zero frequency, where the file states none or a wrong one.

    Returns
    -------
    RawScan
        Positions are (y, x) of the translation (x, y, z) as stored, in the file's own sense; frames are cut to the
        largest square about the beam's centre, which is ``[H//2, W//2]`` unless the file states one. Pixels that the
        mask calls bad are 0.

    Raises
    ------
    InputError
        The file lacks frames or positions, or has a unit that is not known.

    Notes
    -----
    CXI (Maia, Nat. Methods 9, 854 (2012)) is in SI units and its ``source_1/energy`` is the photons'; in NXcxi_ptycho
    numbers carry their units, and ``source_1/energy`` is the machine's: there the photon energy is ``beam_1``'s.
    """
    with open_file(path) as file:
        name = next((candidate for candidate in DATA if has_dataset(file, candidate)), None)
        if name is None:
            raise InputError(f"{path}: no dataset {DATA[0]}", "a CXI file has its frames there", "check the file")
        frames = dataset(file, name)
        rows = _frame_rows(frames, limit)
        position = _positions_m(file)
        if limit is not None:
            position = position[:limit]
        window, square = square_window(frames.shape[-2:], centre_px or _beam_centre_px(file, frames.shape[-2:]))
        mask = _mask(file, frames.shape[-2:])
        mask = None if mask is None else mask[window]
        image = canonical_frames(FramesOnDemand(path, name, rows, window, mask))
        return RawScan(
            image,
            position,
            "m",
            stated=_stated(file, path),
            probe=_probe(file, image),
            mask=mask,
            metadata={"format": _definition(file) or "CXI", **square},
        )


def _frame_rows(frames: h5py.Dataset, limit: int | None) -> NDArray[np.int64]:
    """Frames to read, counted in C order: a scan is (n, H, W), a raster (ny, nx, H, W)."""
    if frames.ndim not in (3, 4):
        raise InputError(f"{frames.name} of shape {frames.shape}", "a scan is a stack of images")
    if not frames.size:
        raise InputError(f"{frames.name} of shape {frames.shape}", "a scan has at least one frame")
    return np.arange(int(np.prod(frames.shape[:-2])), dtype=np.int64)[:limit]


def _length_m(file: h5py.File, path: str) -> float | None:
    value = read_scalar(file, path)
    return None if value is None else value * _factor_m(dataset(file, path))


def _factor_m(item: h5py.Dataset) -> float:
    unit = read_string(item.attrs.get("units", "m"))
    return length_factor_m(unit or "m", str(item.name))


def _positions_m(file: h5py.File) -> NDArray[np.float64]:
    for path in TRANSLATION:
        if has_dataset(file, path):
            item = dataset(file, path)
            xyz = real_numbers(item[()], path) * _factor_m(item)
            if xyz.ndim != 2 or xyz.shape[1] not in (2, 3):
                raise InputError(f"{path} of shape {xyz.shape}", "a translation is (n, 3): x, y, z")
            return xyz[:, [1, 0]]
    motors = file.get(MOTORS)
    if isinstance(motors, h5py.Group) and has_dataset(motors, "x") and has_dataset(motors, "y"):
        y, x = (dataset(motors, axis) for axis in ("y", "x"))
        columns = [real_numbers(item[()], str(item.name)).ravel() * _factor_m(item) for item in (y, x)]
        if len(columns[0]) != len(columns[1]):
            raise InputError(f"{len(columns[0])} y and {len(columns[1])} x positions", "every frame has both")
        return np.stack(columns, axis=1)
    raise InputError(
        f"{file.filename}: no positions",
        f"a CXI scan has {TRANSLATION[0]}, an NXcxi_ptycho one {MOTORS}/x and y",
        "add the positions to the file",
    )


def _definition(file: h5py.File) -> str:
    name = read_string(dataset(file, DEFINITION)[()]) if has_dataset(file, DEFINITION) else ""
    return name if name in NEXUS_DEFINITIONS else ""


def _stated(file: h5py.File, path: Path) -> StatedGeometry:
    energy_eV = None
    for name in BEAM_ENERGY:
        value = read_scalar(file, name)
        if energy_eV is None and value is not None:
            unit = read_string(dataset(file, name).attrs.get("units", "J"))
            energy_eV = value * energy_factor_ev(unit or "J", name)
    source = read_scalar(file, SOURCE_ENERGY)
    if energy_eV is None and source is not None and not _definition(file):
        unit = read_string(dataset(file, SOURCE_ENERGY).attrs.get("units", "J"))
        energy_eV = source * energy_factor_ev(unit or "J", SOURCE_ENERGY)
    x_pixel_m, y_pixel_m = (_length_m(file, f"{_DETECTOR}/{axis}_pixel_size") for axis in "xy")
    if x_pixel_m is not None and y_pixel_m is not None and not np.isclose(x_pixel_m, y_pixel_m, rtol=1e-3, atol=0.0):
        raise InputError(
            f"{path}: detector pixels of {x_pixel_m} × {y_pixel_m} m", "pixels are square", "rebin the frames"
        )
    return StatedGeometry(energy_eV, _length_m(file, f"{_DETECTOR}/distance"), x_pixel_m or y_pixel_m)


def _beam_centre_px(file: h5py.File, shape: tuple[int, ...]) -> tuple[int, int]:
    """Row and column of the zero frequency: NXcxi_ptycho's beam centre (a length), else the middle."""
    centre = []
    for axis, size in zip("yx", shape, strict=True):
        value, pitch = (
            _length_m(file, f"{_DETECTOR}/{name}") for name in (f"beam_center_{axis}", f"{axis}_pixel_size")
        )
        centre.append(size // 2 if value is None or pitch is None else round(value / pitch))
    return centre[0], centre[1]


def _mask(file: h5py.File, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    if not has_dataset(file, MASK):
        return None
    bits = np.asarray(dataset(file, MASK)[()])
    if bits.dtype.kind not in "uib":
        raise InputError(f"{MASK} of type {bits.dtype}", "a mask holds whole numbers, bits that say what is wrong")
    bits = bits[0] if bits.ndim == 3 else bits
    if bits.shape != shape:
        raise InputError(f"{MASK} of shape {bits.shape}", f"frames are {shape}")
    return (bits.astype(np.int64) & BAD_PIXEL_BITS) == 0


def _probe(file: h5py.File, image: NDArray[Any] | FramesOnDemand) -> NDArray[np.complex64] | None:
    for path in PROBE:
        if has_dataset(file, path):
            probe = np.asarray(dataset(file, path)[()])
            if np.iscomplexobj(probe) and probe.shape[-2:] == image.shape[-2:]:
                return scaled_probe(probe, image)
    return None
