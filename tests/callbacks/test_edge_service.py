"""The edge's service with a Tiled server: models from it, finished runs caught up, results into it."""

from __future__ import annotations

import hashlib
import json
import time

import numpy as np
import pytest

from ptycho_bluesky.callbacks.edge_service import EdgeService
from ptycho_bluesky.config import Settings, TiledSettings, ZmqSettings
from ptycho_bluesky.demo.processes import free_ports
from ptycho_bluesky.geometry import Geometry, spiral_positions_m
from ptycho_bluesky.io import area_detector
from ptycho_bluesky.records import ModelRecord, ModelStage
from ptycho_bluesky.workflow.server import start_server
from ptycho_bluesky.workflow.tiled_store import TiledStore

pytestmark = pytest.mark.slow
N, SIZE = 30, 16
GEOMETRY = Geometry(10_000.0, 1.0, 75e-6, SIZE)


def wait_for(condition, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.05)


def journal_a_run(settings, uid):
    """A finished run: its journal and the detector's file."""
    import h5py

    position = spiral_positions_m(N, 2e-7)
    image = np.random.default_rng(0).poisson(20, (N, SIZE, SIZE)).astype(np.uint16)
    settings.raw_dir.mkdir(parents=True)
    path = settings.raw_dir / f"{uid}.h5"
    with h5py.File(path, "w", libver="latest") as file:
        datasets = area_detector.create_datasets(file, (SIZE, SIZE), image.dtype, geometry=GEOMETRY)
        columns = {"position_y_m": position[:, 0], "position_x_m": position[:, 1], "timestamp_s": np.arange(N) + 1e9}
        area_detector.append_rows(datasets, image, np.arange(1, N + 1), **columns)
    ptycho = {
        "geometry": GEOMETRY.as_dict(),
        "frame_shape": [SIZE, SIZE],
        "detector": {"channel": "elsewhere", "image_key": "det_image"},
    }
    documents = [("start", {"uid": uid, "time": 1e9, "ptycho": ptycho})]
    segment = {"segment_index": 0, "first_unique_id": 1, "first_frame_index": 0, "num_frames": N}
    for stream, data in (("segments", segment), ("segment_ends", {"segment_index": 0, "frames_generated": N})):
        documents.append(("descriptor", {"uid": stream, "run_start": uid, "name": stream}))
        documents.append(("event", {"descriptor": stream, "time": 1e9, "seq_num": 1, "data": data}))
    names = {"image": area_detector.FRAMES, "unique_id": area_detector.UNIQUE_ID, **area_detector.COLUMNS}
    for name, dataset in names.items():
        resource = {"uid": name, "run_start": uid, "data_key": f"det_{name}", "uri": f"file://localhost{path}"}
        documents.append(("stream_resource", {**resource, "parameters": {"dataset": dataset}}))
    documents.append(("stop", {"uid": "stop", "run_start": uid, "exit_status": "success"}))
    settings.journal_dir.mkdir(parents=True)
    text = "".join(json.dumps({"name": name, "doc": doc}) + "\n" for name, doc in documents)
    (settings.journal_dir / f"{uid}.jsonl").write_text(text)


def promote(store):
    import torch

    from ptycho_bluesky.models import build
    from ptycho_bluesky.models.export import to_onnx

    torch.manual_seed(0)
    content = to_onnx(build("ptychonn2"), (SIZE, SIZE), 1.0, {"sqrt": True, "scale": 0.1}, {})
    record = ModelRecord(
        hashlib.sha256(content).hexdigest(), "", ModelStage.CANDIDATE, "ptychonn2", (SIZE, SIZE), (SIZE, SIZE),
        float("nan"), 1.0, (), {}, {}, None, {}, time.time(),
    )  # fmt: skip
    store.model_store.put(record, content)
    store.model_store.set_stage(record.model_id, ModelStage.PROMOTED, "test")
    return record.model_id


def test_service_with_tiled(tmp_path, epics_settings):
    port, publish, subscribe = free_ports(3)
    settings = Settings(
        data_dir=tmp_path,
        epics=epics_settings,
        tiled=TiledSettings(uri=f"http://127.0.0.1:{port}"),
        zmq=ZmqSettings(publish=f"127.0.0.1:{publish}", subscribe=f"127.0.0.1:{subscribe}"),
    )
    settings.edge.prefix = f"{epics_settings.prefix}service:"
    journal_a_run(settings, "finished-run")
    service = EdgeService(settings)
    try:
        service.start()  # nothing answers yet: neither proxy nor Tiled
        assert service.slot.model_id == ""
        with start_server(settings), TiledStore.connect(settings.tiled) as store:
            wait_for(lambda: store.has_final_mosaic("finished-run"))
            stored = store.read_mosaic("finished-run")
            assert (stored.counts.inferred, stored.counts.lost, stored.counts.unaccounted) == (N, 0, 0)
            model_id = promote(store)
            wait_for(lambda: service.slot.model_id == model_id)
            service.close()
    finally:
        service.close()
