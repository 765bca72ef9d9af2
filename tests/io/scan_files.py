"""Writers of every format that the package reads, from one small simulated scan."""

from __future__ import annotations

import bz2
import io
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from ptycho_bluesky.geometry import Geometry, spiral_positions_m
from ptycho_bluesky.io import area_detector
from ptycho_bluesky.io.units import ELECTRON_VOLT_J
from ptycho_bluesky.simulation import Experiment, demo_map

GEOMETRY = Geometry(10e3, 0.9, 75e-6, 64)


@dataclass(frozen=True)
class Scan:
    image: np.ndarray
    position_m: np.ndarray
    i0: np.ndarray
    probe: np.ndarray
    experiment: Experiment

    @property
    def unique_id(self):
        return np.arange(len(self.image)) + 100

    @property
    def timestamp_s(self):
        return 1.7e9 + np.arange(len(self.image)) * 5e-4


def simulate(num_points=12) -> Scan:
    sample = demo_map(1, size_m=2.5e-6, num_letters=0, pixel_size_m=GEOMETRY.object_pixel_m)
    experiment = Experiment.default(64, sample)
    scan = experiment.render(spiral_positions_m(num_points, 100e-9), 1e-3)
    return Scan(scan.image, scan.position_m, scan.i0, experiment.probe, experiment)


def write_tike(path: Path, scan: Scan) -> Path:
    corner = scan.position_m / GEOMETRY.object_pixel_m - 32
    arrays = {
        "data": np.fft.ifftshift(scan.image, axes=(-2, -1))[None].astype(np.float32),
        "scan": corner[None].astype(np.float32),
        "probe": scan.probe[None, None, None, None],
    }
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    content = stream.getvalue()
    path.write_bytes(bz2.compress(content) if path.suffix == ".bz2" else content)
    return path


def write_ptychonn(path: Path, scan: Scan) -> Path:
    np.savez_compressed(
        path,
        reciprocal=scan.image.astype(np.float32),
        real=np.ones(scan.image.shape, np.complex64),
        position=scan.position_m,
        pixelsize=GEOMETRY.object_pixel_m,
    )
    return path


def write_cxi(path: Path, scan: Scan) -> Path:
    with h5py.File(path, "w") as file:
        file["cxi_version"] = 160
        detector = file.create_group("/entry_1/instrument_1/detector_1")
        detector["data"] = scan.image
        detector["distance"] = GEOMETRY.distance_m
        detector["x_pixel_size"] = detector["y_pixel_size"] = GEOMETRY.detector_pixel_m
        file["/entry_1/instrument_1/source_1/energy"] = GEOMETRY.energy_eV * ELECTRON_VOLT_J
        xyz = np.stack([scan.position_m[:, 1], scan.position_m[:, 0], np.zeros(len(scan.image))], axis=1)
        file["/entry_1/sample_1/geometry_1/translation"] = xyz
        file["/entry_1/data_1/data"] = h5py.SoftLink("/entry_1/instrument_1/detector_1/data")
        file["/entry_1/instrument_1/source_1/illumination"] = scan.probe
        mask = np.zeros(scan.image.shape[1:], np.uint32)
        mask[3, 5] = 0x8
        mask[4, 4] = 0x10020
        detector["mask"] = mask
    return path


def write_nxcxi(path: Path, scan: Scan) -> Path:
    """An off-centre rectangular detector, numbers in their own units, the machine's energy beside the photons'."""
    wide = np.zeros((len(scan.image), 66, 90), scan.image.dtype)
    wide[:, :64, 20:84] = scan.image
    with h5py.File(path, "w") as file:
        entry = file.create_group("entry_1")
        entry["definition"] = "NXcxi_ptycho"
        detector = file.create_group("/entry_1/instrument_1/detector_1")
        detector["data"] = wide
        for name, value, unit in (
            ("distance", 900.0, "mm"),
            ("x_pixel_size", 75.0, "um"),
            ("y_pixel_size", 75.0, "um"),
            ("beam_center_x", 52 * 75e-3, "mm"),
            ("beam_center_y", 32 * 75e-3, "mm"),
        ):
            detector[name] = value
            detector[name].attrs["units"] = unit
        file["/entry_1/instrument_1/source_1/energy"] = 6.0
        file["/entry_1/instrument_1/source_1/energy"].attrs["units"] = "GeV"
        file["/entry_1/instrument_1/beam_1/energy"] = 10.0
        file["/entry_1/instrument_1/beam_1/energy"].attrs["units"] = "keV"
        for axis, column in (("y", 0), ("x", 1)):
            file[f"/entry_1/sample_1/transformations/{axis}"] = scan.position_m[:, column] * 1e6
            file[f"/entry_1/sample_1/transformations/{axis}"].attrs["units"] = "um"
        file["/entry_1/data_1/data"] = h5py.SoftLink("/entry_1/instrument_1/detector_1/data")
    return path


def write_area_detector(path: Path, scan: Scan, geometry: Geometry | None = GEOMETRY) -> Path:
    with h5py.File(path, "w", libver="latest") as file:
        datasets = area_detector.create_datasets(file, scan.image.shape[1:], scan.image.dtype, geometry=geometry)
        file.swmr_mode = True
        for rows in (slice(0, 5), slice(5, None)):
            area_detector.append_rows(
                datasets,
                scan.image[rows],
                scan.unique_id[rows],
                timestamp_s=scan.timestamp_s[rows],
                position_y_m=scan.position_m[rows, 0],
                position_x_m=scan.position_m[rows, 1],
                i0=scan.i0[rows],
            )
            file.flush()
    return path
