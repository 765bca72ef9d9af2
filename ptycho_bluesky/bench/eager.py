"""The baselines of the engines: PyTorch as a user would run it by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ptycho_bluesky.models.export import from_onnx

__all__ = ["eager"]


def eager(content: bytes, *, bfloat16: bool = False, num_threads: int = 2) -> Callable[[NDArray[Any]], Any]:
    """PyTorch without any of our engines: channels last, inference mode, on float32 frames that are a tensor already.

    Parameters
    ----------
    content : bytes
        Model file of ours.
    bfloat16 : bool
        The same under autocast.
    num_threads : int
        Of torch's pool, for the whole process.

    Returns
    -------
    callable
        Takes float32 counts (n, H, W), answers the phase as a tensor (n, 1, h, w).
    """
    reader, manifest = from_onnx(content)
    torch.set_num_threads(num_threads)
    reader = reader.eval().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    scale = float(manifest.get("count_scale", 1.0))

    def read(counts: NDArray[Any]) -> Any:
        tensor = torch.from_numpy(np.asarray(counts, dtype=np.float32)[:, None])
        tensor = tensor.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            return reader.network(reader.prepare(tensor, scale))

    return read
