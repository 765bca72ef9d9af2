"""A run in Tiled, by its uid, on the command line: calibrated, reconstructed, warm-started, labelled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import yaml
from bluesky_tiled_plugins import TiledWriter
from typer.testing import CliRunner
from workflow_scans import Scan, compose, write_file

from ptycho_bluesky.cli.main import build_app
from ptycho_bluesky.geometry import apply_d4, spiral_positions_m
from ptycho_bluesky.io import read_reconstruction
from ptycho_bluesky.records import FrameCounts, Mosaic
from ptycho_bluesky.simulation import Experiment, default_geometry, demo_map
from ptycho_bluesky.training.corpus import read_label_set

GEOMETRY = default_geometry(64)
NUM = 120


@pytest.fixture(scope="module")
def rendered():
    sample = demo_map(1, size_m=4e-6, pixel_size_m=GEOMETRY.object_pixel_m, seed=1, num_letters=0)
    experiment = Experiment.default(64, sample)
    return experiment, experiment.render(spiral_positions_m(NUM, 1e-7), 5e-3, seed=1)


@pytest.fixture
def command(settings):
    settings.to_yaml(settings.data_dir / "c.yml")

    def call(*arguments):
        config = ["--config", str(settings.data_dir / "c.yml")]
        result = CliRunner().invoke(build_app(), [*map(str, arguments), *config], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result

    return call


def ingest(store, path, image, position_m) -> str:
    scan = Scan(image, position_m, [(1, 0, NUM, NUM)], [(k + 1, k) for k in range(NUM)], geometry=GEOMETRY)
    write_file(scan, path)
    writer = TiledWriter(store.raw)
    for name, doc in compose(scan):
        writer(name, doc)
    return scan.uid


def test_calibrate_and_reconstruct_a_run(rendered, command, store, raw_dir, tmp_path):
    _, scan = rendered
    frames = np.zeros((NUM, 80, 96), dtype=np.uint16)
    frames[:, 9:73, 20:84] = apply_d4(scan.image, "rot90")
    uid = ingest(store, raw_dir / "off-centre.h5", frames, scan.position_m)
    out = tmp_path / "calibration.yml"
    command("calibrate", uid, "--out", out, "--num-px", 64, "--prior", "absorbing", "--no-pixel")
    content = yaml.safe_load(out.read_text())
    assert content["detector"]["centre_px"] == [41, 52]
    assert content["geometry"] == {"orientation": "rot270"}
    assert content["measured"]["scan"] == f"run {uid}"

    product = tmp_path / "out.h5"
    options = ["--iterations", 8, "--half-scans", 0, "--no-picture"]
    command("reconstruct", uid, "--calibration", out, "--out", product, *options)
    found = read_reconstruction(product)
    assert found.run_uid == uid
    assert found.geometry == replace(GEOMETRY, orientation="rot270")
    assert found.error[-1] < 0.2 * found.error[0]


def test_reconstruct_a_run_from_its_live_image(rendered, command, store, raw_dir, tmp_path):
    experiment, scan = rendered
    uid = ingest(store, raw_dir / "centred.h5", scan.image, scan.position_m)
    truth, frame = experiment.truth()
    flat = np.zeros(frame.shape, dtype=np.float32)
    phase = np.angle(truth).astype(np.float32)
    mosaic = Mosaic(phase, flat + 1, flat.astype(np.int32) + 5, flat, frame, uid, {"frame_index": np.arange(NUM)})
    store.write_mosaic(mosaic, FrameCounts(generated=NUM), complete=True)
    errors = {}
    for name, options in {"cold": [], "warm": ["--warm-start", "live"]}.items():
        product, labels = tmp_path / f"{name}.h5", tmp_path / f"{name}-labels.h5"
        options = [*options, "--iterations", 6, "--half-scans", 6, "--no-picture"]
        command("reconstruct", uid, "--out", product, "--labels", labels, *options)
        errors[name] = read_reconstruction(product).error
        assert read_label_set(labels).run_uid == uid
    assert errors["warm"][2] < errors["cold"][2]
