from __future__ import annotations

import bz2

import numpy as np
import pytest
import torch

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.models import build
from ptycho_bluesky.models.export import from_onnx, wrap_published
from ptycho_bluesky.models.ptychonn import PtychoNN2, load_state

ENCODER, DECODER = (0, 2, 5, 7, 10, 12, 15, 17), (0, 2, 5, 7, 10, 12, 15, 17, 20)


def test_architecture_is_the_published_one():
    network = PtychoNN2()
    assert sum(parameter.numel() for parameter in network.parameters()) == 733_921
    layers = [f"encoder.{i}" for i in ENCODER] + [f"decoder2.{i}" for i in DECODER]
    assert set(network.state_dict()) == {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}


@pytest.mark.parametrize("shape", [(128, 128), (64, 64), (32, 48)])
def test_output_is_a_phase_of_the_same_shape(shape):
    with torch.no_grad():
        phase = PtychoNN2()(torch.rand(2, 1, *shape))
    assert phase.shape == (2, 1, *shape)
    assert phase.abs().max() <= np.pi


def test_he_initialisation_keeps_the_signal_alive():
    torch.manual_seed(0)
    image = torch.rand(4, 1, 64, 64)
    with torch.no_grad():
        he, default = PtychoNN2("he")(image).std(), PtychoNN2("torch")(image).std()
    assert he > 20 * default


def test_unknown_architecture_is_named():
    with pytest.raises(InputError, match="resnet"):
        build("resnet")


def test_published_weights_read_the_real_frames(shared_data):
    state = load_state(shared_data / "ptychonn2_26id_phase.pth")
    network = PtychoNN2()
    network.load_state_dict(state, strict=True)
    with bz2.open(shared_data / "siemens-star-small.npz.bz2") as file:
        frames = np.fft.fftshift(np.load(file)["data"][0, :40], axes=(-2, -1))
    with torch.no_grad():
        phase = network.eval()(torch.from_numpy(frames)[:, None])
    assert phase.shape == (40, 1, 128, 128)
    assert torch.isfinite(phase).all()
    assert phase.std() > 1e-3
    reader, manifest = from_onnx(wrap_published(shared_data / "ptychonn2_26id_phase.pth", (128, 128)))
    assert manifest["preprocessing"] == {"sqrt": False, "scale": 1.0, "offset": False}
    with torch.no_grad():
        torch.testing.assert_close(reader(torch.from_numpy(frames)[:, None]), phase)


def test_pickled_models_are_refused(tmp_path):
    torch.save(PtychoNN2(), tmp_path / "model.pth")
    with pytest.raises(InputError, match="state dict of tensors"):
        load_state(tmp_path / "model.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(InputError, match="something else"):
        load_state(tmp_path / "list.pth")
    with pytest.raises(InputError, match="run code"):
        load_state(tmp_path / "list.pth", weights_only=False)
    with pytest.raises(InputError, match="nowhere"):
        load_state(tmp_path / "nowhere.pth")


def test_safetensors_and_data_parallel_keys(tmp_path):
    from safetensors.torch import save_file

    state = PtychoNN2().state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    torch.save({f"module.{key}": value for key, value in state.items()}, tmp_path / "weights.pth")
    for name in ("weights.safetensors", "weights.pth"):
        loaded = load_state(tmp_path / name)
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[key], state[key]) for key in state)
