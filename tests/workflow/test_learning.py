"""The learning loop with its real stages: two simulated runs through journal, writer, Tiled and worker."""

from __future__ import annotations

import threading
import time
import uuid

import numpy as np
import pytest
from workflow_scans import Scan, compose, journal, write_file

from ptycho_bluesky.config import Settings
from ptycho_bluesky.geometry import spiral_positions_m
from ptycho_bluesky.models.export import read_manifest
from ptycho_bluesky.records import ModelStage
from ptycho_bluesky.simulation.experiment import Experiment, default_geometry
from ptycho_bluesky.simulation.sample_map import Area, SampleMap
from ptycho_bluesky.workflow.run_state import read_stage, run_folder
from ptycho_bluesky.workflow.validation import away_from, split_labels
from ptycho_bluesky.workflow.worker import Worker
from ptycho_bluesky.workflow.writer import JournalWriter

FRAMES = 150
CENTRES_M = {"reserved": (0.0, 0.0), "train": (0.0, 8e-6), "test": (8e-6, 0.0)}


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    geometry = default_geometry(64)
    areas = [Area("shapes", centre, 5e-6, seed=k, name=name) for k, (name, centre) in enumerate(CENTRES_M.items())]
    return Experiment.default(64, SampleMap(areas, geometry.object_pixel_m), position_jitter_m=2e-9)


def measure(experiment: Experiment, settings: Settings, raw_dir, purpose: str) -> Scan:
    """One scan as a session would leave it: a file, and a journal."""
    position = spiral_positions_m(FRAMES, 90e-9, CENTRES_M[purpose])
    rendered = experiment.render(position, 0.4, seed=len(purpose))
    scan = Scan(
        rendered.image,
        rendered.position_m,
        segments=[(1, 0, FRAMES, FRAMES)],
        rows=[(1 + k, k) for k in range(FRAMES)],
        purpose=purpose,
        geometry=experiment.geometry,
    )
    write_file(scan, raw_dir / f"{uuid.uuid4().hex}.h5")
    compose(scan)
    journal(scan, settings.journal_dir)
    time.sleep(0.01)
    return scan


@pytest.mark.slow
def test_loop(experiment, settings, store, raw_dir):
    settings.reconstruct.iterations = 25
    settings.train.frames_per_scan = 2000
    settings.train.num_threads = 1
    settings.worker.executor = "processes"
    scans = {purpose: measure(experiment, settings, raw_dir, purpose) for purpose in CENTRES_M}
    writer = JournalWriter(settings)
    while writer.step():
        pass
    writer.close()
    Worker(settings).run(threading.Event(), once=True)

    decision = store.decision(scans["train"].uid)
    figures = decision["figures"]
    assert decision["outcome"] in ("promoted", "rejected"), decision["reason"]
    assert figures["validation"] == f"reserved run {scans['reserved'].uid}"
    assert figures["epie_error_last"] < figures["epie_error_first"]
    assert figures["train_frame_updates"] >= 1900
    assert figures["ssim_serving"] is None
    over_constant = figures["candidate_score"] - figures["constant_score"]
    assert (decision["outcome"] == "promoted") == (over_constant > settings.worker.over_constant)
    record, content = store.model_store.get(decision["model_id"])
    assert record.training_runs == (scans["train"].uid,)
    assert record.stage is ModelStage(decision["outcome"])
    assert record.validation["score"] == pytest.approx(figures["candidate_score"])
    assert tuple(read_manifest(content)["image_shape"]) == (64, 64)

    for purpose in ("reserved", "test"):
        other = store.decision(scans[purpose].uid)
        assert other["outcome"] == "skipped"
        assert other["figures"]["label_explained"] > 0.65
        assert -0.2 < other["figures"]["ssim_constant"] < 0.9
    if decision["outcome"] == "promoted":
        # The test run came after the model: it was read by it, and not learned from.
        assert store.decision(scans["test"].uid)["figures"]["ssim_serving"] is not None
    labels = store.read_labels(scans["train"].uid)
    rows = {int(index): row for row, index in enumerate(labels.frame_index)}
    assert len(rows) == FRAMES
    measured = scans["train"].image[labels.frame_index]
    usable = measured < np.iinfo(measured.dtype).max  # saturated pixels are filled from their neighbours
    assert usable.mean() > 0.99
    np.testing.assert_array_equal(labels.image[usable], measured[usable])
    assert (labels.image[~usable] < np.iinfo(measured.dtype).max).all()
    reconstruction = store.read_reconstruction(scans["train"].uid)
    assert reconstruction.geometry == experiment.geometry
    assert read_stage(settings, scans["train"].uid) == decision["outcome"]
    assert not run_folder(settings, scans["train"].uid).measurement.exists()

    parts = split_labels(labels)
    assert parts is None or len(parts[0]) + len(parts[1]) <= FRAMES
    assert away_from(labels, [labels.position_m]) is None
    kept = away_from(labels, [labels.position_m + 1e-5])
    assert kept is labels
