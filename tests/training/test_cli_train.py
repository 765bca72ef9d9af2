from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from ptycho_bluesky.cli.train import command
from ptycho_bluesky.cli.training_data import Parent, read_data
from ptycho_bluesky.errors import InputError, StorageError
from ptycho_bluesky.models.export import read_manifest
from ptycho_bluesky.training.corpus import Corpus, write_label_set
from ptycho_bluesky.training.splits import SplitFractions, split_scans

app = typer.Typer()
app.command()(command)
QUICK = ["--frames-per-scan", "32", "--batch-size", "16"]


def invoke(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def refused(*arguments):
    """The error of a command that does not begin to train."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("ptycho_bluesky.training.loop.TrainingLoop.run", None)
        result = invoke(*arguments, *QUICK)
    assert isinstance(result.exception, InputError), result.exception
    return str(result.exception)


@pytest.fixture
def corpus(tmp_path, labels_a, labels_b):
    corpus = Corpus(tmp_path / "corpus")
    corpus.add(labels_a)
    corpus.add(labels_b)
    return corpus.directory


@pytest.fixture
def many(tmp_path, make_true_labels):
    """Scans of places of their own, of which two would validate."""
    folder = Corpus(tmp_path / "many")
    second = next(f"more-{n}" for n in range(100) if SplitFractions().part_of(f"more-{n}") == "validation")
    for number, uid in enumerate([*(f"scan-{n}" for n in range(8)), second]):
        labels = make_true_labels(1, 48, uid=uid)
        image = labels.image + number  # frames of their own
        folder.add(replace(labels, image=image, position_m=labels.position_m + np.array([0.0, number * 1e-5])))
    return folder


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
        ((tmp_path / "nothing.h5", corpus / "run-1.h5"), "nothing.h5"),
        ((corpus, "--validate", corpus / "run-1.h5"), "cannot validate"),
        ((corpus, "--parent", tmp_path / "no.onnx"), "no.onnx"),
        ((corpus, "--augment", "sometimes"), "augment"),
        ((corpus, "--recipe", "secret"), "recipe"),
        (("--data-dir", tmp_path / "empty"), "no label sets"),
    ):
        result = invoke(*arguments, *QUICK)
        assert isinstance(result.exception, InputError)
        assert match in str(result.exception)


def test_a_scan_or_an_area_is_kept_out(tmp_path, corpus, many):
    parts = split_scans(many.entries(), SplitFractions())
    assert "validation" in parts.values()
    result = invoke(many.directory, "-o", tmp_path / "scan.onnx", "--split", "scan", *QUICK)
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


def test_where_the_model_cannot_go_is_told_before_the_training(tmp_path, corpus):
    (tmp_path / "folder").mkdir()
    assert "name a file" in refused(corpus, "-o", tmp_path / "folder")
    assert "must exist" in refused(corpus, "-o", tmp_path / "nope" / "m.onnx")


def test_a_full_disk_costs_neither_the_training_nor_the_old_model(tmp_path, monkeypatch, corpus):
    out = tmp_path / "m.onnx"
    out.write_bytes(b"in use")
    command_line = (corpus, "-o", out, "--architecture", "lean8", *QUICK)

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("ptycho_bluesky.workflow.files.os.fsync", full)
        result = invoke(*command_line)
    assert isinstance(result.exception, StorageError)
    assert out.read_bytes() == b"in use"
    monkeypatch.setattr("ptycho_bluesky.training.loop.TrainingLoop._take_step", None)  # all steps are taken
    result = invoke(*command_line)
    assert result.exit_code == 0, result.output
    assert read_manifest(out.read_bytes())["frame_updates"] == 64
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith((".", "m."))] == ["m.onnx"]


def test_what_the_parent_knows_does_not_validate(tmp_path, many):
    everything = tmp_path / "all.onnx"
    assert invoke(many.directory, "-o", everything, *QUICK, "--architecture", "lean8").exit_code == 0
    for arguments, match in (
        (("--split", "scan"), "has trained on the places"),
        (("--split", "area"), "has trained on it"),
    ):
        assert match in refused(many.directory, "--parent", everything, *arguments)
    error = refused(many.files()[0], "--parent", everything, "--validate", many.files()[1])
    assert "the parent has trained on it" in error
    assert many.files()[1].name in error


def test_the_scan_that_validates_is_one_that_the_parent_does_not_know(many):
    parts = split_scans(many.entries(), SplitFractions())
    trains, validates = ([uid for uid, part in parts.items() if part == name] for name in ("train", "validation"))
    data = read_data([many.directory], None, "scan", Parent(b"", "lean8", frozenset(trains)))
    assert data.validation.run_uid == validates[-1]
    data = read_data([many.directory], None, "scan", Parent(b"", "lean8", frozenset(validates[-1:])))
    assert data.validation.run_uid == validates[-2]
    assert data.runs == trains


def test_a_scan_of_a_place_that_the_parent_knows_does_not_validate(many):
    parts = split_scans(many.entries(), SplitFractions())
    old = [uid for uid, part in parts.items() if part == "validation"][-1]
    again = many.read(old)
    many.add(replace(again, image=again.image + 99, run_uid="again"))
    assert read_data([many.directory], None, "scan", None).validation.run_uid == "again"
    data = read_data([many.directory], None, "scan", Parent(b"", "lean8", frozenset([old])))
    assert data.validation.run_uid not in ("again", old)


@pytest.mark.parametrize(("samples", "left"), [(("", ""), False), (("a", ""), False), (("a", "b"), True)])
def test_an_area_is_kept_out_of_every_run_of_its_sample(tmp_path, labels_a, samples, left):
    paths = [tmp_path / "old.h5", tmp_path / "far.h5", tmp_path / "new.h5"]
    wide = replace(labels_a, position_m=labels_a.position_m * 2)
    far = replace(wide, position_m=wide.position_m + 1e-4, run_uid="far")
    old, new = (
        replace(wide, run_uid=uid, provenance={"sample": name}) for uid, name in zip("on", samples, strict=True)
    )
    for path, labels in zip(paths, (old, far, new), strict=True):
        write_label_set(path, labels)
    data = read_data(paths, None, "area", None)
    assert [each.run_uid for each in data.corpus] == ["o", "far", "n"]
    gap_m = 32 * labels_a.pixel_size_m
    apart = [
        np.abs(each.position_m[:, None] - data.validation.position_m[None]).max(axis=2).min() >= gap_m
        for each in data.corpus
    ]
    assert apart == [not left, True, True]
    assert len(data.corpus[0]) == 96 if left else len(data.corpus[2]) <= len(data.corpus[0]) < 96
    assert len(data.corpus[1]) == 96
    if not left:
        with pytest.raises(InputError, match="covers the area too"):
            read_data(paths, None, "area", Parent(b"", "lean8", frozenset(["o"])))
    assert read_data(paths, None, "area", Parent(b"", "lean8", frozenset(["far"]))).validation.run_uid == "n"


def test_a_run_counts_once(tmp_path, corpus):
    first = corpus / "run-1.h5"
    assert len(read_data([first, corpus, first], None, "none", None).corpus) == 2
    (tmp_path / "copy.h5").write_bytes(first.read_bytes())
    assert "run run-1 in" in refused(first, tmp_path / "copy.h5")


def test_a_parent_that_is_none_is_named(tmp_path, corpus):
    junk = tmp_path / "junk.onnx"
    junk.write_bytes(b"junk")
    assert "junk.onnx" in refused(corpus, "--parent", junk)


def test_runs_whose_frames_the_corpus_has_do_not_validate(tmp_path, corpus, labels_a):
    again = replace(labels_a, run_uid="again")
    write_label_set(tmp_path / "again.h5", again)
    Corpus(corpus).add(again)
    assert "cannot validate" in refused(corpus, "--validate", tmp_path / "again.h5")


def test_devices_and_validations_that_do_not_fit_are_told_before_the_training(tmp_path, corpus, reserved):
    write_label_set(tmp_path / "coarse.h5", replace(reserved, pixel_size_m=reserved.pixel_size_m * 1.5))
    assert "a pixel" in refused(corpus, "--validate", tmp_path / "coarse.h5")
    assert "nonsense" in refused(corpus, "--device", "nonsense")
