from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.models.export import PARITY_RAD, from_onnx, parity_rad, read_manifest, to_onnx, wrap_published
from ptycho_bluesky.models.ptychonn import PtychoNN2
from ptycho_bluesky.models.reader import PhaseReader, Preprocessing

ort = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(3)
    return PtychoNN2()


@pytest.fixture(scope="module")
def blob(network):
    return to_onnx(network, (64, 64), 0.5, {"sqrt": True, "scale": 0.1}, {"training_runs": ["a"]})


def run(blob, counts, scale):
    session = ort.InferenceSession(blob, providers=["CPUExecutionProvider"])
    return session.run(["phase_rad"], {"counts": counts, "count_scale": np.array(scale, dtype=np.float32)})[0]


def test_graph_takes_raw_counts_and_any_batch(blob, network):
    counts = np.random.default_rng(1).poisson(30, (3, 1, 64, 64)).astype(np.float32)
    with torch.no_grad():
        expected = network(0.1 * torch.sqrt(0.5 * torch.from_numpy(counts))).numpy()
    np.testing.assert_allclose(run(blob, counts, 0.5), expected, atol=PARITY_RAD)
    np.testing.assert_allclose(run(blob, counts[:1], 0.5), expected[:1], atol=PARITY_RAD)
    assert np.abs(run(blob, counts, 2.0) - expected).max() > PARITY_RAD


def test_negative_counts_read_as_dark(blob):
    counts = np.zeros((1, 1, 64, 64), dtype=np.float32)
    np.testing.assert_array_equal(run(blob, counts - 3, 0.5), run(blob, counts, 0.5))


def test_torch_is_recovered_bit_by_bit(blob, network):
    reader, manifest = from_onnx(blob)
    assert manifest["architecture"] == "ptychonn2"
    assert manifest["training_runs"] == ["a"]
    assert (manifest["count_scale"], manifest["image_shape"]) == (0.5, [64, 64])
    assert reader.preprocessing == Preprocessing(sqrt=True, scale=0.1)
    for key, value in network.state_dict().items():
        assert torch.equal(reader.network.state_dict()[key], value)
    assert parity_rad(blob, reader, (64, 64), 0.5) <= PARITY_RAD


def test_same_weights_give_the_same_bytes(blob, network):
    assert to_onnx(network, (64, 64), 0.5, {"sqrt": True, "scale": 0.1}, {"training_runs": ["a"]}) == blob


def test_parity_check_sees_a_different_network(blob):
    assert parity_rad(blob, PhaseReader(PtychoNN2(), Preprocessing(True, 0.1)), (64, 64), 0.5) > 0.01


def test_a_mean_frame_is_taken_away_inside_the_graph(network):
    offset = np.random.default_rng(0).random((64, 64)).astype(np.float32) * 3
    preprocessing = Preprocessing(True, 0.5, offset)
    blob = to_onnx(network, (64, 64), 1.0, preprocessing)
    counts = np.random.default_rng(1).poisson(30, (2, 1, 64, 64)).astype(np.float32)
    with torch.no_grad():
        expected = network(0.5 * (torch.sqrt(torch.from_numpy(counts)) - torch.from_numpy(offset))).numpy()
    np.testing.assert_allclose(run(blob, counts, 1.0), expected, atol=PARITY_RAD)
    reader, manifest = from_onnx(blob)
    assert manifest["preprocessing"] == {"sqrt": True, "scale": 0.5, "offset": True}
    np.testing.assert_array_equal(reader.preprocessing.offset, offset)
    assert reader.state_dict().keys() == {f"network.{key}" for key in network.state_dict()}
    with torch.no_grad():
        np.testing.assert_allclose(reader(torch.from_numpy(counts)).numpy(), expected, atol=1e-6)
    with pytest.raises(InputError, match="offset of shape"):
        to_onnx(network, (32, 32), 1.0, preprocessing)
    with pytest.raises(InputError, match="finite"):
        Preprocessing(True, 1.0, offset * np.nan)
    with pytest.raises(InputError, match="belong together"):
        Preprocessing.from_dict(manifest["preprocessing"])


@pytest.mark.parametrize("shape", [(60, 64), (0, 64), (64,)])
def test_shapes_that_do_not_fit_are_refused(network, shape):
    with pytest.raises(InputError, match="multiples of 16"):
        to_onnx(network, shape)


def test_unknown_preprocessing_is_refused(network):
    with pytest.raises(InputError, match="log"):
        to_onnx(network, (64, 64), 1.0, {"log": True})


def test_files_that_are_not_models_are_refused(tmp_path):
    with pytest.raises(InputError, match="ONNX"):
        from_onnx(b"not a model")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="fit PtychoNN"):
        wrap_published(tmp_path / "other.pth", (64, 64))


def bare_model(path, batch, reshape_to=None):
    nodes = [helper.make_node("MatMul", ["input", "w"], ["m"])]
    initialisers = [numpy_helper.from_array(np.eye(16, dtype=np.float32) * 0.5, "w")]
    if reshape_to:
        initialisers.append(numpy_helper.from_array(np.array(reshape_to), "shape"))
        nodes.append(helper.make_node("Reshape", ["m", "shape"], ["phase"]))
    else:
        nodes.append(helper.make_node("Tanh", ["m"], ["phase"]))
    graph = helper.make_graph(
        nodes,
        "bare",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 1, 16, 16])],
        [helper.make_tensor_value_info("phase", TensorProto.FLOAT, [batch, 1, 16, 16])],
        initialisers,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def test_bare_onnx_with_a_fixed_batch_is_wrapped(tmp_path):
    bare_model(tmp_path / "bare.onnx", batch=8)
    blob = wrap_published(tmp_path / "bare.onnx", (16, 16), {"pixel_size_m": 1e-8})
    counts = np.random.default_rng(0).random((3, 1, 16, 16)).astype(np.float32)
    np.testing.assert_allclose(run(blob, counts, 2.0), np.tanh(counts), atol=1e-6)
    manifest = read_manifest(blob)
    assert (manifest["architecture"], manifest["pixel_size_m"]) == ("", 1e-8)
    with pytest.raises(InputError, match="architecture"):
        from_onnx(blob)


def test_bare_onnx_that_cannot_be_wrapped_says_why(tmp_path):
    bare_model(tmp_path / "fixed.onnx", batch=8, reshape_to=[8, 1, 16, 16])
    with pytest.raises(InputError, match="batch size fixed"):
        wrap_published(tmp_path / "fixed.onnx", (16, 16))
    bare_model(tmp_path / "bare.onnx", batch=8)
    with pytest.raises(InputError, match="geometry"):
        wrap_published(tmp_path / "bare.onnx", (32, 32))
