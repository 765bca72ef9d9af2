"""What an engine is, and whether a model fits a measurement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError

__all__ = [
    "Engine",
    "EngineName",
    "LoadedModel",
    "Precision",
    "as_counts",
    "check_frames",
    "check_model",
    "check_phase",
    "read_model_file",
]

EngineName = Literal[
    "auto", "torch", "torch-cuda", "onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "openvino", "tensorrt"
]
Precision = Literal["auto", "float32", "bfloat16", "float16", "int8"]

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
