"""Products on disk: reconstructions in the layout of ptychodus.

Every product carries its geometry, its units, what made it and with which versions; with an unknown geometry it carries
``position_px`` and says ``geometry: unknown``.
"""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np

from ptycho_bluesky._version import __version__
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import Geometry, ObjectFrame
from ptycho_bluesky.io.hdf5 import dataset, has_dataset, open_file, read_string
from ptycho_bluesky.io.inference_file import InferenceWriter, StoredInference, read_inference
from ptycho_bluesky.io.storage import UNKNOWN, read_geometry, replacing, to_json, write_geometry
from ptycho_bluesky.io.units import real_numbers
from ptycho_bluesky.records import Reconstruction

__all__ = [
    "InferenceWriter",
    "StoredInference",
    "read_inference",
    "read_reconstruction",
    "write_reconstruction",
]


def write_reconstruction(path: str | Path, reconstruction: Reconstruction) -> None:
    """Write a reconstruction in ptychodus' product layout.

    Parameters
    ----------
    path : path
        Written beside and renamed when complete, so that a reader never sees half a file.
    reconstruction : Reconstruction

    Raises
    ------
    StorageError
        The disk is full or the folder cannot be written.

    Notes
    -----
    ``object_array`` (1, rows, cols) and ``probe_array`` (1, modes, N, N), linked as ``object`` and ``probe`` (the names
    that ptychodus' own reader looks for), ``probe_position_{indexes,x_m,y_m}``, ``loss_{epochs,values}`` and the
    attributes of its version 1; the object's centre is the edge between its middle pixels. What it has no place for
    (engine, options, provenance, the exact placement) lies in the group ``ptycho_bluesky``.
    """
    path = Path(path)
    with replacing(path) as file:
        _write_product_attributes(file, reconstruction)
        frame = reconstruction.frame
        known = reconstruction.geometry is not None or frame.pixel_size_m != 1.0
        obj = file.create_dataset("object_array", data=np.asarray(reconstruction.object)[None])
        probe = file.create_dataset("probe_array", data=np.asarray(reconstruction.probe)[None])
        file["object"], file["probe"] = obj, probe
        unit = "m" if known else "px"
        for item in (obj, probe):
            item.attrs[f"pixel_height_{unit}"] = item.attrs[f"pixel_width_{unit}"] = frame.pixel_size_m
        for axis, name in enumerate(("y", "x")):
            half = frame.shape[axis] / 2 * frame.pixel_size_m
            obj.attrs[f"center_{name}_{unit}"] = frame.origin_m[axis] + half
        probe.attrs["units"] = "sqrt(counts)"
        position = np.asarray(reconstruction.position_m, dtype=np.float64)
        file["probe_position_indexes"] = np.arange(len(position))
        if known:
            for axis, name in enumerate(("y", "x")):
                item = file.create_dataset(f"probe_position_{name}_m", data=position[:, axis])
                item.attrs["units"] = "m"
        else:
            file.create_dataset("position_px", data=position).attrs["units"] = "px"
        file["object_layer_spacing_m"] = np.zeros(0)
        file["loss_epochs"] = np.arange(len(reconstruction.error))
        file["loss_values"] = np.asarray(reconstruction.error, dtype=np.float64)
        own = file.create_group("ptycho_bluesky")
        write_geometry(own, reconstruction.geometry)
        own.attrs["frame"] = to_json(frame.as_dict())
        own.attrs["engine"], own.attrs["run_uid"] = reconstruction.engine, reconstruction.run_uid
        own.attrs["options"] = to_json(dict(reconstruction.options))
        # A dataset, not an attribute: these end at 64 KiB, which the list of some 10 000 frames exceeds.
        own["provenance"] = to_json(dict(reconstruction.provenance))
        own.attrs["version"] = __version__


