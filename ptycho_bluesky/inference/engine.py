"""What an engine is, how one is made from a model file, and whether a model fits a measurement."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.stitching import weight_from_manifest

__all__ = [
    "Engine",
    "EngineName",
    "LoadedModel",
    "Precision",
    "as_counts",
    "check_frames",
    "check_model",
    "check_phase",
    "load_engine",
    "load_model",
    "read_model_file",
]

logger = logging.getLogger(__name__)

EngineName = Literal["auto", "torch", "onnxruntime", "openvino"]
Precision = Literal["auto", "float32", "bfloat16"]

PIXEL_TOLERANCE = 0.01
"""Relative difference of pixel sizes that a model tolerates: 1 % moves the rim of a 128-pixel patch by 0.6 pixel."""


class Engine(Protocol):
    """A network ready to read frames."""

    @property
    def name(self) -> str:
        """Runtime and precision, for logs."""
        ...

    @property
    def image_shape(self) -> tuple[int, int]:
        """(H, W) of the frames that it reads."""
        ...

    @property
    def patch_shape(self) -> tuple[int, int]:
        """(h, w) of what it answers."""
        ...

    @property
    def manifest(self) -> Mapping[str, Any]:
        """What the model file says of itself."""
        ...

    def infer(self, counts: NDArray[Any], count_scale: float | None = None) -> NDArray[np.float32]:
        """Read canonical frames.

        Parameters
        ----------
        counts : ndarray, shape (n, H, W)
            Counts of any real dtype; n ≥ 1 is free.
        count_scale : float, optional
            Factor that brings the counts to the exposure of the training; by default the model's own.

        Returns
        -------
        ndarray of float32, shape (n, h, w)
            Phase in rad.
        """
        ...


@dataclass(frozen=True)
class LoadedModel:
    """A model with its engine, ready to be put in a `ptycho_bluesky.inference.ModelSlot`.

    Attributes
    ----------
    model_id : str
        SHA-256 of the model file, hex.
    engine : Engine
    weight : ndarray of float32, shape (h, w)
        Weight of a patch's pixels in a mosaic.
    """

    model_id: str
    engine: Engine
    weight: NDArray[np.float32]


def check_frames(counts: NDArray[Any], image_shape: tuple[int, int]) -> None:
    """Refuse frames that are not (n, H, W) of this shape, n ≥ 1, or not real numbers.

    Raises
    ------
    InputError
    """
    if counts.ndim != 3 or counts.shape[1:] != tuple(image_shape) or not len(counts) or counts.dtype.kind not in "buif":
        raise InputError(
            f"frames of shape {counts.shape} and type {counts.dtype}",
            f"the model reads real frames of shape (n, {image_shape[0]}, {image_shape[1]})",
        )


def as_counts(counts: NDArray[Any], image_shape: tuple[int, int]) -> NDArray[np.float32]:
    """Frames as contiguous float32 (n, 1, H, W).

    Raises
    ------
    InputError
        The frames have another shape than the model reads.
    """
    check_frames(counts, image_shape)
    return np.ascontiguousarray(counts, dtype=np.float32)[:, None]


def check_phase(phase: NDArray[Any], num_frames: int) -> NDArray[np.float32]:
    """Phase (n, 1, h, w) of a network as (n, h, w) float32."""
    if phase.ndim != 4 or phase.shape[:2] != (num_frames, 1):
        raise InputError(f"output of shape {phase.shape}", f"({num_frames}, 1, h, w) is expected", "check the model")
    return np.ascontiguousarray(phase[:, 0], dtype=np.float32)


def read_model_file(source: bytes | str | Path, image_shape: tuple[int, int] | None = None) -> bytes:
    """Content of a model file of ours; files of others are wrapped.

    Parameters
    ----------
    source : bytes or path
        ONNX file of ours, a bare ONNX file, or a state dict of PtychoNN 2.0 (``.pth``, ``.pt``, ``.safetensors``).
    image_shape : tuple of int, optional
        (H, W) of the frames; needed for files of others.

    Raises
    ------
    InputError
        The file cannot be read or used, or the shape is needed and missing.
    """
    if isinstance(source, bytes):
        return source
    path = Path(source)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"model file {path}: {error}", "it must be readable", "check the path") from error
    from ptycho_bluesky.models.export import read_manifest, wrap_published

    if path.suffix == ".onnx" and read_manifest(content):
        return content
    if image_shape is None:
        raise InputError(f"model file {path}", "a model without manifest does not state the shape of its frames")
    return wrap_published(path, image_shape)


def load_engine(
    source: bytes | str | Path,
    engine: EngineName = "auto",
    *,
    num_threads: int = 2,
    precision: Precision = "auto",
    image_shape: tuple[int, int] | None = None,
) -> Engine:
    """Make an engine from a model file and check that it runs.

    Parameters
    ----------
    source : bytes or path
        See `read_model_file`.
    engine : {"auto", "torch", "onnxruntime", "openvino"}
        ``auto``: PyTorch in bfloat16 where the processor computes in it and the architecture is ours (twice as fast
        here), else ONNX Runtime.
    num_threads : int
        Threads for one batch.
    precision : {"auto", "float32", "bfloat16"}
        Of the torch engine; ONNX Runtime computes in float32.
    image_shape : tuple of int, optional
        (H, W), for files of others.

    Raises
    ------
    InputError
        The file is no usable model.
    """
    from ptycho_bluesky.models.export import read_manifest

    content = read_model_file(source, image_shape)
    manifest = read_manifest(content)
    if "image_shape" not in manifest:
        raise InputError(
            "model file without manifest",
            "its geometry is unknown",
            "load it from a path with its image_shape, or wrap it with ptycho_bluesky.models.export.wrap_published",
        )
    if engine == "auto":
        from ptycho_bluesky.inference.torch_engine import has_bfloat16

        fast = manifest.get("architecture") and precision != "float32" and has_bfloat16()
        engine = "torch" if fast or precision == "bfloat16" else "onnxruntime"
    if engine == "torch":
        from ptycho_bluesky.inference.torch_engine import TorchEngine

        return TorchEngine(content, num_threads=num_threads, precision=precision)
    if engine == "openvino":
        from ptycho_bluesky.inference.openvino_engine import OpenVinoEngine

        return OpenVinoEngine(content, num_threads=num_threads, precision=precision)
    from ptycho_bluesky.inference.onnx_engine import OnnxEngine

    return OnnxEngine(content, num_threads=num_threads)


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
    """Load a model, verify its hash, and run it on empty frames so that its first real batch is not a slow one.

    Parameters
    ----------
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


