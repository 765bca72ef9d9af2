"""From a model file to an engine that is ready to read frames."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import numpy as np

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.inference.cache import EngineCache
from ptycho_bluesky.inference.engine import Engine, EngineName, LoadedModel, Precision, read_model_file
from ptycho_bluesky.stitching import weight_from_manifest

__all__ = ["load_engine", "load_model", "make_engine"]

logger = logging.getLogger(__name__)


def load_engine(
    source: bytes | str | Path,
    engine: EngineName = "auto",
    *,
    num_threads: int = 2,
    precision: Precision = "auto",
    image_shape: tuple[int, int] | None = None,
    cache: EngineCache | None = None,
) -> Engine:
    """Make an engine from a model file.

    Parameters
    ----------
    source : bytes or path
        See `ptycho_bluesky.inference.engine.read_model_file`.
    engine : str
        ``auto``: what `ptycho_bluesky.inference.tuning.choose_engine` found to be the fastest on this machine for such
        a model, if it still reads the same phase; before it was asked, one that is ready at once. Or one of
        `ptycho_bluesky.inference.engine.EngineName`.
    num_threads : int
        Threads for one batch, of engines on the processor.
    precision : str
        ``auto``: the lowest that the hardware computes in and that needs no proof; ``int8``: a form of this model
        that `ptycho_bluesky.inference.quantise.quantise_model` accepted before.
    image_shape : tuple of int, optional
        (H, W), for files of others.
    cache : EngineCache, optional
        Where choices and int8 forms are remembered.

    Returns
    -------
    Engine

    Raises
    ------
    InputError
        The file is no usable model, the engine is not installed or has no device, or there is no accepted int8 form.
    """
    from ptycho_bluesky.models.onnx_file import read_manifest

    content = read_model_file(source, image_shape)
    manifest = read_manifest(content)
    if "image_shape" not in manifest:
        raise InputError(
            "model file without manifest",
            "its geometry is unknown",
            "load it from a path with its image_shape, or wrap it with ptycho_bluesky.models.export.wrap_published",
        )
    cache = cache or EngineCache()
    if engine == "auto":
        from ptycho_bluesky.inference.tuning import remembered_engine

        found = remembered_engine(content, num_threads=num_threads, precision=precision, cache=cache)
        if found is not None:
            return found
        engine = _ready_engine(bool(manifest.get("architecture")), precision)
    if precision == "int8":
        from ptycho_bluesky.inference.quantise import accepted_form

        content = accepted_form(content, cache)
    return make_engine(content, engine, num_threads, precision, cache)


def _ready_engine(is_ours: bool, precision: Precision) -> EngineName:
    """An engine that is built in a moment, everywhere."""
    if precision == "int8":
        return "openvino"
    from ptycho_bluesky.inference.torch_engine import has_bfloat16

    fast = is_ours and precision != "float32" and has_bfloat16()
    return "torch" if fast or precision == "bfloat16" else "onnxruntime"


def make_engine(
    content: bytes, engine: EngineName, num_threads: int, precision: Precision, cache: EngineCache | None = None
) -> Engine:
    """Make the engine that was asked for, of a model file of ours.

    Raises
    ------
    InputError
        It is not installed, has no device, or does not take the model or the precision.
    """
    try:
        return _make(content, engine, num_threads, precision, cache or EngineCache())
    except ImportError as error:
        name = engine.split("-")[0]
        raise InputError(f"engine {engine}: {error}", f"{name} must be installed", f"pip install {name}") from error


def _make(content: bytes, engine: EngineName, num_threads: int, precision: Precision, cache: EngineCache) -> Engine:
    match engine:
        case "torch" | "torch-cuda":
            from ptycho_bluesky.inference.torch_engine import TorchEngine

            device = "cuda" if engine == "torch-cuda" else "cpu"
            return TorchEngine(content, num_threads=num_threads, precision=precision, device=device)
        case "onnxruntime" | "onnxruntime-cuda" | "onnxruntime-tensorrt":
            from ptycho_bluesky.inference.onnx_engine import OnnxEngine

            provider = engine.partition("-")[2] or "cpu"
            return OnnxEngine(
                content, num_threads=num_threads, precision=precision, provider=provider, cache_dir=cache.directory
            )
        case "openvino":
            from ptycho_bluesky.inference.openvino_engine import OpenVinoEngine

            return OpenVinoEngine(content, num_threads=num_threads, precision=precision)
        case "tensorrt":
            from ptycho_bluesky.inference.tensorrt_engine import TensorRtEngine

            return TensorRtEngine(content, precision=precision, cache=cache)
        case _:
            raise InputError(f"engine {engine!r}", "it is no engine of this package")


def load_model(
    source: bytes | str | Path,
    engine: EngineName = "auto",
    *,
    expected_id: str | None = None,
    num_threads: int = 2,
    precision: Precision = "auto",
    image_shape: tuple[int, int] | None = None,
    warm_up_frames: tuple[int, ...] = (1, 8),
) -> LoadedModel:
    """Load a model, verify its hash, and run it on noise so that its first real batch is not a slow one.

    Parameters
    ----------
    source, engine, num_threads, precision, image_shape
        See `load_engine`.
    expected_id : str, optional
        SHA-256 that the content must have.
    warm_up_frames : tuple of int
        Batch sizes to run once.

    Raises
    ------
    InputError
        The hash differs, the file is no usable model, or its output is not finite.
    """
    content = read_model_file(source, image_shape)
    model_id = hashlib.sha256(content).hexdigest()
    if expected_id is not None and model_id != expected_id:
        raise InputError(
            f"model content with hash {model_id[:12]}",
            f"the registry calls it {expected_id[:12]}",
            "the transfer or the store is damaged: fetch or register it again",
        )
    loaded = load_engine(content, engine, num_threads=num_threads, precision=precision)
    weight = weight_from_manifest(loaded.manifest, loaded.patch_shape)
    rng = np.random.default_rng(0)
    for n in warm_up_frames:
        phase = loaded.infer(rng.poisson(5.0, (n, *loaded.image_shape)).astype(np.float32))
        if phase.shape[1:] != tuple(loaded.patch_shape) or not np.isfinite(phase).all():
            raise InputError(
                f"model {model_id[:12]} answers with shape {phase.shape[1:]}, finite: {bool(np.isfinite(phase).all())}",
                f"a finite phase of shape {loaded.patch_shape} is expected",
                "do not promote it",
            )
    return LoadedModel(model_id, loaded, weight)
