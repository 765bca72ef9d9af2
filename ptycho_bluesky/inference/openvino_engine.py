"""Inference with OpenVINO on the CPU: float32, bfloat16, or whatever precisions a quantised file states.

A batch is cut into parts that run beside each other, one thread each. That does as many frames a second as all threads
on one layer at a time, needs no thread to wait for another at every layer, and so loses nothing when the acquisition
takes a core for a moment.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.inference.engine import Precision, check_frames
from ptycho_bluesky.models.cropping import CroppedGraph, crop_input
from ptycho_bluesky.models.onnx_file import INPUT_NAME, OUTPUT_NAME, SCALE_NAME, read_manifest
from ptycho_bluesky.models.serving import serving_graph

__all__ = ["OpenVinoEngine", "has_bfloat16"]

PART_FRAMES = 4
"""Frames in a part: fewer cost more calls (7 % for the smallest network), more leave a thread without work."""


def has_bfloat16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this processor."""
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoEngine:
    """OpenVINO engine; see `ptycho_bluesky.inference.Engine`.

    Parameters
    ----------
    content : bytes
        Model file of ours.
    num_threads : int
        Threads for one batch.
    precision : {"auto", "float32", "bfloat16"}
        Of what the file does not state to be integers; ``auto``: bfloat16 where the processor computes in it.

    Raises
    ------
    InputError
        The file is no model that OpenVINO takes.
    """

    def __init__(self, content: bytes, *, num_threads: int = 2, precision: Precision = "auto") -> None:
        self.manifest = read_manifest(content)
        self.image_shape: tuple[int, int] = tuple(self.manifest["image_shape"])
        self.patch_shape: tuple[int, int] = tuple(self.manifest["patch_shape"])
        self._count_scale = float(self.manifest.get("count_scale", 1.0))
        if precision == "auto":
            precision = "bfloat16" if has_bfloat16() else "float32"
        self.precision: Precision = precision
        self.name = f"openvino-{'int8' if self.manifest.get('quantised') else precision}"
        self._lock = threading.Lock()
        self._crop = crop_input(serving_graph(content))
        core = openvino.Core()
        try:
            single = _compile(core, self._crop, 1, precision, num_threads, 1)
            parts = {
                size: _compile(core, self._crop, size, precision, num_threads, num_threads) for size in (PART_FRAMES, 1)
            }
        except RuntimeError as error:
            raise InputError(f"model for OpenVINO: {error}", "its graph must be one that OpenVINO reads") from error
        self._single = _Part(single)
        self._models = parts
        self._free: dict[int, list[_Part]] = {size: [] for size in parts}

    def infer(self, counts: NDArray[Any], count_scale: float | None = None) -> NDArray[np.float32]:
        """Read frames (n, H, W) to phase (n, h, w) in rad."""
        check_frames(counts, self.image_shape)
        scale = self._count_scale if count_scale is None else float(count_scale)
        counts = counts[:, self._crop.rows, self._crop.cols]
        phase = np.empty((len(counts), *self.patch_shape), dtype=np.float32)
        with self._lock:
            if len(counts) == 1:
                self._single.start(counts, phase, scale)
                self._single.wait()
                return phase
            used: list[tuple[int, _Part]] = []
            for rows in _parts(len(counts)):
                size = rows.stop - rows.start
                part = self._free[size].pop() if self._free[size] else _Part(self._models[size])
                used.append((size, part))
                part.start(counts[rows], phase[rows], scale)
            for size, part in used:
                part.wait()
                self._free[size].append(part)
        return phase


class _Part:
    """A request with its input memory."""

    def __init__(self, model: openvino.CompiledModel) -> None:
        self._request = model.create_infer_request()
        self._frames = np.empty(tuple(model.input(INPUT_NAME).shape), dtype=np.float32)
        self._own = openvino.Tensor(self._frames, shared_memory=True)
        self._scale = np.ones((), dtype=np.float32)
        self._request.set_tensor(SCALE_NAME, openvino.Tensor(self._scale, shared_memory=True))

    def start(self, counts: NDArray[Any], phase: NDArray[np.float32], scale: float) -> None:
        """Read frames (k, H, W) into (k, h, w); both must stay alive until `wait` returns."""
        if counts.dtype == np.float32 and counts.flags.c_contiguous:
            tensor = openvino.Tensor(counts[:, None], shared_memory=True)
        else:
            # converted here, in one pass: the runtime's own conversion of integers takes twice as long
            np.copyto(self._frames[:, 0], counts, casting="unsafe")
            tensor = self._own
        self._scale[...] = scale
        self._request.set_tensor(INPUT_NAME, tensor)
        self._request.set_tensor(OUTPUT_NAME, openvino.Tensor(phase[:, None], shared_memory=True))
        self._request.start_async()

    def wait(self) -> None:
        self._request.wait()


def _parts(num_frames: int) -> Iterator[slice]:
    """Cut a batch into parts of `PART_FRAMES` and single frames."""
    whole = num_frames - num_frames % PART_FRAMES
    for first in range(0, whole, PART_FRAMES):
        yield slice(first, first + PART_FRAMES)
    for first in range(whole, num_frames):
        yield slice(first, first + 1)


def _compile(
    core: openvino.Core,
    crop: CroppedGraph,
    batch: int,
    precision: Precision,
    num_threads: int,
    num_streams: int,
) -> openvino.CompiledModel:
    model = core.read_model(crop.graph)
    model.reshape({INPUT_NAME: [batch, 1, *crop.shape]})
    options = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
        "INFERENCE_NUM_THREADS": num_threads,
        "NUM_STREAMS": num_streams,
        # pinned threads would sit on the cores that acquisition uses
        "ENABLE_CPU_PINNING": False,
    }
    return core.compile_model(model, "CPU", options)
