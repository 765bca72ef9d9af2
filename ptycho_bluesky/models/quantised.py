"""Integer forms of a model file: made by NNCF, layer by layer turned back where integers cost too much.

The file stays ONNX with our inputs, output and manifest: quantise and dequantise nodes around the convolutions, which
OpenVINO, ONNX Runtime and TensorRT alike compute in eight-bit integers.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.models.onnx_file import INPUT_NAME, SCALE_NAME, manifest_of, parse, set_manifest
from ptycho_bluesky.models.serving import serving_graph

__all__ = ["QuantisedGraph"]


class QuantisedGraph:
    """The integer form of a model file, and every mixture of it with the original.

    Parameters
    ----------
    content : bytes
        Model file of ours.
    frames : ndarray, shape (n, H, W)
        Counts from which the ranges of the activations are taken; 50 to 300 typical ones.

    Raises
    ------
    InputError
        NNCF is not installed, or does not take the model.
    """

    def __init__(self, content: bytes, frames: NDArray[Any]) -> None:
        self._original = parse(serving_graph(content))
        self._manifest = manifest_of(self._original)
        self._quantised = _quantise(self._original, frames, float(self._manifest.get("count_scale", 1.0)))
        self.layers: tuple[str, ...] = tuple(
            node.name for node in self._quantised.graph.node if node.op_type == "Conv" and self._is_quantised(node)
        )
        """Convolutions that are computed in integers, in the order of the graph."""
        if not self.layers:
            raise InputError("model without convolutions that NNCF quantises", "there is nothing to gain", "use float")

    def mixture(self, float_layers: Collection[str] = (), **manifest: Any) -> bytes:
        """Model file in which some convolutions stay floating point.

        Parameters
        ----------
        float_layers : collection of str
            Of `layers`.
        **manifest
            Content of the manifest's ``quantised``, beside the layers.

        Returns
        -------
        bytes
            Its manifest names no architecture: torch cannot be recovered from it.
        """
        model = onnx.ModelProto()
        model.CopyFrom(self._quantised)
        values = {name: node for node in model.graph.node for name in node.output}
        originals = {node.name: node for node in self._original.graph.node}
        constants = {tensor.name: tensor for tensor in self._original.graph.initializer}
        present = {tensor.name for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.name not in float_layers:
                continue
            _read_floats(node, values)
            for place, name in enumerate(originals[node.name].input[1:], start=1):
                # the weights as they were, and the bias without the correction for quantised ones
                own = f"{name}_float"
                if own not in present:
                    tensor = model.graph.initializer.add()
                    tensor.CopyFrom(constants[name])
                    tensor.name = own
                    present.add(own)
                node.input[place] = own
        stated = {**manifest, "float_layers": sorted(float_layers)}
        set_manifest(model, {**self._manifest, "architecture": "", "quantised": stated})
        # nodes that nothing reads any more fall away here
        return serving_graph(model.SerializeToString(deterministic=True))

    def _is_quantised(self, conv: onnx.NodeProto) -> bool:
        made_by = {name: node.op_type for node in self._quantised.graph.node for name in node.output}
        return made_by.get(conv.input[1]) == "DequantizeLinear"


def _read_floats(node: onnx.NodeProto, values: Mapping[str, onnx.NodeProto]) -> None:
    """Let a node, and an upsampling that it reads, take the values before they were quantised."""
    source = values.get(node.input[0])
    if source is not None and source.op_type == "DequantizeLinear":
        node.input[0] = values[source.input[0]].input[0]
        source = values.get(node.input[0])
    if source is not None and source.op_type == "Resize":
        _read_floats(source, values)


def _quantise(model: onnx.ModelProto, frames: NDArray[Any], count_scale: float) -> onnx.ModelProto:
    try:
        import nncf
    except ImportError as error:
        raise InputError(f"int8: {error}", "NNCF makes integer models", "pip install nncf") from error
    logging.getLogger("nncf").setLevel(logging.ERROR)
    scale = np.array(count_scale, dtype=np.float32)

    def feed(image: NDArray[Any]) -> Mapping[str, NDArray[np.float32]]:
        return {INPUT_NAME: image[None, None].astype(np.float32), SCALE_NAME: scale}

    try:
        with contextlib.redirect_stdout(io.StringIO()):  # NNCF draws bars of its own
            return nncf.quantize(
                model,
                nncf.Dataset(list(frames), feed),
                subset_size=len(frames),
                preset=nncf.QuantizationPreset.MIXED,
                ignored_scope=nncf.IgnoredScope(names=_preprocessing(model)),
            )
    except Exception as error:
        raise InputError(f"int8: NNCF refuses the model: {error}", "", "use a floating-point precision") from error


def _preprocessing(model: onnx.ModelProto) -> list[str]:
    """Nodes before the first convolution: counts span five decades and stay floating point."""
    names = []
    for node in model.graph.node:
        if node.op_type == "Conv":
            break
        names.append(node.name)
    return names
