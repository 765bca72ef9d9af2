"""Inference with ONNX Runtime: on the CPU, or by its CUDA and TensorRT providers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.inference.engine import Precision, as_counts, check_frames, check_phase
from ptycho_bluesky.models.cropping import crop_input
from ptycho_bluesky.models.onnx_file import INPUT_NAME, OUTPUT_NAME, SCALE_NAME, read_manifest
from ptycho_bluesky.models.serving import serving_graph

__all__ = ["OnnxEngine", "providers"]


def providers(provider: str, precision: Precision, cache_dir: Path | None) -> list[Any]:
    """Execution providers in the order of preference, with their options.

    Parameters
    ----------
    provider : {"cpu", "cuda", "tensorrt"}
    precision : str
        TensorRT builds float16 engines unless float32 is asked for; CUDA computes float32 as the graph says.
    cache_dir : path, optional
        Where TensorRT keeps the engines that it has built, which takes minutes.

    Raises
    ------
    InputError
        The name is unknown, or the installed ONNX Runtime has no such provider.
    """
    cuda = ("CUDAExecutionProvider", {"cudnn_conv_algo_search": "EXHAUSTIVE"})
    tensorrt: tuple[str, dict[str, Any]] = (
        "TensorrtExecutionProvider",
        {
            "trt_fp16_enable": precision in {"auto", "float16"},
            "trt_engine_cache_enable": cache_dir is not None,
            "trt_engine_cache_path": "" if cache_dir is None else str(cache_dir),
        },
    )
    chosen: dict[str, list[Any]] = {"cpu": [], "cuda": [cuda], "tensorrt": [tensorrt, cuda]}
    if provider not in chosen:
        raise InputError(f"provider {provider!r}", f"known ones are {', '.join(chosen)}")
    available = onnxruntime.get_available_providers()
    missing = [name for name, _ in chosen[provider] if name not in available]
    if missing:
        raise InputError(
            f"engine onnxruntime-{provider}", f"this ONNX Runtime has no {missing[0]}", "pip install onnxruntime-gpu"
        )
    return [*chosen[provider], "CPUExecutionProvider"]


class OnnxEngine:
    """ONNX Runtime engine; see `ptycho_bluesky.inference.Engine`.

    Parameters
    ----------
    content : bytes
        Model file of ours (files of others are wrapped before).
    num_threads : int
        Threads for one batch, of the CPU provider.
    precision : {"auto", "float32", "float16", "int8"}
        float16 by TensorRT alone; integers are computed where the file states them.
    provider : {"cpu", "cuda", "tensorrt"}
    cache_dir : path, optional
        See `providers`.
    """

    def __init__(
        self,
        content: bytes,
        *,
        num_threads: int = 2,
        precision: Precision = "auto",
        provider: str = "cpu",
        cache_dir: Path | None = None,
    ) -> None:
        self.manifest = read_manifest(content)
        if precision == "bfloat16" or (precision == "float16" and provider != "tensorrt"):
            raise InputError(f"engine onnxruntime ({provider}) in {precision}", "it computes in float32")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = num_threads
        # waiting threads that spin take the core from the acquisition
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        chosen = providers(provider, precision, cache_dir)
        self._crop = crop_input(serving_graph(content))
        try:
            self._session = onnxruntime.InferenceSession(self._crop.graph, options, providers=chosen)
        except Exception as error:
            raise InputError(f"model for ONNX Runtime: {error}", "its graph must be one that it reads") from error
        names = {entry.name for entry in self._session.get_inputs()}
        if not {INPUT_NAME, SCALE_NAME} <= names:
            raise InputError(
                f"model with inputs {sorted(names)}",
                f"{INPUT_NAME} and {SCALE_NAME} are expected",
                "wrap it with ptycho_bluesky.models.export.wrap_published",
            )
        self.precision: Precision = "int8" if self.manifest.get("quantised") else "float32"
        if provider == "tensorrt" and precision in {"auto", "float16"} and self.precision == "float32":
            self.precision = "float16"
        parts = ["onnxruntime", *([] if provider == "cpu" else [provider])]
        self.name = "-".join([*parts, *([] if self.precision == "float32" else [self.precision])])
        self.image_shape: tuple[int, int] = tuple(self.manifest["image_shape"])
        self.patch_shape: tuple[int, int] = tuple(self.manifest["patch_shape"])
        self._count_scale = float(self.manifest.get("count_scale", 1.0))

    def infer(self, counts: NDArray[Any], count_scale: float | None = None) -> NDArray[np.float32]:
        """Read frames (n, H, W) to phase (n, h, w) in rad."""
        check_frames(counts, self.image_shape)
        scale = self._count_scale if count_scale is None else count_scale
        part = counts[:, self._crop.rows, self._crop.cols]
        feed = {INPUT_NAME: as_counts(part, self._crop.shape), SCALE_NAME: np.array(scale, dtype=np.float32)}
        return check_phase(np.asarray(self._session.run([OUTPUT_NAME], feed)[0]), len(counts))
