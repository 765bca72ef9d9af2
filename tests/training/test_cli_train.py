from __future__ import annotations

import pytest
import typer
from typer.testing import CliRunner

from ptycho_bluesky.cli.train import command
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.models.export import read_manifest
from ptycho_bluesky.training.corpus import Corpus, write_label_set

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
