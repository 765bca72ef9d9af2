"""Patches smaller than frames, and networks with amplitude, from labels to the mosaic."""

from __future__ import annotations

import numpy as np
import pytest
from typer.testing import CliRunner

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import crop_centre
from ptycho_bluesky.inference import load_model
from ptycho_bluesky.models.export import from_onnx, read_manifest
from ptycho_bluesky.records import Measurement
from ptycho_bluesky.streaming.replay import replay_run
from ptycho_bluesky.training.corpus import Corpus, join_label_sets
from ptycho_bluesky.training.evaluate import evaluate
from ptycho_bluesky.training.loader import BatchLoader
from ptycho_bluesky.training.options import TrainOptions
from ptycho_bluesky.training.trainer import train

QUICK = {"frames_per_scan": 320, "batch_size": 8}


@pytest.fixture(scope="module")
def lean(labels_a, reserved):
    return train([labels_a], TrainOptions(architecture="lean8", frames_per_scan=2400), validation=reserved)


def as_measurement(labels):
    nan = np.full(len(labels), np.nan)
    index = np.arange(len(labels))
    return Measurement(
        labels.image, labels.position_m, index, index, nan, nan, labels.geometry, labels.pixel_size_m, run_uid="scan"
    )


def test_the_centre_stays_the_centre():
    image = np.arange(64).reshape(8, 8)
    assert crop_centre(image, (4, 4))[2, 2] == image[4, 4]
    assert crop_centre(image, (3, 5))[1, 2] == image[4, 4]
    np.testing.assert_array_equal(crop_centre(image, (8, 8)), image)
    with pytest.raises(InputError, match="not larger"):
        crop_centre(image, (4, 9))


def test_a_lean_network_learns_the_centre_of_the_labels(lean, labels_a):
    manifest = read_manifest(lean.content)
    assert manifest["architecture"] == "lean8"
    assert manifest["architecture_options"] == {"crop": 1}
    assert (manifest["image_shape"], manifest["patch_shape"]) == ([64, 64], [32, 32])
    assert np.shape(manifest["patch_weight"]) == (32, 32)
    assert lean.record.patch_shape == (32, 32)
    assert lean.curve["loss_rad"][-1] < 0.8 * lean.curve["loss_rad"][0]
    figures = evaluate(lean.content, labels_a)
    assert figures["pearson"] > 0.1
    # the figures are of the centre: labels cut to it give the same
    reader, _ = from_onnx(lean.content)
    assert evaluate(reader, labels_a) == figures


def test_small_patches_reach_the_mosaic(lean, labels_a):
    mosaic, counts = replay_run(as_measurement(labels_a), load_model(lean.content, "onnxruntime"))
    assert counts.inferred == len(labels_a)
    assert counts.lost == 0
    engine = load_model(lean.content, "onnxruntime").engine
    row, col = np.rint(mosaic.frame.to_px(labels_a.position_m[:1])[0]).astype(int)
    near = np.linalg.norm(labels_a.position_m - labels_a.position_m[0], axis=1) < 3e-7
    read = engine.infer(labels_a.image[near])
    assert abs(mosaic.phase_rad[row, col] - np.median(read[:, 16, 16])) < 0.5
    assert mosaic.coverage.max() > 3
    covered = np.argwhere(mosaic.coverage > 0)
    reach = (
        np.abs(mosaic.frame.to_m(covered.astype(float))[:, None] - labels_a.position_m[None]).max(axis=2).min(axis=1)
    )
    assert reach.max() <= 18 * labels_a.pixel_size_m, "no pixel further than half a patch from a frame"


def test_a_parent_of_another_architecture_is_refused(lean, labels_b):
    with pytest.raises(InputError, match="lean8"):
        train([labels_b], TrainOptions(architecture="lean12", **QUICK), parent=lean.content)
    again = train([labels_b], TrainOptions(architecture="lean8", **QUICK), parent=lean.content)
    assert again.record.parent_id == lean.record.model_id
    assert read_manifest(again.content)["architecture_options"] == {"crop": 1}


def test_amplitude_is_learned_beside_the_phase(labels_a):
    arrays = join_label_sets([labels_a])
    loader = BatchLoader(arrays, 4, 0, operations=("rot90",), with_amplitude=True)
    image, labels = loader.batch(0)
    assert (image.shape, labels.shape) == ((4, 1, 64, 64), (4, 2, 64, 64))
    rows = loader.indices(0)
    from ptycho_bluesky.geometry import apply_d4

    np.testing.assert_array_equal(labels[:, 1], apply_d4(arrays.amplitude[rows], "rot90"))
    np.testing.assert_array_equal(labels[:, 0], apply_d4(arrays.phase_rad[rows], "rot90"))
    result = train([labels_a], TrainOptions(architecture="ptychonn", frames_per_scan=16, batch_size=2))
    assert read_manifest(result.content)["architecture"] == "ptychonn"
    assert load_model(result.content, "onnxruntime", warm_up_frames=(2,)).engine.patch_shape == (64, 64)


def test_the_command_line_names_the_architecture(tmp_path, labels_a, labels_b):
    import typer

    from ptycho_bluesky.cli.train import command

    app = typer.Typer()
    app.command()(command)
    corpus = Corpus(tmp_path / "corpus")
    corpus.add(labels_a)
    out, small = tmp_path / "m.onnx", ["--frames-per-scan", "16", "--data-dir", str(tmp_path / "data")]
    result = CliRunner().invoke(
        app, [str(corpus.directory), "--out", str(out), "--architecture", "lean12", *small], catch_exceptions=False
    )
    assert result.exit_code == 0
    assert read_manifest(out.read_bytes())["architecture"] == "lean12"
    corpus.add(labels_b)
    next_out = tmp_path / "n.onnx"
    CliRunner().invoke(
        app, [str(corpus.directory), "--out", str(next_out), "--parent", str(out), *small], catch_exceptions=False
    )
    assert read_manifest(next_out.read_bytes())["architecture"] == "lean12", "that of the parent"
