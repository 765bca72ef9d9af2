"""Inference with PyTorch: channels last, inference mode, half precision where the hardware computes in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.inference.engine import Precision, as_counts, check_frames, check_phase
from ptycho_bluesky.models.export import from_onnx

__all__ = ["TorchEngine", "has_bfloat16"]

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


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
        Threads of torch's pool on the CPU, which is one for the whole process.
    precision : {"auto", "float32", "bfloat16", "float16"}
        ``auto``: bfloat16 on processors that have it, float16 on CUDA.
    device : str
        ``cpu`` or ``cuda``.

    Raises
    ------
    InputError
        There is no such device, or it does not compute in this precision.
    """

    def __init__(
        self, content: bytes, *, num_threads: int = 2, precision: Precision = "auto", device: str = "cpu"
    ) -> None:
        self._device = torch.device(device)
        on_cuda = self._device.type == "cuda"
        if on_cuda and not torch.cuda.is_available():
            raise InputError("engine torch-cuda", "PyTorch finds no CUDA device", "use engine auto")
        if precision == "auto":
            precision = "float16" if on_cuda else "bfloat16" if has_bfloat16() else "float32"
        if precision == "int8" or (precision == "float16" and not on_cuda):
            raise InputError(f"engine torch in {precision}", "it computes in float32, bfloat16, and float16 on CUDA")
        reader, self.manifest = from_onnx(content)
        if not on_cuda:
            torch.set_num_threads(num_threads)
        reader = reader.eval().to(self._device)
        self._reader = reader.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self._dtype = DTYPES.get(precision)
        self.precision: Precision = precision
        prefix = "torch-cuda" if on_cuda else "torch"
        self.name = prefix if self._dtype is None else f"{prefix}-{precision}"
        self.image_shape: tuple[int, int] = tuple(self.manifest["image_shape"])
        self.patch_shape: tuple[int, int] = tuple(self.manifest["patch_shape"])
        self._count_scale = float(self.manifest.get("count_scale", 1.0))

    def infer(self, counts: NDArray[Any], count_scale: float | None = None) -> NDArray[np.float32]:
        """Read frames (n, H, W) to phase (n, h, w) in rad."""
        tensor = self._tensor(counts)
        scale = self._count_scale if count_scale is None else float(count_scale)
        with (
            torch.inference_mode(),
            torch.autocast(self._device.type, self._dtype or torch.bfloat16, enabled=self._dtype is not None),
        ):
            # the root of the counts stays in float32: bfloat16 has 8 bits of mantissa
            prepared = self._reader.prepare(tensor, scale)
            phase = self._reader.network(prepared)
        return check_phase(phase.float().cpu().numpy(), len(counts))

    def _tensor(self, counts: NDArray[Any]) -> torch.Tensor:
        if self._device.type == "cpu":
            tensor = torch.from_numpy(as_counts(counts, self.image_shape))
        else:
            # counts travel in their own type, half or a quarter of the bytes, and become floats on the device
            check_frames(counts, self.image_shape)
            kept = counts if counts.dtype in (np.uint8, np.int16, np.int32, np.float32) else counts.astype(np.float32)
            pinned = torch.from_numpy(np.ascontiguousarray(kept)).pin_memory()
            tensor = pinned.to(self._device, non_blocking=True).float()[:, None]
        return tensor.contiguous(memory_format=torch.channels_last)
