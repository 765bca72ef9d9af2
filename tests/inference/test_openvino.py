from __future__ import annotations

import numpy as np
import pytest
import torch

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.inference import load_engine
from ptycho_bluesky.models import build
from ptycho_bluesky.models.export import to_onnx
from ptycho_bluesky.models.reader import Preprocessing

pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def models(make_model_file):
    torch.manual_seed(1)
    offset = np.random.default_rng(1).random((64, 64)).astype(np.float32)
    lean = to_onnx(build("lean8", crop=2), (64, 64), 1.0, Preprocessing(True, 0.1, offset))
    return {"ptychonn2": make_model_file((32, 32)), "lean8": lean}


@pytest.fixture(scope="module")
def engines(models):
    return {
        name: {kind: load_engine(blob, kind, precision="float32") for kind in ("openvino", "onnxruntime")}
        for name, blob in models.items()
    }


@pytest.mark.parametrize("name", ["ptychonn2", "lean8"])
@pytest.mark.parametrize("num_frames", [1, 2, 4, 7, 9])
def test_every_batch_reads_like_onnxruntime(engines, name, num_frames):
    ours, theirs = engines[name]["openvino"], engines[name]["onnxruntime"]
    counts = np.random.default_rng(num_frames).poisson(20.0, (num_frames, *ours.image_shape)).astype(np.float32)
    phase = ours.infer(counts)
    assert phase.shape == (num_frames, *ours.patch_shape)
    assert phase.dtype == np.float32
    np.testing.assert_allclose(phase, theirs.infer(counts), atol=1e-4)


@pytest.mark.parametrize("name", ["ptychonn2", "lean8"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.uint32, np.float64])
def test_every_type_of_counts_reads_alike(engines, name, dtype):
    engine = engines[name]["openvino"]
    counts = np.random.default_rng(0).integers(0, 200, (5, *engine.image_shape)).astype(np.uint8)
    np.testing.assert_array_equal(engine.infer(counts.astype(dtype)), engine.infer(counts.astype(np.float32)))


def test_arrays_of_any_stride_read_alike(engines):
    engine = engines["ptychonn2"]["openvino"]
    counts = np.random.default_rng(0).poisson(20.0, (5, *engine.image_shape)).astype(np.float32)
    expected = engine.infer(counts)
    wide = np.zeros((5, 40, 40), dtype=np.float32)
    wide[:, 4:36, 4:36] = counts
    np.testing.assert_array_equal(engine.infer(wide[:, 4:36, 4:36]), expected)
    np.testing.assert_array_equal(engine.infer(counts[::-1]), expected[::-1])


def test_answers_are_not_overwritten_by_the_next_batch(engines):
    engine = engines["ptychonn2"]["openvino"]
    rng = np.random.default_rng(0)
    first, second = rng.poisson(20.0, (2, 5, *engine.image_shape)).astype(np.float32)
    phase = engine.infer(first)
    kept = phase.copy()
    engine.infer(second)
    np.testing.assert_array_equal(phase, kept)


def test_count_scale_is_applied(engines):
    engine = engines["lean8"]["openvino"]
    counts = np.random.default_rng(0).poisson(20.0, (4, *engine.image_shape)).astype(np.float32)
    np.testing.assert_allclose(engine.infer(counts, 0.25), engine.infer(counts * 0.25), atol=1e-4)


def test_what_is_no_frame_is_refused(engines):
    engine = engines["ptychonn2"]["openvino"]
    for wrong in (np.zeros((0, 32, 32)), np.zeros((2, 32, 31)), np.zeros((32, 32)), np.zeros((1, 32, 32), complex)):
        with pytest.raises(InputError, match="real frames of shape"):
            engine.infer(wrong)


def test_bfloat16_stays_near(models):
    for blob in models.values():
        half, single = (load_engine(blob, "openvino", precision=each) for each in ("bfloat16", "float32"))
        assert half.name == "openvino-bfloat16"
        counts = np.random.default_rng(0).poisson(20.0, (4, *half.image_shape)).astype(np.float32)
        expected = single.infer(counts)
        assert np.sqrt(np.mean((half.infer(counts) - expected) ** 2)) < 0.1 * expected.std()
