"""Models as ONNX files: the graph with its preprocessing inside, the weights under their own names, a manifest beside.

A file of ours has two inputs, ``counts`` float32 (n, 1, H, W) with a free batch and ``count_scale`` float32 scalar, and
one output, ``phase_rad`` float32 (n, 1, h, w); networks that read it have a second one, ``amplitude``. Its initialisers
keep the names of the state dict, so the torch network is recovered from the same file. The manifest is JSON in the
file's metadata under the key ``ptycho_bluesky``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.models import build
from ptycho_bluesky.models.lean import CentreCrop
from ptycho_bluesky.models.network import AMPLITUDE, IMAGE, PHASE, Network, ScaledTanh
from ptycho_bluesky.models.onnx_file import (
    FORMAT_VERSION,
    INPUT_NAME,
    OUTPUT_NAME,
    PARITY_RAD,
    SCALE_NAME,
    make_model,
    manifest_of,
    open_session,
    parse,
    read_manifest,
    set_manifest,
)
from ptycho_bluesky.models.ptychonn import PtychoNN2, load_state
from ptycho_bluesky.models.reader import PhaseReader, Preprocessing

__all__ = [
    "FORMAT_VERSION",
    "INPUT_NAME",
    "OUTPUT_NAME",
    "PARITY_RAD",
    "SCALE_NAME",
    "from_onnx",
    "parity_rad",
    "read_manifest",
    "to_onnx",
    "wrap_published",
]


OFFSET_NAME = "preprocessing.offset"
OUTPUTS = (PHASE, AMPLITUDE)
"""Values of a network that its file answers; the phase's name is `OUTPUT_NAME`."""


