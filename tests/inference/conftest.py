from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture(scope="session")
def make_model_file():
    """Files of small untrained networks of ours, one a seed."""
    import torch

    from ptycho_bluesky.models import build
    from ptycho_bluesky.models.export import to_onnx

    def make(shape=(16, 16), seed=0, **manifest):
        torch.manual_seed(seed)
        return to_onnx(build("ptychonn2"), shape, 1.0, {"sqrt": True, "scale": 0.1}, manifest)

    return make


@pytest.fixture
def counts():
    return np.random.default_rng(3).poisson(20.0, (5, 16, 16)).astype(np.uint16)
