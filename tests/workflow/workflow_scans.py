"""Runs as a session would make them: a detector file and the documents that point to it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import event_model
import h5py
import numpy as np

from ptycho_bluesky.geometry import Geometry, spiral_positions_m
from ptycho_bluesky.io import area_detector as ad

GEOMETRY = Geometry(10_000.0, 0.9, 75e-6, 32)
COLUMN_PATHS = {
    "image": ad.FRAMES,
    "unique_id": ad.UNIQUE_ID,
    "timestamp_s": ad.TIMESTAMP,
    "position_y_m": ad.POSITION_Y,
    "position_x_m": ad.POSITION_X,
    "i0": ad.I0,
}
T0 = 1_700_000_000.0


@dataclass
class Scan:
    """What a run should hold, by frame index, and how it is split over armings."""

    image: np.ndarray
    position_m: np.ndarray
    segments: Sequence[tuple[int, int, int, int]] = ()
    """(first unique id, first frame index, frames armed for, frames generated) of each arming."""
    rows: Sequence[tuple[int, int]] = ()
    """(unique id, frame index) of each row of the file, in its order."""
    purpose: str = "train"
    exit_status: str = "success"
    geometry: Geometry | None = GEOMETRY
    pixel_size_m: float | None = None
    announced: int | None = None
    """Rows that the documents announce; by default all."""
    uid: str = ""
    path: Path = Path()
    documents: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


def make_scan(n: int = 24, size: int = 32, seed: int = 0, first_id: int = 101, **options: Any) -> Scan:
    rng = np.random.default_rng(seed)
    image = rng.poisson(5.0, (n, size, size)).astype(np.uint16)
    image[:, 0, 0] = np.arange(n)
    position = spiral_positions_m(n, 50e-9) + rng.normal(0, 1e-9, (n, 2))
    options.setdefault("segments", [(first_id, 0, n, n)])
    options.setdefault("rows", [(first_id + k, k) for k in range(n)])
    return Scan(image, position, **options)


def write_file(scan: Scan, path: Path, close: bool = True) -> h5py.File | None:
    """Write the detector's file; left open for SWMR writing when ``close`` is false."""
    file = h5py.File(path, "w", libver="latest")
    datasets = ad.create_datasets(file, scan.image.shape[1:], scan.image.dtype, geometry=scan.geometry)
    file.swmr_mode = True
    ids = np.array([unique_id for unique_id, _ in scan.rows], dtype=np.int64)
    index = np.array([frame for _, frame in scan.rows])
    ad.append_rows(
        datasets,
        scan.image[index],
        ids,
        timestamp_s=T0 + 1e-3 * np.arange(len(ids)),
        position_y_m=scan.position_m[index, 0],
        position_x_m=scan.position_m[index, 1],
        i0=np.full(len(ids), 1e5),
    )
    file.flush()
    scan.path = path
    if close:
        file.close()
        return None
    return file


