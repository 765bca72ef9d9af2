"""The far-field model in torch, laid out for speed: what every engine shares.

Inside an engine frames are amplitudes with zero frequency at ``[0, 0]``; a wave in the window keeps its centre at
``[N//2, N//2]``, since the shift between the two conventions only multiplies the far field by phases that no
intensity sees. A sub-pixel position is met exactly, by Fourier-shifting the probe by the rest of the position after
rounding to a whole pixel; the probe is therefore kept as its spectrum, and a shifted probe costs one inverse FFT.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "Scan",
    "far_field",
    "frame_errors",
    "frame_ramps",
    "gather",
    "intensity",
    "rows_of",
    "scatter_add",
    "scatter_add_indexed",
    "shift_ramps",
    "sum_modes",
]


@dataclass(frozen=True)
class Scan:
    """Frames and positions of one scan on the engine's device.

    Attributes
    ----------
    amplitude : Tensor of float, shape (n, N, N)
        Square root of the counts, zero frequency at ``[0, 0]``; 0 where a pixel is not trusted.
    trusted : Tensor of bool, shape (N, N), or None
        True where a pixel can be trusted, zero frequency at ``[0, 0]``; None when all can.
    corner : ndarray of int64, shape (n, 2)
        Object index (row, col) of each window's pixel ``[0, 0]``.
    rest_px : ndarray of float64, shape (n, 2)
        What rounding left of each position, in −0.5 to 0.5.
    ramp_row, ramp_col : Tensor of complex, shape (n, N)
        Factors of the phase ramp that shifts a probe by ``rest_px``.
    """

    amplitude: Tensor
    trusted: Tensor | None
    corner: NDArray[np.int64]
    rest_px: NDArray[np.float64]
    ramp_row: Tensor
    ramp_col: Tensor

    def __len__(self) -> int:
        return len(self.corner)

    @property
    def position_px(self) -> NDArray[np.float64]:
        """(row, col) of each probe's centre in indices of the object, shape (n, 2)."""
        return self.corner + self.size_px // 2 + self.rest_px

    def moved(self, position_px: NDArray[np.float64]) -> Scan:
        """The same frames at other positions (n, 2)."""
        return Scan.prepare(self.amplitude, self.trusted, position_px, self.ramp_row.dtype)

    def part(self, rows: NDArray[np.int64], first: tuple[int, int]) -> Scan:
        """Some frames, on the part of the object that begins at pixel ``first``."""
        index = torch.from_numpy(rows).to(self.amplitude.device)
        return Scan(
            self.amplitude[index],
            self.trusted,
            self.corner[rows] - np.asarray(first),
            self.rest_px[rows],
            self.ramp_row[index],
            self.ramp_col[index],
        )

    @property
    def size_px(self) -> int:
        """N, the side of a frame."""
        return int(self.amplitude.shape[-1])

    @classmethod
    def prepare(
        cls, amplitude: Tensor, trusted: Tensor | None, position_px: NDArray[np.float64], dtype: torch.dtype
    ) -> Scan:
        """Lay out a scan.

        Parameters
        ----------
        amplitude : Tensor, shape (n, N, N)
        trusted : Tensor or None
        position_px : ndarray of float64, shape (n, 2)
            (row, col) of each probe's centre in indices of the object; every window must lie inside it.
        dtype : torch.dtype
            complex64 or complex128.
        """
        size = int(amplitude.shape[-1])
        whole = np.rint(position_px)
        rest = position_px - whole
        ramp_row, ramp_col = (
            torch.from_numpy(ramp).to(device=amplitude.device, dtype=dtype) for ramp in shift_ramps(rest, size)
        )
        return cls(amplitude, trusted, whole.astype(np.int64) - size // 2, rest, ramp_row, ramp_col)


def shift_ramps(shift_px: NDArray[np.float64], size_px: int) -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
    """Factors exp(−2πi f·s) of the phase ramps that shift a wave by ``shift_px``.

    Parameters
    ----------
    shift_px : ndarray of float64, shape (n, 2)
        (rows, cols), towards larger indices for positive values.
    size_px : int
        N.

    Returns
    -------
    tuple of ndarray of complex128, shape (n, N)
        For the rows and the columns.
    """
    frequency = np.fft.fftfreq(size_px)
    row, col = (np.exp(-2j * np.pi * shift_px[:, axis, None] * frequency) for axis in (0, 1))
    return row, col


def frame_ramps(scan: Scan, rows: Tensor) -> Tensor:
    """Phase ramps (b, 1, N, N) that shift the probe to the sub-pixel position of each frame."""
    return (scan.ramp_row[rows][:, :, None] * scan.ramp_col[rows][:, None, :])[:, None]


def gather(obj: Tensor, corner: NDArray[np.int64], size_px: int) -> Tensor:
    """Windows (b, N, N) of the object (rows, cols) with pixel ``[0, 0]`` at ``corner`` (b, 2)."""
    if obj.device.type == "cpu":
        return torch.stack([obj[r : r + size_px, c : c + size_px] for r, c in corner.tolist()])
    return gather_indexed(obj, corner, size_px)


def gather_indexed(obj: Tensor, corner: NDArray[np.int64], size_px: int) -> Tensor:
    """`gather` in one operation, as a GPU wants it."""
    at = torch.from_numpy(corner).to(obj.device)
    return obj.unfold(0, size_px, 1).unfold(1, size_px, 1)[at[:, 0], at[:, 1]]


def scatter_add(canvas: Tensor, patches: Tensor, corner: NDArray[np.int64]) -> None:
    """Add patches (b, N, N) into a canvas (rows, cols), overlaps summed: the adjoint of `gather`."""
    size = patches.shape[-1]
    if canvas.device.type == "cpu":
        # A loop over slices adds at memory speed; index_add_ on a CPU walks one element at a time.
        for patch, (r, c) in zip(patches.unbind(0), corner.tolist(), strict=True):
            canvas[r : r + size, c : c + size] += patch
    else:
        scatter_add_indexed(canvas, patches, corner)


def scatter_add_indexed(canvas: Tensor, patches: Tensor, corner: NDArray[np.int64]) -> None:
    """`scatter_add` in one operation, as a GPU wants it."""
    size = patches.shape[-1]
    at = torch.from_numpy(corner[:, 0] * canvas.shape[1] + corner[:, 1]).to(canvas.device)
    step = torch.arange(size, device=canvas.device)
    index = at[:, None, None] + step[:, None] * canvas.shape[1] + step
    canvas.view(-1).index_add_(0, index.reshape(-1), patches.reshape(-1))


def intensity(waves: Tensor) -> Tensor:
    """|wave|² summed over the modes: (b, modes, N, N) to (b, N, N)."""
    # abs() of a complex tensor takes a guarded hypot, a sum over the two parts a slow reduction: 4 times as long.
    power = waves.real.square().addcmul_(waves.imag, waves.imag)
    return sum_modes(power)


def sum_modes(values: Tensor) -> Tensor:
    """Sum over the second axis, without a pass over memory where there is one mode."""
    return values[:, 0] if values.shape[1] == 1 else values.sum(dim=1)


def far_field(waves: Tensor) -> Tensor:
    """Unitary FFT of exit waves (..., N, N), zero frequency at ``[0, 0]``."""
    return torch.fft.fft2(waves, norm="ortho")


def rows_of(indices: Sequence[int] | NDArray[np.int64], device: torch.device) -> Tensor:
    """Row numbers as a tensor on the device."""
    return torch.as_tensor(np.asarray(indices, dtype=np.int64), device=device)


def frame_errors(scan: Scan, obj: Tensor, probe: Tensor, batch_size: int = 64) -> NDArray[np.float64]:
    """Σ(|F| − √I)² of each frame, shape (n,), without updating anything."""
    spectrum = torch.fft.fft2(probe)
    errors = []
    for first in range(0, len(scan), batch_size):
        rows = np.arange(first, min(first + batch_size, len(scan)))
        index = rows_of(rows, obj.device)
        probes = torch.fft.ifft2(spectrum * frame_ramps(scan, index))
        wave = far_field(probes * gather(obj, scan.corner[rows], scan.size_px)[:, None])
        gap = scan.amplitude[index] - intensity(wave).sqrt_()
        if scan.trusted is not None:
            gap *= scan.trusted
        errors.append(gap.square().sum(dim=(1, 2)).double().cpu().numpy())
    return np.concatenate(errors)
