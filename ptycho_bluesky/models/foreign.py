"""Bare ONNX files of others, given our inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.models.onnx_file import (
    FORMAT_VERSION,
    INPUT_NAME,
    OUTPUT_NAME,
    PARITY_RAD,
    SCALE_NAME,
    open_session,
    parse,
    set_manifest,
)

__all__ = ["wrap_bare_onnx"]


def _phase_output(graph: onnx.GraphProto) -> onnx.ValueInfoProto:
    named = [value for value in graph.output if "phase" in value.name.lower() or value.name.lower() in {"ph", "phi"}]
    return named[0] if named else graph.output[-1]


def _dimensions(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_value if d.HasField("dim_value") else d.dim_param for d in value.type.tensor_type.shape.dim]


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]


def _run(blob: bytes, feed: dict[str, Any], output: str) -> Any:
    return open_session(blob).run([output], feed)[0]


def wrap_bare_onnx(path: Path, image_shape: tuple[int, int], manifest: Mapping[str, Any] | None = None) -> bytes:
    """Give a bare ONNX graph (counts in, phase out) the inputs ``counts`` and ``count_scale`` and a free batch.

    Parameters
    ----------
    path : Path
        One float32 input (n, 1, H, W); n may be fixed.
    image_shape : tuple of int
        (H, W) that the caller expects.
    manifest : mapping
        Further content of the manifest.

    Returns
    -------
    bytes
        The wrapped file; its manifest has an empty ``architecture``, because torch cannot be recovered from it.

    Raises
    ------
    InputError
        Input of another shape, or a graph whose nodes hold the batch size fixed.
    """
    try:
        original = path.read_bytes()
    except OSError as error:
        raise InputError(f"model {path}: {error}", "the file must be readable") from error
    model = parse(original)
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if len(inputs) != 1 or inputs[0].type.tensor_type.elem_type != TensorProto.FLOAT:
        raise InputError(
            f"model {path} with inputs {[value.name for value in inputs]}", "one float32 input is expected"
        )
    shape = _dimensions(inputs[0])
    fits = len(shape) == 4 and all(
        isinstance(d, str) or d == s for d, s in zip(shape[1:], (1, *image_shape), strict=True)
    )
    if not fits:
        raise InputError(
            f"model {path} reads frames of shape {shape}",
            f"frames here have shape (n, 1, {image_shape[0]}, {image_shape[1]})",
            "use a model of this geometry",
        )
    source, output = inputs[0], _phase_output(graph)
    old_input, old_output = source.name, output.name
    before = _reference(original, source, output, image_shape)

    _rename(graph, old_input, "counts_scaled")
    _rename(graph, old_output, OUTPUT_NAME)
    graph.node.insert(0, helper.make_node("Mul", [INPUT_NAME, SCALE_NAME], ["counts_scaled"]))
    kept = [value for value in graph.input if value.name != old_input]
    del graph.input[:]
    graph.input.extend(
        [
            helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, ["n", 1, *image_shape]),
            helper.make_tensor_value_info(SCALE_NAME, TensorProto.FLOAT, []),
            *kept,
        ]
    )
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, ["n", *before.shape[1:]]))
    # Shapes that were inferred for the fixed batch would contradict the free one.
    del graph.value_info[:]
    patch_shape = list(before.shape[-2:])
    content = {
        "version": FORMAT_VERSION,
        "source": path.name,
        **(manifest or {}),
        "architecture": "",
        "image_shape": list(image_shape),
        "patch_shape": patch_shape,
        "count_scale": 1.0,
        "preprocessing": {"sqrt": False, "scale": 1.0, "offset": False},
    }
    set_manifest(model, content)
    blob = model.SerializeToString(deterministic=True)
    _check_free_batch(blob, path, before, image_shape)
    return blob


def _test_counts(num_frames: int, image_shape: tuple[int, int]) -> Any:
    return np.random.default_rng(0).poisson(20.0, (num_frames, 1, *image_shape)).astype(np.float32)


def _reference(
    blob: bytes, source: onnx.ValueInfoProto, output: onnx.ValueInfoProto, image_shape: tuple[int, int]
) -> Any:
    batch = _dimensions(source)[0]
    num_frames = batch if isinstance(batch, int) and batch > 0 else 2
    return _run(blob, {source.name: _test_counts(num_frames, image_shape)}, output.name)


def _check_free_batch(blob: bytes, path: Path, before: Any, image_shape: tuple[int, int]) -> None:
    counts = _test_counts(len(before), image_shape)
    one = np.array(1.0, dtype=np.float32)
    try:
        for size in (len(before), 1, len(before) + 1):
            rows = np.resize(np.arange(len(before)), size)
            after = _run(blob, {INPUT_NAME: counts[rows], SCALE_NAME: one}, OUTPUT_NAME)
            if np.abs(after - before[rows]).max() > PARITY_RAD:
                raise InputError(f"model {path} answers differently in a batch of {size}", "frames must be independent")
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"model {path}: {error}", "its nodes hold the batch size fixed", "export it with a free batch"
        ) from error
