from __future__ import annotations

import numpy as np
import pytest
import torch

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.inference import load_engine
from ptycho_bluesky.inference.cache import EngineCache
from ptycho_bluesky.inference.tensorrt_engine import graph_for, plan_name
from ptycho_bluesky.models import build
from ptycho_bluesky.models.export import to_onnx
from ptycho_bluesky.models.serving import serving_graph


@pytest.fixture(scope="module")
def blob():
    torch.manual_seed(0)
    return to_onnx(build("lean8", crop=1), (64, 64), 1.0, {"sqrt": True, "scale": 0.1})


def test_a_plan_fits_one_graph_gpu_and_version():
    names = {plan_name(*each) for each in ((b"a", "g", "10"), (b"b", "g", "10"), (b"a", "h", "10"), (b"a", "g", "11"))}
    assert len(names) == 4
    assert plan_name(b"a", "g", "10") == plan_name(b"a", "g", "10")


def test_the_precision_is_in_the_types_of_the_graph(blob):
    assert graph_for(blob, "float32") == serving_graph(blob)
    assert len(graph_for(blob, "float16")) < 0.6 * len(blob)
    with pytest.raises(InputError, match="bfloat16"):
        graph_for(blob, "bfloat16")


def test_without_tensorrt_the_remedy_is_named(blob):
    try:
        import tensorrt  # noqa: F401 - only whether it is there
    except ImportError:
        with pytest.raises(InputError, match="pip install tensorrt"):
            load_engine(blob, "tensorrt")
    else:
        pytest.skip("TensorRT is installed")


def test_tensorrt_reads_like_onnxruntime(blob, tmp_path):
    pytest.importorskip("tensorrt")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    cache = EngineCache(tmp_path)
    engine, reference = load_engine(blob, "tensorrt", cache=cache), load_engine(blob, "onnxruntime")
    counts = np.random.default_rng(0).poisson(20.0, (70, 64, 64)).astype(np.uint16)
    assert np.sqrt(np.mean((engine.infer(counts) - reference.infer(counts)) ** 2)) < 0.02
    assert list(tmp_path.glob("*.plan"))
