from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ptycho_bluesky.models import build
from ptycho_bluesky.models.export import to_onnx
from ptycho_bluesky.models.half import half_graph
from ptycho_bluesky.models.serving import merge_upsampling, serving_graph


def run(blob, counts):
    session = ort.InferenceSession(blob, providers=["CPUExecutionProvider"])
    return session.run(["phase_rad"], {"counts": counts, "count_scale": np.array(1, dtype=np.float32)})[0]


@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 4))
def test_merged_convolution_is_the_two_layers_inside(seed, channels_out, channels_in):
    torch.manual_seed(seed)
    conv = nn.Conv2d(channels_in, channels_out, 3, padding=1)
    up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
    image = torch.randn(1, channels_in, 6, 7)
    weight = torch.from_numpy(merge_upsampling(conv.weight.detach().numpy()))
    with torch.no_grad():
        expected = conv(up(image))
        merged = nn.functional.conv2d(image, weight, conv.bias.repeat_interleave(4), padding=1)
        merged = nn.functional.pixel_shuffle(merged, 2)
    inside = (..., slice(2, -2), slice(2, -2))
    torch.testing.assert_close(merged[inside], expected[inside], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", [(16, 16), (32, 48)])
def test_serving_graph_answers_the_same_to_the_last_pixel(shape):
    torch.manual_seed(0)
    blob = to_onnx(build("ptychonn2"), shape, 1.0, {"sqrt": True, "scale": 0.1})
    served = serving_graph(blob)
    assert sum(node.op_type == "DepthToSpace" for node in onnx.load_from_string(served).graph.node) == 1
    counts = np.random.default_rng(0).poisson(20.0, (3, 1, *shape)).astype(np.float32)
    np.testing.assert_allclose(run(served, counts), run(blob, counts), atol=1e-5)


def operators(blob):
    return [node.op_type for node in onnx.load_from_string(blob).graph.node]


def test_where_there_is_nothing_to_merge_the_graph_stays():
    blob = to_onnx(build("lean8", crop=2), (64, 64))
    assert operators(serving_graph(blob)) == operators(blob)


def test_half_graph_computes_in_half_and_answers_in_single():
    torch.manual_seed(0)
    blob = to_onnx(build("lean8", crop=2), (64, 64), 1.0, {"sqrt": True, "scale": 0.1})
    half = half_graph(blob)
    assert len(half) < 0.6 * len(blob)
    counts = np.random.default_rng(0).poisson(20.0, (2, 1, 64, 64)).astype(np.float32)
    phase = run(half, counts)
    assert phase.dtype == np.float32
    difference = np.abs(phase - run(blob, counts)).max()
    assert 0 < difference < 0.02
