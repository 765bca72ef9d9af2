"""Model files that compute in half precision from the first convolution on."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ptycho_bluesky.models.onnx_file import OUTPUT_NAME, parse

__all__ = ["half_graph"]


def half_graph(content: bytes) -> bytes:
    """Write the network of a model file in float16; counts, root and answer stay float32.

    Runtimes with strong types (TensorRT 11, or 10 when asked) compute in the types that the graph states.

    Parameters
    ----------
    content : bytes
        Model file of ours, not quantised.

    Returns
    -------
    bytes
        Same inputs, output and manifest.
    """
    model = parse(content)
    graph = model.graph
    first = next((place for place, node in enumerate(graph.node) if node.op_type == "Conv"), None)
    if first is None:
        return content
    before, network = list(graph.node[:first]), list(graph.node[first:])
    made = {name for node in before for name in node.output}
    casts = []
    for name in sorted({name for node in network for name in node.input if name in made}):
        casts.append(helper.make_node("Cast", [name], [f"{name}_half"], name=f"cast_{name}", to=TensorProto.FLOAT16))
    _rename_inputs(network, {name: f"{name}_half" for name in made})
    for node in network:
        node.output[:] = [f"{name}_half" if name == OUTPUT_NAME else name for name in node.output]
    # the scales of a resize are float32 by the definition of the operator
    scales = {name for node in network if node.op_type == "Resize" for name in node.input[1:]}
    weights = {name for node in network for name in node.input} - scales
    for tensor in graph.initializer:
        if tensor.name in weights and tensor.data_type == TensorProto.FLOAT:
            value = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    last = helper.make_node("Cast", [f"{OUTPUT_NAME}_half"], [OUTPUT_NAME], name="cast_output", to=TensorProto.FLOAT)
    del graph.node[:]
    graph.node.extend([*before, *casts, *network, last])
    del graph.value_info[:]
    return model.SerializeToString(deterministic=True)


def _rename_inputs(nodes: list[onnx.NodeProto], names: dict[str, str]) -> None:
    for node in nodes:
        node.input[:] = [names.get(name, name) for name in node.input]
