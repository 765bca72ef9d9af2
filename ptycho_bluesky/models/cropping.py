"""Taking the crop of a network out of its graph, so that only what is read is converted, copied and prepared."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnx import numpy_helper

from ptycho_bluesky.models.onnx_file import INPUT_NAME, SCALE_NAME, parse

__all__ = ["CroppedGraph", "crop_input"]

PIXELWISE = {"Mul", "Sub", "Add", "Relu", "Sqrt", "QuantizeLinear", "DequantizeLinear"}
"""Operators of the preprocessing: what they do to a pixel does not depend on the others."""


@dataclass(frozen=True)
class CroppedGraph:
    """A graph, and the part of each frame that it reads.

    Attributes
    ----------
    graph : bytes
        Its input has the shape of the part.
    rows, cols : slice
        Of a frame.
    """

    graph: bytes
    rows: slice
    cols: slice

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w) of the part."""
        return self.rows.stop - self.rows.start, self.cols.stop - self.cols.start


def crop_input(content: bytes) -> CroppedGraph:
    """Move a crop that follows the preprocessing out of the graph.

    Parameters
    ----------
    content : bytes
        Model file of ours, or what `ptycho_bluesky.models.serving.serving_graph` made of it.

    Returns
    -------
    CroppedGraph
        Of a graph without such a crop, the graph itself and the whole frame.
    """
    model = parse(content)
    graph = model.graph
    rows, cols = (dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim[2:])
    constants = {tensor.name: tensor for tensor in graph.initializer}
    chain, cut = _leading_chain(model, set(constants))
    bounds = None if cut is None else [numpy_helper.to_array(constants[n]).tolist() for n in cut.input[1:]]
    if cut is None or bounds is None or bounds[2:] != [[2, 3]]:
        return CroppedGraph(content, slice(0, rows), slice(0, cols))
    (top, left), (bottom, right) = bounds[:2]
    for name in {name for node in chain for name in node.input if name in constants}:
        value = numpy_helper.to_array(constants[name])
        if value.ndim == 4 and value.shape[2:] == (rows, cols):
            part = value[:, :, top:bottom, left:right].copy()
            constants[name].CopyFrom(numpy_helper.from_array(part, name))
    kept = [node for node in graph.node if node.name != cut.name]
    for node in kept:
        node.input[:] = [cut.input[0] if name == cut.output[0] else name for name in node.input]
    del graph.node[:]
    graph.node.extend(kept)
    del graph.value_info[:]
    dims = graph.input[0].type.tensor_type.shape.dim
    dims[2].dim_value, dims[3].dim_value = bottom - top, right - left
    blob = model.SerializeToString(deterministic=True)
    return CroppedGraph(blob, slice(top, bottom), slice(left, right))


def _leading_chain(model: onnx.ModelProto, constants: set[str]) -> tuple[list[onnx.NodeProto], onnx.NodeProto | None]:
    """Pixelwise nodes from the input on, and the slice that ends them, if it does and nothing else reads them."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    chain: list[onnx.NodeProto] = []
    value = INPUT_NAME
    while len(following := readers.get(value, [])) == 1:
        node = following[0]
        others = set(node.input) - {value}
        if node.op_type == "Slice":
            return (chain, node) if len(node.input) == 4 and others <= constants else ([], None)
        if node.op_type not in PIXELWISE or not others <= constants | {SCALE_NAME}:
            break
        chain.append(node)
        value = node.output[0]
    return [], None
