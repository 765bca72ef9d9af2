"""Inference with TensorRT ≥ 10 through its Python API; memory and streams come from PyTorch.

Written after the documented API. Engines are built once for a GPU and a version, which takes minutes, and kept in the
cache.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.inference.cache import EngineCache
from ptycho_bluesky.inference.engine import Precision, check_frames
from ptycho_bluesky.models.cropping import crop_input
from ptycho_bluesky.models.half import half_graph
from ptycho_bluesky.models.onnx_file import INPUT_NAME, OUTPUT_NAME, SCALE_NAME, read_manifest
from ptycho_bluesky.models.serving import serving_graph

__all__ = ["MAX_BATCH", "TensorRtEngine", "graph_for", "plan_name"]

logger = logging.getLogger(__name__)

MAX_BATCH = 64
"""Largest batch of an engine; larger ones are read in parts."""
BEST_BATCH = 8
"""Batch for which an engine is optimised."""
OLDEST_MAJOR = 10


def graph_for(content: bytes, precision: Precision) -> bytes:
    """Graph whose types say the precision: networks of TensorRT are strongly typed here.

    Raises
    ------
    InputError
        bfloat16 is asked for.
    """
    if precision == "bfloat16":
        raise InputError("engine tensorrt in bfloat16", "it computes in float16, float32, or int8 as the file says")
    graph = serving_graph(content)
    whole = precision == "float32" or bool(read_manifest(content).get("quantised"))
    return graph if whole else half_graph(graph)


def plan_name(graph: bytes, gpu: str, version: str) -> str:
    """Name of a built engine in the cache: it fits one graph, one GPU and one version only."""
    key = hashlib.sha256(graph + f"|{gpu}|{version}|{MAX_BATCH}|{BEST_BATCH}".encode()).hexdigest()
    return f"tensorrt-{key[:32]}.plan"


class TensorRtEngine:
    """TensorRT engine; see `ptycho_bluesky.inference.Engine`.

    Parameters
    ----------
    content : bytes
        Model file of ours.
    precision : {"auto", "float16", "float32", "int8"}
        ``auto``: float16. int8 as the file states it.
    cache : EngineCache, optional
        Where built engines are kept.

    Raises
    ------
    InputError
        There is no CUDA device, TensorRT is older than 10, or it refuses the graph.
    ImportError
        TensorRT is not installed.
    """

    def __init__(self, content: bytes, *, precision: Precision = "auto", cache: EngineCache | None = None) -> None:
        import tensorrt
        import torch

        if int(tensorrt.__version__.split(".")[0]) < OLDEST_MAJOR:
            raise InputError(f"TensorRT {tensorrt.__version__}", f"at least {OLDEST_MAJOR} is needed")
        if not torch.cuda.is_available():
            raise InputError("engine tensorrt", "PyTorch finds no CUDA device", "use engine auto")
        self.manifest = read_manifest(content)
        self.image_shape: tuple[int, int] = tuple(self.manifest["image_shape"])
        self.patch_shape: tuple[int, int] = tuple(self.manifest["patch_shape"])
        self.precision: Precision = "float16" if precision == "auto" else precision
        self.name = f"tensorrt-{self.precision}"
        self._count_scale = float(self.manifest.get("count_scale", 1.0))
        self._crop = crop_input(graph_for(content, self.precision))
        shape = self._crop.shape
        self._torch: Any = torch
        self._engine = _load_plan(
            tensorrt, self._crop.graph, shape, torch.cuda.get_device_name(), cache or EngineCache()
        )
        self._context = self._engine.create_execution_context()
        self._stream = torch.cuda.Stream()
        self._lock = threading.Lock()
        device = torch.device("cuda")
        self._counts = torch.empty((MAX_BATCH, 1, *shape), dtype=torch.float32, device=device)
        self._scale = torch.ones((), dtype=torch.float32, device=device)
        self._phase = torch.empty((MAX_BATCH, 1, *self.patch_shape), dtype=torch.float32, device=device)
        addresses = {INPUT_NAME: self._counts, SCALE_NAME: self._scale, OUTPUT_NAME: self._phase}
        for name, tensor in addresses.items():
            self._context.set_tensor_address(name, tensor.data_ptr())

    def infer(self, counts: NDArray[Any], count_scale: float | None = None) -> NDArray[np.float32]:
        """Read frames (n, H, W) to phase (n, h, w) in rad."""
        check_frames(counts, self.image_shape)
        counts = counts[:, self._crop.rows, self._crop.cols]
        scale = self._count_scale if count_scale is None else float(count_scale)
        phase = np.empty((len(counts), *self.patch_shape), dtype=np.float32)
        with self._lock:
            for first in range(0, len(counts), MAX_BATCH):
                rows = slice(first, min(first + MAX_BATCH, len(counts)))
                phase[rows] = self._read(counts[rows], scale)
        return phase

    def _read(self, counts: NDArray[Any], scale: float) -> NDArray[np.float32]:
        torch, n = self._torch, len(counts)
        with torch.cuda.stream(self._stream):
            frames = torch.from_numpy(np.ascontiguousarray(counts, dtype=np.float32))
            self._counts[:n, 0].copy_(frames, non_blocking=True)
            self._scale.fill_(scale)
            self._context.set_input_shape(INPUT_NAME, (n, 1, *self._crop.shape))
            if not self._context.execute_async_v3(self._stream.cuda_stream):
                raise RuntimeError("TensorRT could not enqueue the batch")
            answer = self._phase[:n, 0].cpu()
        return answer.numpy()


def _load_plan(tensorrt: Any, graph: bytes, image_shape: tuple[int, int], gpu: str, cache: EngineCache) -> Any:
    runtime_log = tensorrt.Logger(tensorrt.Logger.WARNING)
    runtime = tensorrt.Runtime(runtime_log)
    name = plan_name(graph, gpu, tensorrt.__version__)
    plan = cache.get_file(name)
    engine = None if plan is None else runtime.deserialize_cuda_engine(plan)
    if engine is None:
        logger.info("building a TensorRT engine; this takes minutes, once")
        plan = bytes(_build_plan(tensorrt, runtime_log, graph, image_shape))
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise InputError("TensorRT engine", "the runtime does not load what the builder built", "check the driver")
        cache.put_file(name, plan)
    return engine


def _build_plan(tensorrt: Any, log: Any, graph: bytes, image_shape: tuple[int, int]) -> Any:
    builder = tensorrt.Builder(log)
    # in TensorRT 11 every network is strongly typed and the flag is gone
    flag = getattr(tensorrt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = tensorrt.OnnxParser(network, log)
    if not parser.parse(graph):
        errors = "; ".join(str(parser.get_error(k)) for k in range(parser.num_errors))
        raise InputError(f"model for TensorRT: {errors}", "its graph must be one that TensorRT reads")
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    frame = (1, *image_shape)
    profile.set_shape(INPUT_NAME, (1, *frame), (BEST_BATCH, *frame), (MAX_BATCH, *frame))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise InputError("model for TensorRT", "the builder finds no engine for it on this GPU", "use another engine")
    return plan