class _GraphWriter:
    """Writes chains of torch layers as ONNX nodes."""

    def __init__(self, image_shape: tuple[int, int]) -> None:
        self.image_shape = image_shape
        self.nodes: list[onnx.NodeProto] = []
        self.initialisers: list[onnx.TensorProto] = []
        self.value = INPUT_NAME

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.initialisers.append(numpy_helper.from_array(np.array(value, order="C"), name))
        return name

    def node(self, operator: str, inputs: list[str], **attributes: Any) -> None:
        output = f"value_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], name=f"node_{len(self.nodes)}", **attributes))
        self.value = output

    def preprocess(self, preprocessing: Preprocessing) -> None:
        self.node("Mul", [self.value, SCALE_NAME])
        if preprocessing.sqrt:
            self.node("Relu", [self.value])
            self.node("Sqrt", [self.value])
        if preprocessing.offset is not None:
            offset = np.asarray(preprocessing.offset, dtype=np.float32)[None, None]
            self.node("Sub", [self.value, self.constant(OFFSET_NAME, offset)])
        scale = self.constant("preprocessing.scale", np.array(preprocessing.scale, dtype=np.float32))
        self.node("Mul", [self.value, scale])

    def network(self, network: Network) -> None:
        """Write every stage; the values that the file answers get their own names."""
        values = {IMAGE: self.value}
        for stage in network.stages:
            self.value = values[stage.source]
            for name, layer in network.get_submodule(stage.child).named_children():
                self.layer(f"{stage.child}.{name}", layer)
            if stage.target in OUTPUTS:
                self.nodes[-1].output[0] = self.value = stage.target
            values[stage.target] = self.value

    def layer(self, name: str, layer: nn.Module) -> None:
        match layer:
            case nn.Conv2d():
                self._convolution(name, layer)
            case CentreCrop():
                self._crop(name, layer.factor)
            case nn.ReLU():
                self.node("Relu", [self.value])
            case nn.Sigmoid():
                self.node("Sigmoid", [self.value])
            case nn.MaxPool2d():
                self.node("MaxPool", [self.value], kernel_shape=[2, 2], strides=[2, 2])
            case nn.Upsample():
                scales = self.constant(f"{name}.scales", np.array([1, 1, 2, 2], dtype=np.float32))
                mode = "half_pixel"
                self.node("Resize", [self.value, "", scales], mode="linear", coordinate_transformation_mode=mode)
            case nn.PixelShuffle() if layer.upscale_factor == 1:
                return
            case nn.PixelShuffle():
                self.node("DepthToSpace", [self.value], blocksize=layer.upscale_factor, mode="CRD")
            case ScaledTanh():
                self.node("Tanh", [self.value])
                self.node("Mul", [self.value, self.constant(f"{name}.pi", np.array(np.pi, dtype=np.float32))])
            case _:
                raise InputError(f"layer {name}: {layer}", "no ONNX form is known for it", "add it to models/export.py")

    def _crop(self, name: str, factor: int) -> None:
        if factor == 1:
            return
        parts = [size // factor for size in self.image_shape]
        first = [size // 2 - part // 2 for size, part in zip(self.image_shape, parts, strict=True)]
        last = [start + part for start, part in zip(first, parts, strict=True)]
        bounds = {"first": first, "last": last, "axes": [2, 3]}
        names = [self.constant(f"{name}.{key}", np.array(value, dtype=np.int64)) for key, value in bounds.items()]
        self.node("Slice", [self.value, *names])

    def _convolution(self, name: str, layer: nn.Conv2d) -> None:
        if layer.bias is None or isinstance(layer.padding, str) or layer.padding_mode != "zeros":
            raise InputError(f"layer {name}: {layer}", "convolutions with bias and zeros around are exported")
        weight = self.constant(f"{name}.weight", layer.weight.detach().cpu().float().numpy())
        bias = self.constant(f"{name}.bias", layer.bias.detach().cpu().float().numpy())
        self.node(
            "Conv",
            [self.value, weight, bias],
            kernel_shape=list(layer.kernel_size),
            pads=[*layer.padding, *layer.padding],
            strides=list(layer.stride),
            group=layer.groups,
        )


def _check_shape(image_shape: tuple[int, int], multiple: int) -> None:
    if len(image_shape) != 2 or any(size <= 0 or size % multiple for size in image_shape):
        raise InputError(
            f"image shape {tuple(image_shape)}",
            f"rows and columns are positive multiples of {multiple}",
            "crop or pad the frames",
        )


def to_onnx(
    module: Network,
    image_shape: tuple[int, int],
    count_scale_default: float = 1.0,
    preprocessing: Preprocessing | Mapping[str, Any] | None = None,
    manifest: Mapping[str, Any] | None = None,
) -> bytes:
    """Write a network as an ONNX file and check it against torch.

    Parameters
    ----------
    module : Network
        Network on preprocessed frames.
    image_shape : tuple of int
        (H, W) of the frames.
    count_scale_default : float
        ``count_scale`` for frames like those of the training; stored in the manifest.
    preprocessing : Preprocessing or mapping
        ``{"sqrt": bool, "scale": float}``, or with an offset; it becomes part of the graph.
    manifest : mapping
        JSON-able content for the file's metadata (pixel size, training runs, …).

    Returns
    -------
    bytes
        The file's content. Equal weights and manifest give equal bytes.

    Raises
    ------
    InputError
        The shape does not fit, a layer has no ONNX form, or the graph disagrees with torch by more than `PARITY_RAD`.
    """
    content = {
        "version": FORMAT_VERSION,
        "architecture": module.architecture,
        **(manifest or {}),
        "image_shape": list(image_shape),
        "patch_shape": list(module.patch_shape(image_shape)),
        "count_scale": float(count_scale_default),
        "architecture_options": module.options,
    }
    _check_shape(image_shape, module.shape_multiple)
    if content["architecture"] != module.architecture:
        raise InputError(f"network {module.architecture}", f"the manifest calls it {content['architecture']!r}")
    if not isinstance(preprocessing, Preprocessing):
        preprocessing = Preprocessing.from_dict(preprocessing or {})
    if preprocessing.offset is not None and preprocessing.offset.shape != tuple(image_shape):
        raise InputError(f"offset of shape {preprocessing.offset.shape}", f"frames have {tuple(image_shape)}")
    content["preprocessing"] = preprocessing.as_dict()
    model = make_model(_graph(module, image_shape, preprocessing, content["architecture"]))
    set_manifest(model, content)
    onnx.checker.check_model(model, full_check=True)
    blob = model.SerializeToString(deterministic=True)
    difference = parity_rad(blob, PhaseReader(module, preprocessing), image_shape, count_scale_default)
    if not difference <= PARITY_RAD:
        raise InputError(
            f"exported graph differs from torch by {difference:.2e} rad", f"at most {PARITY_RAD} rad is accepted"
        )
    return blob


def _graph(module: Network, image_shape: tuple[int, int], preprocessing: Preprocessing, name: str) -> onnx.GraphProto:
    writer = _GraphWriter(image_shape)
    writer.preprocess(preprocessing)
    writer.network(module)
    patch = module.patch_shape(image_shape)
    answered = [stage.target for stage in module.stages if stage.target in OUTPUTS]
    return helper.make_graph(
        writer.nodes,
        name,
        [
            helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, ["n", 1, *image_shape]),
            helper.make_tensor_value_info(SCALE_NAME, TensorProto.FLOAT, []),
        ],
        # the phase first, whatever the order of the stages
        [
            helper.make_tensor_value_info(target, TensorProto.FLOAT, ["n", 1, *patch])
            for target in sorted(answered, key=OUTPUTS.index)
        ],
        writer.initialisers,
    )


def parity_rad(
    blob: bytes, reader: PhaseReader, image_shape: tuple[int, int], count_scale: float = 1.0, num_frames: int = 2
) -> float:
    """Largest absolute difference in rad between the file under ONNX Runtime and torch, on random counts."""
    reader = reader.eval().float()
    device = next(reader.parameters()).device
    counts = np.random.default_rng(0).poisson(20.0, (num_frames, 1, *image_shape)).astype(np.float32)
    counts /= max(count_scale, np.finfo(np.float32).tiny)
    with torch.no_grad():
        ours = reader(torch.from_numpy(counts).to(device), float(count_scale)).cpu().numpy()
    scale = np.array(count_scale, dtype=np.float32)
    theirs = open_session(blob).run([OUTPUT_NAME], {INPUT_NAME: counts, SCALE_NAME: scale})[0]
    return float(np.abs(ours - np.asarray(theirs)).max())


def from_onnx(blob: bytes) -> tuple[PhaseReader, dict[str, Any]]:
    """Recover the torch network from a model file.

    Parameters
    ----------
    blob : bytes
        File written by `to_onnx` or `wrap_published` from a state dict.

    Returns
    -------
    reader : PhaseReader
        Counts in, phase out; ``reader.network`` is the bare network, in evaluation mode.
    manifest : dict

    Raises
    ------
    InputError
        The file is not ours, or its weights do not fit the architecture that it names.
    """
    model = parse(blob)
    manifest = manifest_of(model)
    if not manifest.get("architecture"):
        raise InputError("model file without the name of an architecture", "only graphs of ours turn back into torch")
    network = build(manifest["architecture"], **manifest.get("architecture_options", {}))
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    weights = {name: torch.from_numpy(arrays[name].copy()) for name in network.state_dict().keys() & arrays.keys()}
    try:
        network.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise InputError(f"weights of the model file: {error}", "they must fit the architecture exactly") from error
    offset = arrays.get(OFFSET_NAME)
    preprocessing = Preprocessing.from_dict(manifest["preprocessing"], None if offset is None else offset[0, 0])
    return PhaseReader(network, preprocessing).eval(), manifest


def wrap_published(path: Path | str, image_shape: tuple[int, int], manifest: Mapping[str, Any] | None = None) -> bytes:
    """Turn a model of others into a file of ours: raw counts in, phase out, no preprocessing but ``count_scale``.

    Parameters
    ----------
    path : path
        State dict of PtychoNN 2.0 (``.pth``, ``.pt``, ``.safetensors``), or a bare ONNX file with one input of counts
        (n, 1, H, W) and one output of phase (or several, of which one is named ``phase…`` or is the last).
    image_shape : tuple of int
        (H, W).
    manifest : mapping
        Further content of the manifest, e.g. ``pixel_size_m``.

    Returns
    -------
    bytes

    Raises
    ------
    InputError
        The weights do not fit PtychoNN 2.0 strictly, or the ONNX graph does not run with another batch size.
    """
    path = Path(path)
    if path.suffix == ".onnx":
        from ptycho_bluesky.models.foreign import wrap_bare_onnx

        return wrap_bare_onnx(path, image_shape, manifest)
    network = PtychoNN2()
    try:
        network.load_state_dict(load_state(path), strict=True)
    except RuntimeError as error:
        raise InputError(f"weights {path}: {error}", "they must fit PtychoNN 2.0 exactly") from error
    content = {"source": path.name, **(manifest or {})}
    return to_onnx(network, image_shape, 1.0, Preprocessing(sqrt=False, scale=1.0), content)
