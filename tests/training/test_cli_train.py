from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from ptycho_bluesky.cli.train import command
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.models.export import read_manifest
from ptycho_bluesky.training.corpus import Corpus, write_label_set
from ptycho_bluesky.training.splits import SplitFractions, split_scans

app = typer.Typer()
app.command()(command)
QUICK = ["--frames-per-scan", "32", "--batch-size", "16"]


def invoke(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def corpus(tmp_path, labels_a, labels_b):
    corpus = Corpus(tmp_path / "corpus")
    corpus.add(labels_a)
    corpus.add(labels_b)
    return corpus.directory


def test_trains_on_a_folder_and_then_from_the_parent(tmp_path, corpus, reserved):
    write_label_set(tmp_path / "reserved.h5", reserved)
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    result = invoke(corpus / "run-1.h5", "-o", first, "--validate", tmp_path / "reserved.h5", *QUICK)
    assert result.exit_code == 0, result.output
    assert "32 frame-updates" in result.output
    assert "score" in result.output
    assert not first.with_name("first.onnx.checkpoint").exists()
    result = invoke(corpus, "-o", second, "--parent", first, *QUICK)
    assert result.exit_code == 0, result.output
    manifest = read_manifest(second.read_bytes())
    assert manifest["training_runs"] == ["run-1", "run-2"]
    assert manifest["frame_updates"] == 64


def test_bad_input_is_refused(tmp_path, corpus):
    for arguments, match in (
        ((tmp_path / "nothing.h5",), "nothing.h5"),
        ((corpus, "--validate", corpus / "run-1.h5"), "cannot validate"),
        ((corpus, "--parent", tmp_path / "no.onnx"), "no.onnx"),
        ((corpus, "--augment", "sometimes"), "augment"),
        ((corpus, "--recipe", "secret"), "recipe"),
        (("--data-dir", tmp_path / "empty"), "no label sets"),
    ):
        result = invoke(*arguments, *QUICK)
        assert isinstance(result.exception, InputError)
        assert match in str(result.exception)


def test_a_scan_or_an_area_is_kept_out(tmp_path, corpus, make_true_labels):
    folder = Corpus(tmp_path / "many")
    for number in range(8):
        labels = make_true_labels(1, 48, uid=f"scan-{number}")
        image = labels.image + number  # frames of their own
        folder.add(replace(labels, image=image, position_m=labels.position_m + np.array([0.0, number * 1e-5])))
    parts = split_scans(folder.entries(), SplitFractions())
    assert "validation" in parts.values()
    result = invoke(folder.directory, "-o", tmp_path / "scan.onnx", "--split", "scan", *QUICK)
    assert result.exit_code == 0, result.output
    assert "score" in result.output
    trained = read_manifest((tmp_path / "scan.onnx").read_bytes())["training_runs"]
    assert trained == [uid for uid, part in parts.items() if part == "train"]
    result = invoke(corpus, "--split", "scan", *QUICK)
    assert isinstance(result.exception, InputError)
    assert "gather more scans" in str(result.exception)


def test_curves_options_and_a_corpus_on_disk(tmp_path, corpus):
    arguments = ["--log-dir", tmp_path / "curves", "--buffer-frames", "30", "--set", "thin_to=0.5"]
    result = invoke(corpus, "-o", tmp_path / "m.onnx", *arguments, "--set", "schedule=cosine", *QUICK)
    assert result.exit_code == 0, result.output
    recipe = read_manifest((tmp_path / "m.onnx").read_bytes())["recipe"]
    assert (recipe["thin_to"], recipe["schedule"], recipe["buffer_frames"]) == (0.5, "cosine", 30)
    lines = (tmp_path / "curves" / "curve.csv").read_text().splitlines()
    assert lines[0] == "frames,loss_rad,learning_rate,validation_rad"
    assert lines[-1].startswith("64,")
    for wrong, match in (("thin_to", "KEY=VALUE"), ("thin_to=2", "thin_to"), ("colour=red", "colour")):
        assert match in str(invoke(corpus, "--set", wrong, *QUICK).exception)
