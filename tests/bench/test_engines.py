from __future__ import annotations

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ptycho_bluesky.bench.corpus import CorpusOptions, SimulatedCorpus
from ptycho_bluesky.bench.eager import eager
from ptycho_bluesky.bench.engine_models import from_frames, from_labels
from ptycho_bluesky.bench.engines import CASES, EngineBench, FrontierPoint, _frontier_rows, run
from ptycho_bluesky.bench.shipped import shipped_model, shipped_models
from ptycho_bluesky.bench.timing import Rates, measure_rates
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.inference import load_engine
from ptycho_bluesky.models import build
from ptycho_bluesky.models.export import from_onnx, to_onnx


@pytest.fixture(scope="module")
def corpus():
    return SimulatedCorpus(CorpusOptions(size_px=64, num_scans=1, num_points=90))


@pytest.fixture(scope="module")
def labels(corpus):
    return corpus.held_out()


@pytest.fixture(scope="module")
def blob():
    torch.manual_seed(0)
    return to_onnx(build("lean8", crop=1), (64, 64), 0.5, {"sqrt": True, "scale": 0.1})


def test_every_case_takes_its_turn_in_every_round():
    now, calls = [0.0], []

    def case(name, cost):
        def call():
            calls.append(name)
            now[0] += cost

        return call, 8

    rates = measure_rates({"a": case("a", 0.01), "b": case("b", 0.04)}, rounds=3, seconds=0.1, clock=lambda: now[0])
    order = [name for k, name in enumerate(calls) if not k or calls[k - 1] != name]
    assert order == ["a", "b"] * 4
    assert rates.median("a") == pytest.approx(800)
    assert rates.median("b") == pytest.approx(200)
    assert rates.ratio("a", "b") == pytest.approx(4)


def test_ratios_are_of_neighbours_in_time():
    rates = Rates({"a": np.array([100.0, 10.0, 1.0]), "b": np.array([50.0, 5.0, 0.5])})
    assert rates.ratio("a", "b") == 2


def test_the_baseline_is_the_network_itself(blob):
    counts = np.random.default_rng(0).poisson(20.0, (3, 64, 64)).astype(np.float32)
    reader, _ = from_onnx(blob)
    with torch.no_grad():
        expected = reader(torch.from_numpy(counts)[:, None], 0.5)
    torch.testing.assert_close(eager(blob)(counts), expected, atol=1e-5, rtol=1e-4)
    half = eager(blob, bfloat16=True)(counts)
    assert half.dtype == torch.bfloat16
    assert 0 < (half.float() - expected).abs().max() < 0.3


def test_labels_are_the_true_object_at_every_position(corpus, labels):
    obj, frame = corpus.experiment.truth()
    centre = frame.to_px(labels.position_m)
    near = np.rint(centre).astype(int)
    truth = np.angle(obj[near[:, 0], near[:, 1]])
    read = labels.phase_rad[:, 32, 32]
    close = np.abs(centre - near).max(axis=1) < 0.1
    assert close.sum() >= 2
    offset = np.median(truth - read)
    assert np.median(np.abs(truth - read - offset)[close]) < 0.05
    assert labels.amplitude.max() < 1.1
    light = np.abs(corpus.experiment.probe) ** 2
    mean = np.sum(light * np.exp(1j * labels.phase_rad), axis=(1, 2)).mean()
    assert abs(np.angle(mean)) < 1e-3
    scored = corpus.score(labels.phase_rad, labels, light / light.max())
    assert scored.ssim > 0.95
    assert corpus.score(labels.phase_rad * 0, labels, light / light.max()).ssim < 0.1


def test_training_and_held_out_areas_are_apart(corpus, labels):
    (trained,) = corpus.training()
    gap = np.linalg.norm(trained.position_m[:, None] - labels.position_m[None], axis=-1).min()
    assert gap > 64 * labels.pixel_size_m


def test_the_rows_are_those_that_are_asked_for(blob, labels, monkeypatch, tmp_path):
    pytest.importorskip("nncf")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    held_out = from_labels(labels, 60)
    seen = []
    report = run(
        blob,
        held_out,
        {"lean8": (blob, held_out)},
        EngineBench(batches=(1,), rounds=1, seconds=0.001),
        lambda done, total, text: seen.append((done, total)),
    )
    rows = {row.metric: row for row in report.rows}
    engines = [f"{name}_{precision}" for name, precision in CASES if name in {"torch", "onnxruntime", "openvino"}]
    for name in ("eager", "eager_bf16", *engines):
        for batch in (1, 8):
            assert rows[f"{name}_batch{batch}"].ours > 0
            assert rows[f"{name}_batch{batch}"].baseline == rows[f"eager_batch{batch}"].ours
    floats = [rows[f"{name}_batch8"].ours for name in engines]
    assert rows["best_float_batch8"].ours == max(floats)
    assert rows["best_float_batch8"].target == 2 * rows["eager_batch8"].ours
    assert rows["best_float_batch8_vs_bf16"].baseline == rows["eager_bf16_batch8"].ours
    assert rows["openvino_float32_rms_error_rad"].ours < 1e-4
    assert rows["int8_ssim_loss"].target == 0.01
    assert rows["int8_batch8"].ours > 0
    assert {(point.model, point.precision) for point in report.frontier} >= {("lean8", "float32"), ("lean8", "int8")}
    assert seen[-1][0] == seen[-1][1] > 0
    if not torch.cuda.is_available():
        assert any("torch-cuda" in remark for remark in report.remarks)


def test_only_what_keeps_the_similarity_counts():
    fast, near, slow = (
        FrontierPoint("a", "int8", 0.5, 0.2, 9000.0),
        FrontierPoint("b", "int8", 0.69, 0.01, 5000.0),
        FrontierPoint("c", "float32", 0.7, 0.0, 500.0),
    )
    row = _frontier_rows([fast, near, slow])[-1]
    assert (row.metric, row.ours, row.target) == ("best_within_001_batch8_frames_per_s", 5000.0, 1180.0)
    assert "b int8" in row.baseline_name
    assert _frontier_rows([fast])[-1].metric != "best_within_001_batch8_frames_per_s"


def test_frames_without_labels_are_judged_by_single_precision(blob, labels):
    held_out = from_frames(labels.image, labels.position_m, labels.pixel_size_m, 60)
    assert len(held_out.scored) == 60
    assert len(held_out.calibration) == 30
    engine = load_engine(blob, "onnxruntime")
    assert held_out.make_score(engine)(engine) == pytest.approx(1.0)


def test_models_that_come_with_the_package_say_what_they_are():
    stated = shipped_models()
    assert stated["simulated"] is True
    reference = stated["models"]["ptychonn2"]["held_out"]["ssim"]
    updates = {entry["frame_updates"] for entry in stated["models"].values()}
    assert len(updates) == 1, "all were trained on as many frames"
    for name, entry in stated["models"].items():
        manifest = load_engine(shipped_model(name), "onnxruntime").manifest
        assert manifest["architecture"] == name
        assert manifest["image_shape"] == [128, 128]
        assert manifest["frame_updates"] == entry["frame_updates"]
        assert shipped_model(name).stat().st_size < (3.3e6 if name == "ptychonn2" else 2e6)
    assert stated["models"]["lean16"]["held_out"]["ssim"] > reference - 0.01
    with pytest.raises(InputError, match="come with the package"):
        shipped_model("nothing")


def test_help_is_there_without_a_runtime():
    from ptycho_bluesky.cli.bench import app

    result = CliRunner().invoke(app, ["engines", "--help"])
    assert result.exit_code == 0
    assert "--json" in result.output
