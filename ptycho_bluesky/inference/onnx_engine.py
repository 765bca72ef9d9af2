"""Inference with ONNX Runtime on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.inference.engine import as_counts, check_phase
from ptycho_bluesky.models.onnx_file import INPUT_NAME, OUTPUT_NAME, SCALE_NAME, open_session, read_manifest

__all__ = ["OnnxEngine"]


class OnnxEngine:
    """ONNX Runtime engine; see `ptycho_bluesky.inference.Engine`.

    Parameters
    ----------
    content : bytes
        Model file of ours (files of others are wrapped before).
    num_threads : int
        Threads for one batch.
    """

    name = "onnxruntime"

    def __init__(self, content: bytes, *, num_threads: int = 2) -> None:
        self.manifest = read_manifest(content)
        self._session = open_session(content, num_threads)
        names = {entry.name for entry in self._session.get_inputs()}
        if not {INPUT_NAME, SCALE_NAME} <= names:
            raise InputError(
                f"model with inputs {sorted(names)}",
                f"{INPUT_NAME} and {SCALE_NAME} are expected",
                "wrap it with ptycho_bluesky.models.export.wrap_published",
            )
        self.image_shape: tuple[int, int] = tuple(self.manifest["image_shape"])
        self.patch_shape: tuple[int, int] = tuple(self.manifest["patch_shape"])
        self._count_scale = float(self.manifest.get("count_scale", 1.0))

    def infer(self, counts: NDArray[Any], count_scale: float | None = None) -> NDArray[np.float32]:
        """Read frames (n, H, W) to phase (n, h, w) in rad."""
        scale = self._count_scale if count_scale is None else count_scale
        feed = {INPUT_NAME: as_counts(counts, self.image_shape), SCALE_NAME: np.array(scale, dtype=np.float32)}
        return check_phase(np.asarray(self._session.run([OUTPUT_NAME], feed)[0]), len(counts))