def check_model(
    manifest: Mapping[str, Any], frame_shape: tuple[int, int], pixel_size_m: float | None, model_id: str = ""
) -> None:
    """Refuse a model of another geometry.

    Parameters
    ----------
    manifest : mapping
        ``image_shape`` and, if known, ``pixel_size_m`` of the model.
    frame_shape : tuple of int
        (H, W) of the measurement's canonical frames.
    pixel_size_m : float or None
        Pixel at the sample of the measurement; None when unknown.

    Raises
    ------
    InputError
        The shapes differ, or both pixel sizes are known and differ by more than 1 %.
    """
    name = f"model {model_id[:12]}".strip()
    shape = tuple(manifest.get("image_shape", ()))
    if shape != tuple(frame_shape):
        raise InputError(
            f"{name} reads frames of shape {shape}",
            f"the measurement's frames have shape {tuple(frame_shape)}",
            "train or choose a model of this geometry",
        )
    stated = manifest.get("pixel_size_m")
    if stated is None or pixel_size_m is None or not np.isfinite(stated):
        return
    if abs(stated / pixel_size_m - 1.0) > PIXEL_TOLERANCE:
        raise InputError(
            f"{name} has pixels of {stated:.4g} m",
            f"the measurement's are {pixel_size_m:.4g} m",
            "train or choose a model of this geometry (energy, distance, pixel)",
        )
