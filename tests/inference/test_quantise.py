from __future__ import annotations

import hashlib

import numpy as np
import onnx
import pytest
import torch

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.inference import load_engine
from ptycho_bluesky.inference.cache import EngineCache
from ptycho_bluesky.inference.quantise import label_score, quantise_model
from ptycho_bluesky.models import build
from ptycho_bluesky.models.export import to_onnx
from ptycho_bluesky.models.onnx_file import read_manifest
from ptycho_bluesky.models.quantised import QuantisedGraph
from ptycho_bluesky.records import LabelSet

pytest.importorskip("nncf")
pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).poisson(20.0, (24, 32, 32)).astype(np.uint16)


@pytest.fixture(scope="module")
def blob():
    torch.manual_seed(0)
    return to_onnx(build("lean8", crop=1), (32, 32), 1.0, {"sqrt": True, "scale": 0.3})


@pytest.fixture(scope="module")
def graph(blob, frames):
    return QuantisedGraph(blob, frames)


def operators(content):
    return [node.op_type for node in onnx.load_from_string(content).graph.node]


def test_integers_are_mixed_with_floats_layer_by_layer(graph, blob, frames):
    reference = load_engine(blob, "onnxruntime").infer(frames)
    error = {}
    for number in (0, len(graph.layers) // 2, len(graph.layers)):
        content = graph.mixture(graph.layers[:number])
        manifest = read_manifest(content)
        assert manifest["architecture"] == ""
        assert manifest["quantised"]["float_layers"] == sorted(graph.layers[:number])
        phase = load_engine(content, "onnxruntime").infer(frames)
        error[number] = np.sqrt(np.mean((phase - reference) ** 2))
    assert operators(graph.mixture()).count("Conv") == operators(blob).count("Conv")
    assert error[len(graph.layers)] < 1e-5, "all layers turned back are the original"
    assert 0 < error[len(graph.layers) // 2] < error[0] < 0.2 * reference.std()


def test_integers_run_by_every_engine_that_reads_the_file(graph, frames):
    content = graph.mixture()
    ours, theirs = load_engine(content, "openvino"), load_engine(content, "onnxruntime")
    assert (ours.name, theirs.name) == ("openvino-int8", "onnxruntime-int8")
    phase = theirs.infer(frames)
    assert np.abs(ours.infer(frames) - phase).mean() < 0.1 * phase.std()
    with pytest.raises(InputError, match="architecture"):
        load_engine(content, "torch", precision="float32")


def test_an_accepted_form_is_served(blob, frames, tmp_path):
    cache = EngineCache(tmp_path)
    with pytest.raises(InputError, match="only after a test"):
        load_engine(blob, "openvino", precision="int8", cache=cache)
    found = quantise_model(blob, frames, lambda engine: 0.9, cache=cache, num_threads=1)
    assert found.accepted
    assert (found.float_layers, found.ssim_loss) == ((), 0.0)
    assert load_engine(blob, "openvino", precision="int8", cache=cache).name == "openvino-int8"
    # only the model that was tested
    torch.manual_seed(1)
    sister = to_onnx(build("lean8", crop=1), (32, 32), 1.0, {"sqrt": True, "scale": 0.3})
    with pytest.raises(InputError, match="only after a test"):
        load_engine(sister, "openvino", precision="int8", cache=cache)
    (tmp_path / f"int8-{hashlib.sha256(blob).hexdigest()}.onnx").unlink()
    with pytest.raises(InputError, match="lost"):
        load_engine(blob, "openvino", precision="int8", cache=cache)


def test_layers_return_to_float_until_the_loss_is_allowed(blob, frames, tmp_path):
    def score(engine):
        quantised = engine.manifest.get("quantised")
        if quantised is None:
            return 0.9
        return 0.9 - 0.05 + 0.021 * len(quantised["float_layers"])

    found = quantise_model(blob, frames, score, cache=EngineCache(tmp_path), num_threads=1)
    assert found.accepted
    assert len(found.float_layers) == 2
    assert found.ssim_loss == pytest.approx(0.008)
    assert found.ssim_loss_all == pytest.approx(0.05)
    assert read_manifest(found.content)["quantised"]["float_layers"] == sorted(found.float_layers)


def test_a_form_that_loses_too_much_is_refused_with_the_reason(blob, frames, tmp_path):
    cache = EngineCache(tmp_path)
    found = quantise_model(
        blob, frames, lambda engine: 0.85 if engine.manifest.get("quantised") else 0.9, cache=cache, num_threads=1
    )
    assert not found.accepted
    assert "still loses 0.0500" in found.reason
    assert len(found.float_layers) == found.num_layers // 2
    with pytest.raises(InputError, match=r"still loses 0\.0500"):
        load_engine(blob, "openvino", precision="int8", cache=cache)


def test_the_score_is_the_similarity_of_stitched_images(blob):
    engine = load_engine(blob, "onnxruntime")
    rng = np.random.default_rng(0)
    image = rng.poisson(20.0, (60, 32, 32)).astype(np.uint16)
    read = engine.infer(image)
    phase = np.zeros((60, 32, 32), dtype=np.float32)
    phase[:, 8:24, 8:24] = read
    labels = LabelSet(
        image=image,
        phase_rad=phase,
        amplitude=np.ones_like(phase),
        position_m=np.stack(np.meshgrid(np.arange(6.0), np.arange(10.0)), axis=-1).reshape(-1, 2) * 2.0,
        frame_index=np.arange(60),
        probe=np.ones((1, 32, 32), dtype=np.complex64),
        weight=np.ones((32, 32), dtype=np.float32),
        pixel_size_m=float("nan"),
        geometry=None,
        run_uid="a",
        provenance={},
    )
    assert label_score(labels)(engine) == pytest.approx(1.0, abs=1e-6)
    labels.phase_rad[:] += rng.normal(0.0, 0.5, labels.phase_rad.shape).astype(np.float32)
    assert label_score(labels)(engine) < 0.95
