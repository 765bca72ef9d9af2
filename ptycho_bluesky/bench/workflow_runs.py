"""Runs as a session leaves them, without a session: a detector file, and the documents that point to it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import event_model
import h5py
import numpy as np

from ptycho_bluesky.geometry import spiral_positions_m
from ptycho_bluesky.io import area_detector as ad
from ptycho_bluesky.simulation import Area, Experiment, SampleMap, default_geometry
from ptycho_bluesky.workflow.client import jsonable

__all__ = ["Run", "journal", "make_runs"]

COLUMNS = {"image": ad.FRAMES, "unique_id": ad.UNIQUE_ID} | ad.COLUMNS
SIZE_PX = 64
STEP_M = 130e-9
EXPOSURE_S = 4e-3


@dataclass(frozen=True)
class Run:
    """One simulated run.

    Attributes
    ----------
    uid : str
    frames : int
    documents : list of tuple of str and dict
    """

    uid: str
    frames: int
    documents: list[tuple[str, dict[str, Any]]]


def make_runs(folder: Path, count: int, num_points: int, first: int = 0) -> list[Run]:
    """Simulate scans of random shapes, each of an area of its own, and write their files.

    Parameters
    ----------
    folder : path
        Of the detector files; Tiled must be able to read it.
    count, num_points : int
        Scans, and frames of each.
    first : int
        Seed of the first.
    """
    geometry = default_geometry(SIZE_PX)
    side = 2 * STEP_M * float(np.sqrt(num_points / np.pi)) + 1.5e-6
    runs = []
    for seed in range(first, first + count):
        area = Area("shapes", (0.0, 0.0), side, seed=seed)
        experiment = Experiment.default(SIZE_PX, SampleMap((area,), geometry.object_pixel_m))
        scan = experiment.render(spiral_positions_m(num_points, STEP_M), EXPOSURE_S, seed=seed)
        path = folder / f"scan-{seed:04d}.h5"
        folder.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w", libver="latest") as file:
            datasets = ad.create_datasets(file, scan.image.shape[1:], scan.image.dtype, geometry=geometry)
            file.swmr_mode = True
            ad.append_rows(
                datasets,
                scan.image,
                np.arange(1, num_points + 1),
                timestamp_s=np.asarray(EXPOSURE_S * np.arange(num_points), dtype=np.float64),
                position_y_m=scan.position_m[:, 0],
                position_x_m=scan.position_m[:, 1],
                i0=scan.i0,
            )
        runs.append(_documents(path, num_points, geometry.as_dict(), geometry.object_pixel_m, seed))
    return runs


def _documents(path: Path, frames: int, geometry: dict[str, Any], pixel_m: float, scan_id: int) -> Run:
    bundle: Any = event_model.compose_run(
        metadata={
            "plan_name": "fly_spiral_ptycho",
            "scan_id": scan_id,
            "num_points": frames,
            "tiled_specs": ["ptycho"],
            "ptycho": {
                "version": 1,
                "geometry": geometry,
                "pixel_size_m": pixel_m,
                "frame_shape": [SIZE_PX, SIZE_PX],
                "scan": {"pattern": "spiral", "num_points": frames, "step_m": STEP_M, "exposure_s": EXPOSURE_S},
                "detector": {"image_key": "det_image", "zero_frequency": "centre"},
                "purpose": "train",
                "simulated": True,
            },
        }
    )
    documents: list[tuple[str, dict[str, Any]]] = [("start", bundle.start_doc)]
    keys = {}
    for name in COLUMNS:
        image = name == "image"
        keys[f"det_{name}"] = {
            "source": "simulated",
            "dtype": "array" if image else "number",
            "dtype_numpy": "<u2" if image else "<i8" if name == "unique_id" else "<f8",
            "shape": [SIZE_PX, SIZE_PX] if image else [],
            "external": "STREAM:",
        }
    stream: Any = bundle.compose_descriptor(name="primary", data_keys=keys)
    documents.append(("descriptor", stream.descriptor_doc))
    for name, dataset in COLUMNS.items():
        chunk = [1, SIZE_PX, SIZE_PX] if name == "image" else [ad.COLUMN_CHUNK_ROWS]
        resource = bundle.compose_stream_resource(
            mimetype="application/x-hdf5",
            uri=f"file://localhost{path.resolve()}",
            data_key=f"det_{name}",
            parameters={"dataset": dataset, "chunk_shape": chunk, "swmr": True},
        )
        documents.append(("stream_resource", resource.stream_resource_doc))
        datum = resource.compose_stream_datum(
            indices={"start": 0, "stop": frames},
            seq_nums={"start": 1, "stop": frames + 1},
            descriptor=stream.descriptor_doc,
        )
        documents.append(("stream_datum", datum))
    documents.append(("stop", bundle.compose_stop()))
    return Run(bundle.start_doc["uid"], frames, documents)


def journal(run: Run, folder: Path) -> None:
    """Write a run's documents as a session journals them."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{run.uid}.jsonl").open("a") as file:
        for name, doc in run.documents:
            file.write(json.dumps({"name": name, "doc": jsonable(doc)}) + "\n")
