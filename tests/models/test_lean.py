from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import crop_centre
from ptycho_bluesky.models import ARCHITECTURES, build, network_options
from ptycho_bluesky.models.cropping import crop_input
from ptycho_bluesky.models.export import from_onnx, to_onnx
from ptycho_bluesky.models.lean import bright_crop
from ptycho_bluesky.models.reader import Preprocessing
from ptycho_bluesky.models.serving import serving_graph


def run(blob, counts):
    session = ort.InferenceSession(blob, providers=["CPUExecutionProvider"])
    return session.run(["phase_rad"], {"counts": counts, "count_scale": np.array(1, dtype=np.float32)})[0]


def poisson(*shape):
    return np.random.default_rng(0).poisson(20.0, shape).astype(np.float32)


@pytest.mark.parametrize(("size", "crop"), [(64, 1), (128, 2), (256, 4), (512, 8)])
def test_every_size_gives_the_central_half(size, crop):
    network = build("lean8", crop=crop)
    with torch.no_grad():
        phase = network(torch.rand(1, 1, size, size))
    assert phase.shape == (1, 1, size // 2, size // 2)
    assert network.patch_shape((size, size)) == (size // 2, size // 2)
    assert phase.abs().max() <= np.pi


def test_only_the_central_part_is_read():
    network = build("lean8", crop=2).eval()
    image = torch.rand(1, 1, 64, 64)
    other = image.clone()
    other[..., :16, :] += 1.0
    other[..., :, 48:] += 1.0
    with torch.no_grad():
        torch.testing.assert_close(network(image), network(other))
        other[..., 32, 32] += 1.0
        assert (network(image) - network(other)).abs().max() > 1e-4


def test_the_crop_holds_the_light():
    frame = np.full((128, 128), 1e-3)
    frame[39:90, 39:90] = 100.0
    assert bright_crop(frame) == 2
    frame[20, 20] = 1e5
    assert bright_crop(frame) == 1
    small = np.zeros((256, 256))
    small[110:146, 110:146] = 1.0
    assert bright_crop(small) == 4
    assert network_options("lean16", small) == {"crop": 4}
    assert network_options("ptychonn2", small) == {}


@pytest.mark.parametrize("crop", [1, 2, 4])
def test_files_keep_the_network_and_its_crop(crop):
    torch.manual_seed(0)
    network = build("lean8", crop=crop).eval()
    offset = np.random.default_rng(1).random((128, 128)).astype(np.float32)
    blob = to_onnx(network, (128, 128), 1.0, Preprocessing(True, 0.1, offset))
    reader, manifest = from_onnx(blob)
    assert manifest["patch_shape"] == [64, 64]
    assert manifest["architecture_options"] == {"crop": crop}
    counts = poisson(3, 1, 128, 128)
    with torch.no_grad():
        expected = network(0.1 * (torch.from_numpy(counts).sqrt() - torch.from_numpy(offset)))
        torch.testing.assert_close(reader(torch.from_numpy(counts)), expected)
    np.testing.assert_allclose(run(blob, counts), expected.numpy(), atol=1e-4)


@pytest.mark.parametrize("crop", [1, 2])
def test_the_crop_can_be_taken_out_of_the_graph(crop):
    torch.manual_seed(0)
    offset = np.random.default_rng(1).random((64, 64)).astype(np.float32)
    blob = to_onnx(
        build("lean8", crop=crop), (64, 64), 1.0, Preprocessing(True, 0.1, offset), {"architecture": "lean8"}
    )
    cropped = crop_input(blob)
    assert cropped.shape == (64 // crop, 64 // crop)
    counts = poisson(2, 1, 64, 64)
    part = np.ascontiguousarray(counts[:, :, cropped.rows, cropped.cols])
    np.testing.assert_array_equal(part, crop_centre(counts, cropped.shape))
    np.testing.assert_allclose(run(cropped.graph, part), run(blob, counts), atol=1e-5)
    assert (cropped.graph == blob) == (crop == 1)


def test_the_published_network_with_amplitude():
    network = build("ptychonn")
    assert sum(parameter.numel() for parameter in network.parameters()) == 4_694_690
    assert network.reads_amplitude
    with torch.no_grad():
        values = network.values(torch.rand(1, 1, 32, 32))
    assert values["amplitude"].min() >= 0
    assert values["amplitude"].max() <= 1
    blob = to_onnx(network, (32, 32), 1.0, {})
    session = ort.InferenceSession(blob, providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["phase_rad", "amplitude"]
    served = ort.InferenceSession(serving_graph(blob), providers=["CPUExecutionProvider"])
    assert [output.name for output in served.get_outputs()] == ["phase_rad"]
    assert len(serving_graph(blob)) < 0.7 * len(blob)


def test_names_and_options_are_checked():
    assert "lean16" in ARCHITECTURES
    with pytest.raises(InputError, match="known ones"):
        build("lean7")
    with pytest.raises(InputError, match="crop = 3"):
        build("lean8", crop=3)
    with pytest.raises(InputError, match="it has none"):
        build("ptychonn2", crop=2)
    with pytest.raises(InputError, match="the manifest calls it"):
        to_onnx(build("lean8"), (64, 64), 1.0, {}, {"architecture": "ptychonn2"})
    with pytest.raises(InputError, match="multiples of 32"):
        to_onnx(build("lean8", crop=4), (48, 48))
