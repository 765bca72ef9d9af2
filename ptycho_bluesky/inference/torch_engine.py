"""Inference with PyTorch on the CPU: channels last, inference mode, bfloat16 where the processor has it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ptycho_bluesky.inference.engine import Precision, as_counts, check_phase
from ptycho_bluesky.models.export import from_onnx

__all__ = ["TorchEngine", "has_bfloat16"]


def has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware (AVX-512 BF16 or AMX); emulated it would be slower."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


class TorchEngine:
    """PyTorch engine; see `ptycho_bluesky.inference.Engine`.

    Parameters
    ----------
    content : bytes
        Model file of ours, with the name of its architecture.
    num_threads : int
        Threads of torch's pool, which is one for the whole process.
    precision : {"auto", "float32", "bfloat16"}
    """

    def __init__(self, content: bytes, *, num_threads: int = 2, precision: Precision = "auto") -> None:
        reader, self.manifest = from_onnx(content)
        torch.set_num_threads(num_threads)
        self._reader = reader.eval().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self._bfloat16 = precision == "bfloat16" or (precision == "auto" and has_bfloat16())
        self.name = "torch-bfloat16" if self._bfloat16 else "torch"
        self.image_shape: tuple[int, int] = tuple(self.manifest["image_shape"])
        self.patch_shape: tuple[int, int] = tuple(self.manifest["patch_shape"])
        self._count_scale = float(self.manifest.get("count_scale", 1.0))

    def infer(self, counts: NDArray[Any], count_scale: float | None = None) -> NDArray[np.float32]:
        """Read frames (n, H, W) to phase (n, h, w) in rad."""
        tensor = torch.from_numpy(as_counts(counts, self.image_shape)).contiguous(memory_format=torch.channels_last)
        scale = self._count_scale if count_scale is None else float(count_scale)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=self._bfloat16):
            # the root of the counts stays in float32: bfloat16 has 8 bits of mantissa
            prepared = self._reader.prepare(tensor, scale)
            phase = self._reader.network(prepared)
        return check_phase(phase.float().numpy(), len(counts))
