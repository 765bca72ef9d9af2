"""Engines agree with each other and with the exported graph; models that do not fit are refused."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.inference import check_model, load_engine, load_model
from ptycho_bluesky.inference.torch_engine import TorchEngine, has_bfloat16


def test_engines_agree(make_model_file, counts):
    blob = make_model_file()
    onnx_phase = load_engine(blob, "onnxruntime").infer(counts, 2.0)
    torch_phase = TorchEngine(blob, precision="float32").infer(counts, 2.0)
    assert onnx_phase.shape == (5, 16, 16)
    assert onnx_phase.dtype == np.float32
    np.testing.assert_allclose(onnx_phase, torch_phase, atol=1e-4)
    assert np.ptp(onnx_phase) > 0.01


def test_bfloat16_stays_near(make_model_file, counts):
    blob = make_model_file()
    difference = TorchEngine(blob, precision="bfloat16").infer(counts) - TorchEngine(blob, precision="float32").infer(
        counts
    )
    assert np.sqrt(np.mean(difference**2)) < 0.02


def test_count_scale_scales_the_counts(make_model_file, counts):
    engine = load_engine(make_model_file(), "onnxruntime")
    np.testing.assert_allclose(engine.infer(counts, 3.0), engine.infer(counts * 3, 1.0), atol=1e-5)


def test_a_batch_reads_as_its_frames(make_model_file, counts):
    engine = load_engine(make_model_file(), "onnxruntime")
    np.testing.assert_allclose(engine.infer(counts)[2], engine.infer(counts[2:3])[0], atol=1e-5)


def test_auto_takes_the_fast_one(make_model_file):
    engine = load_engine(make_model_file(), "auto")
    assert engine.name == ("torch-bfloat16" if has_bfloat16() else "onnxruntime")
    assert load_engine(make_model_file(), "auto", precision="float32").name == "onnxruntime"


def test_frames_of_another_shape_are_refused(make_model_file):
    with pytest.raises(InputError, match=r"frames of shape \(2, 8, 8\)"):
        load_engine(make_model_file(), "onnxruntime").infer(np.zeros((2, 8, 8)))


def test_loaded_model_has_its_hash(make_model_file):
    blob = make_model_file()
    model = load_model(blob, "onnxruntime")
    assert model.model_id == hashlib.sha256(blob).hexdigest()
    assert model.weight.shape == (16, 16)
    with pytest.raises(InputError, match="damaged"):
        load_model(blob, expected_id="0" * 64)


def test_a_network_that_answers_nonsense_is_refused():
    weight = helper.make_tensor("bad", TensorProto.FLOAT, [], [float("nan")])
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["counts", "bad"], ["a"]),
            helper.make_node("Mul", ["a", "count_scale"], ["phase_rad"]),
        ],
        "bad",
        [
            helper.make_tensor_value_info("counts", TensorProto.FLOAT, ["n", 1, 16, 16]),
            helper.make_tensor_value_info("count_scale", TensorProto.FLOAT, []),
        ],
        [helper.make_tensor_value_info("phase_rad", TensorProto.FLOAT, ["n", 1, 16, 16])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"ptycho_bluesky": '{"image_shape": [16, 16], "patch_shape": [16, 16]}'})
    with pytest.raises(InputError, match="finite: False"):
        load_model(model.SerializeToString(), "onnxruntime")


def test_files_of_others_need_a_shape(tmp_path, make_model_file):
    bare = onnx.load_model_from_string(make_model_file())
    del bare.metadata_props[:]
    path = tmp_path / "bare.onnx"
    path.write_bytes(bare.SerializeToString())
    with pytest.raises(InputError, match="does not state"):
        load_engine(path)
    with pytest.raises(InputError, match="manifest"):
        load_engine(path.read_bytes())
    with pytest.raises(InputError, match="readable"):
        load_engine(tmp_path / "absent.onnx")


def test_published_weights_read_the_real_frames(shared_data):
    import bz2
    import io

    with bz2.open(shared_data / "siemens-star-small.npz.bz2") as file:
        data = np.load(io.BytesIO(file.read()))["data"][0, :4]
    frames = np.fft.fftshift(data, axes=(-2, -1))
    model = load_model(shared_data / "ptychonn2_26id_phase.pth", image_shape=(128, 128))
    phase = model.engine.infer(frames)
    assert phase.shape == (4, 128, 128)
    assert np.isfinite(phase).all()


@pytest.mark.parametrize(
    ("manifest", "match"),
    [
        ({"image_shape": [32, 32]}, "frames of shape"),
        ({}, "frames of shape"),
        ({"image_shape": [16, 16], "pixel_size_m": 2e-8}, "pixels of 2e-08"),
    ],
)
def test_a_model_of_another_geometry_is_refused(manifest, match):
    with pytest.raises(InputError, match=match):
        check_model(manifest, (16, 16), 1e-8)


def test_a_model_of_this_geometry_is_accepted():
    check_model({"image_shape": [16, 16], "pixel_size_m": 1.005e-8}, (16, 16), 1e-8)
    check_model({"image_shape": [16, 16], "pixel_size_m": None}, (16, 16), 1e-8)
    check_model({"image_shape": [16, 16], "pixel_size_m": 1e-8}, (16, 16), None)