def compose(scan: Scan, step_points: bool = False, stop: bool = True) -> list[tuple[str, dict[str, Any]]]:
    """Documents of the run, in order."""
    documents: list[tuple[str, dict[str, Any]]] = []
    n = len(scan.image)
    run = event_model.compose_run(
        metadata={
            "plan_name": "fly_spiral_ptycho",
            "scan_id": 1,
            "num_points": n,
            "detectors": ["det"],
            "motors": ["stage_y", "stage_x"],
            "hints": {},
            "tiled_specs": ["ptycho"],
            "sample": "letters",
            "ptycho": {
                "version": 1,
                "geometry": scan.geometry.as_dict() if scan.geometry else None,
                "pixel_size_m": scan.pixel_size_m or (scan.geometry.object_pixel_m if scan.geometry else None),
                "frame_shape": list(scan.image.shape[1:]),
                "scan": {"pattern": "spiral", "num_points": n, "step_m": 50e-9},
                "detector": {"channel": "T:Image", "image_key": "det_image", "zero_frequency": "centre"},
                "purpose": scan.purpose,
                "simulated": True,
            },
        }
    )
    scan.uid = run.start_doc["uid"]
    documents.append(("start", run.start_doc))

    def add_stream(name: str, rows: Iterable[dict[str, Any]]) -> None:
        rows = list(rows)
        if not rows:
            return
        keys = {
            key: {
                "source": "test",
                "dtype": "array" if np.ndim(value) else "integer" if isinstance(value, int) else "number",
                "shape": list(np.shape(value)),
            }
            for key, value in rows[0].items()
        }
        bundle = run.compose_descriptor(name=name, data_keys=keys)
        documents.append(("descriptor", bundle.descriptor_doc))
        for row in rows:
            event = bundle.compose_event(data=row, timestamps=dict.fromkeys(row, T0))
            documents.append(("event", event))

    add_stream(
        "trajectory",
        [
            {
                "planned_y_m": scan.position_m[:, 0].round(9).tolist(),
                "planned_x_m": scan.position_m[:, 1].round(9).tolist(),
            }
        ],
    )
    add_stream(
        "segments",
        (
            {
                "segment_index": k,
                "first_unique_id": first_id,
                "first_frame_index": first,
                "num_frames": frames,
                "pva_channel": 0,
            }
            for k, (first_id, first, frames, _) in enumerate(scan.segments)
        ),
    )
    _add_primary(scan, run, documents, step_points)
    add_stream(
        "segment_ends",
        (
            {"segment_index": k, "frames_generated": generated, "last_unique_id": first_id + generated - 1}
            for k, (first_id, _, _, generated) in enumerate(scan.segments)
        ),
    )
    if stop:
        documents.append(("stop", run.compose_stop(exit_status=scan.exit_status)))
    scan.documents = documents
    return documents


def _add_primary(scan: Scan, run: Any, documents: list[tuple[str, dict[str, Any]]], step_points: bool) -> None:
    external = {}
    for name in COLUMN_PATHS:
        shape = list(scan.image.shape[1:]) if name == "image" else []
        kind = "<u2" if name == "image" else "<i8" if name == "unique_id" else "<f8"
        external[f"det_{name}"] = {
            "source": "test",
            "dtype": "array" if shape else "number",
            "dtype_numpy": kind,
            "shape": shape,
            "external": "STREAM:",
        }
    internal = {"stage_y": {"source": "test", "dtype": "number", "shape": []}} if step_points else {}
    bundle = run.compose_descriptor(name="primary", data_keys=external | internal)
    documents.append(("descriptor", bundle.descriptor_doc))
    resources = {}
    for name, dataset in COLUMN_PATHS.items():
        chunk = [1, *scan.image.shape[1:]] if name == "image" else [ad.COLUMN_CHUNK_ROWS]
        resources[name] = run.compose_stream_resource(
            mimetype="application/x-hdf5",
            uri=f"file://localhost{scan.path}",
            data_key=f"det_{name}",
            parameters={"dataset": dataset, "chunk_shape": chunk, "swmr": True},
        )
        documents.append(("stream_resource", resources[name].stream_resource_doc))
    total = len(scan.rows) if scan.announced is None else scan.announced
    edges = range(total + 1) if step_points else [0, total // 2, total]
    for start, stop in zip(list(edges)[:-1], list(edges)[1:], strict=True):
        for resource in resources.values():
            datum = resource.compose_stream_datum(
                indices={"start": start, "stop": stop},
                seq_nums={"start": start + 1, "stop": stop + 1},
                descriptor=bundle.descriptor_doc,
            )
            documents.append(("stream_datum", datum))
        if step_points:
            data = {"stage_y": float(scan.position_m[start, 0])}
            documents.append(
                ("event", bundle.compose_event(data=data, timestamps={"stage_y": T0 + start}, seq_num=start + 1))
            )


def journal(scan: Scan, folder: Path, count: int | None = None, start: int = 0) -> Path:
    """Append documents to the run's journal, as bluesky's JSONLinesWriter lays it out."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{scan.uid}.jsonl"
    with path.open("a") as file:
        for name, doc in scan.documents[start:count]:
            file.write(json.dumps({"name": name, "doc": doc}, default=_plain) + "\n")
    return path


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(value)