def _write_product_attributes(file: h5py.File, reconstruction: Reconstruction) -> None:
    geometry = reconstruction.geometry
    file.attrs["name"] = reconstruction.run_uid or "unnamed"
    file.attrs["comments"] = f"{reconstruction.engine}, ptycho_bluesky {__version__}"
    write_geometry(file, geometry)
    # ptychodus writes 0 where a number is not known.
    file.attrs["detector_object_distance_m"] = 0.0 if geometry is None else geometry.distance_m
    file.attrs["probe_energy_eV"] = 0.0 if geometry is None else geometry.energy_eV
    file.attrs["probe_photon_count"] = float(np.sum(np.abs(reconstruction.probe) ** 2))
    for name in ("exposure_time_s", "mass_attenuation_m2_kg", "tomography_angle_deg"):
        file.attrs[name] = 0.0


def read_reconstruction(path: str | Path) -> Reconstruction:
    """Read what `write_reconstruction` or ptychodus wrote.

    Parameters
    ----------
    path : path

    Returns
    -------
    Reconstruction
        Of a multi-slice object the layers' product; of a probe that varies the first member.

    Raises
    ------
    InputError
        The file is no product.
    """
    with open_file(path) as file:
        obj = dataset(file, "object_array" if has_dataset(file, "object_array") else "object")
        layers = np.asarray(obj[()])
        layers = layers.reshape(-1, *layers.shape[-2:])
        item = dataset(file, "probe_array" if has_dataset(file, "probe_array") else "probe")
        probe = np.asarray(item[()])
        probe = (probe[0] if probe.ndim == 4 else probe).reshape(-1, *probe.shape[-2:])
        if has_dataset(file, "position_px"):
            position = real_numbers(dataset(file, "position_px")[()], "position_px")
        else:
            names = ("probe_position_y_m", "probe_position_x_m")
            position = np.stack([real_numbers(dataset(file, n)[()], n) for n in names], axis=1)
        losses = "loss_values" if has_dataset(file, "loss_values") else "costs"
        error = real_numbers(dataset(file, losses)[()], losses) if has_dataset(file, losses) else np.zeros(0)
        own = file.get("ptycho_bluesky")
        if isinstance(own, h5py.Group):
            text = {name: read_string(own.attrs[name]) for name in ("frame", "engine", "options", "run_uid")}
            stored = own.attrs if "provenance" in own.attrs else own
            text["provenance"] = read_string(np.asarray(stored["provenance"]))
            frame = ObjectFrame.from_dict(json.loads(text["frame"]))
            options, provenance = json.loads(text["options"]), json.loads(text["provenance"])
            geometry, engine, run_uid = read_geometry(own), text["engine"], text["run_uid"]
        else:
            frame, geometry = _foreign_frame(obj), _foreign_geometry(file, obj, probe.shape[-1])
            options, provenance, engine = {}, {}, UNKNOWN
            run_uid = read_string(file.attrs.get("name", ""))
    return Reconstruction(
        np.prod(layers, axis=0), probe, position, frame, error, geometry, engine, options, run_uid, provenance
    )


def _foreign_frame(obj: h5py.Dataset) -> ObjectFrame:
    names = ("pixel_height_m", "pixel_width_m", "center_y_m", "center_x_m")
    missing = [name for name in names if name not in obj.attrs]
    if missing:
        raise InputError(
            f"{obj.file.filename}: object without {', '.join(missing)}", "a product says where its object lies"
        )
    height, width, y, x = (float(np.asarray(obj.attrs[name])) for name in names)
    if not np.isclose(height, width, rtol=1e-3, atol=0.0):
        raise InputError(f"object pixels of {height} × {width} m", "pixels are square", "resample the product")
    rows, cols = (int(n) for n in obj.shape[-2:])
    return ObjectFrame((y - rows / 2 * height, x - cols / 2 * height), height, (rows, cols))


def _foreign_geometry(file: h5py.File, obj: h5py.Dataset, num_px: int) -> Geometry | None:
    energy, distance = (
        float(np.asarray(file.attrs.get(name, 0.0))) for name in ("probe_energy_eV", "detector_object_distance_m")
    )
    if not (energy > 0 and distance > 0):
        return None
    pixel_m = float(np.asarray(obj.attrs["pixel_width_m"]))
    unit = Geometry(energy, distance, 1.0, num_px)
    return Geometry(energy, distance, unit.wavelength_m * distance / (num_px * pixel_m), num_px)
