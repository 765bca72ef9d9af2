"""The model file: names of its inputs and output, its manifest, opening it with ONNX Runtime."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import onnx
from onnx import helper

from ptycho_bluesky.errors import InputError

__all__ = [
    "FORMAT_VERSION",
    "INPUT_NAME",
    "OUTPUT_NAME",
    "PARITY_RAD",
    "SCALE_NAME",
    "make_model",
    "manifest_of",
    "open_session",
    "parse",
    "read_manifest",
    "set_manifest",
]

FORMAT_VERSION = 1
METADATA_KEY = "ptycho_bluesky"
INPUT_NAME, SCALE_NAME, OUTPUT_NAME = "counts", "count_scale", "phase_rad"
OPSET, IR_VERSION = 17, 8
"""Old enough for every runtime in use (ONNX Runtime ≥ 1.12, OpenVINO 2023, TensorRT 8.6), new enough for Resize."""
PARITY_RAD = 1e-3
"""Largest accepted difference between a graph and its origin; float32 rounding in 17 layers stays below 1e-4."""


def make_model(graph: onnx.GraphProto) -> onnx.ModelProto:
    """Model of a graph, at the opset of this format."""
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="ptycho_bluesky"
    )


def set_manifest(model: onnx.ModelProto, content: Mapping[str, Any]) -> None:
    """Write the manifest into a model's metadata, in place of what was there."""
    helper.set_model_props(model, {METADATA_KEY: json.dumps(content, sort_keys=True)})


def manifest_of(model: onnx.ModelProto) -> dict[str, Any]:
    """Manifest of a parsed model; see `read_manifest`."""
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            manifest = json.loads(entry.value)
            if manifest.get("version", 0) > FORMAT_VERSION:
                raise InputError(
                    f"model format {manifest['version']}", f"formats up to {FORMAT_VERSION} are known", "upgrade"
                )
            return manifest
    return {}


def read_manifest(blob: bytes) -> dict[str, Any]:
    """Manifest of a model file; empty for a file that is not ours.

    Raises
    ------
    InputError
        The content is not ONNX, or its manifest is of a newer format.
    """
    return manifest_of(parse(blob))


def parse(blob: bytes) -> onnx.ModelProto:
    """Parse and check a model file.

    Raises
    ------
    InputError
        The content is not a valid ONNX file.
    """
    try:
        model = onnx.load_model_from_string(blob)
        onnx.checker.check_model(model)
    except Exception as error:
        raise InputError(f"model file: {error}", "an ONNX file is needed", "export the model anew") from error
    return model


def open_session(blob: bytes, num_threads: int = 1) -> Any:
    """ONNX Runtime session of a model file on the CPU, quiet about its own optimisations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = num_threads
    return onnxruntime.InferenceSession(blob, options, providers=["CPUExecutionProvider"])
