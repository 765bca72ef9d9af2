"""Positions refined from the frames: a Gauss–Newton step of each frame's position."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho_bluesky.reconstruction.forward import Scan, far_field, frame_ramps, gather, intensity, rows_of

__all__ = ["refine_positions"]

LARGEST_STEP_PX = 1.0
BATCH_FRAMES = 64
DAMPING = 1e-2
"""Of the normal equations, relative to their trace."""


def refine_positions(
    scan: Scan, obj: Tensor, probe: Tensor, measured_px: NDArray[np.float64], max_correction_px: float
) -> NDArray[np.float64]:
    """One step of all positions towards what the frames ask for.

    Parameters
    ----------
    scan : Scan
        At the present positions.
    obj : Tensor of complex, shape (rows, cols)
    probe : Tensor of complex, shape (modes, N, N)
    measured_px : ndarray of float64, shape (n, 2)
        Positions (row, col) before any refinement.
    max_correction_px : float
        Largest distance from the measured position; every window stays inside the object besides.

    Returns
    -------
    ndarray of float64, shape (n, 2)
        Their mean is that of the measured ones: a common shift cannot be seen.

    Notes
    -----
    Least squares of the amplitudes: the gap √I − |F| of a frame is fitted by J·s', with J = Re(F*·∂F/∂s)/|F| and ∂F/∂s
    the transform of −∇P·O, exact by the spectrum; 2 × 2 normal equations a frame. (In the exit wave most of ∇P·O would
    be a common shift of probe and object, which no intensity sees: steps would be hundreds of times too short.)
    """
    steps = [_steps(scan, obj, probe, rows) for rows in _batches(len(scan))]
    step = np.concatenate(steps)
    length = np.linalg.norm(step, axis=1, keepdims=True)
    step *= np.minimum(1.0, LARGEST_STEP_PX / np.maximum(length, 1e-12))
    away = scan.position_px + step - measured_px
    away -= away.mean(axis=0)
    away *= np.minimum(1.0, max_correction_px / np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-12))
    half = scan.size_px // 2
    last = np.asarray(obj.shape) - scan.size_px + half
    # Half a pixel inside, so that the nearest whole pixel is too.
    return np.clip(measured_px + away, half - 0.4, last + 0.4)


def _batches(count: int) -> list[NDArray[np.int64]]:
    return [np.arange(first, min(first + BATCH_FRAMES, count)) for first in range(0, count, BATCH_FRAMES)]


def _steps(scan: Scan, obj: Tensor, probe: Tensor, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    index = rows_of(rows, obj.device)
    spectrum = torch.fft.fft2(probe) * frame_ramps(scan, index)
    patch = gather(obj, scan.corner[rows], scan.size_px)[:, None]
    wave = far_field(torch.fft.ifft2(spectrum) * patch)
    modulus = intensity(wave).clamp_(min=torch.finfo(scan.amplitude.dtype).tiny).sqrt_()
    gap = scan.amplitude[index] - modulus
    weight = 1.0 / modulus if scan.trusted is None else scan.trusted / modulus
    frequency = torch.fft.fftfreq(scan.size_px, device=obj.device, dtype=scan.amplitude.dtype)
    slopes = []
    for axis in (frequency[:, None], frequency[None, :]):
        # d/ds of exp(−2πi f·s)
        moved = far_field(torch.fft.ifft2(spectrum * (-2j * np.pi * axis)) * patch)
        slopes.append((wave.real * moved.real + wave.imag * moved.imag).sum(dim=1) * weight)
    normal = torch.stack([_dot(slopes[a], slopes[b]) for a in (0, 1) for b in (0, 1)], dim=-1).reshape(-1, 2, 2)
    asked = torch.stack([_dot(slope, gap) for slope in slopes], dim=-1)
    trace = normal.diagonal(dim1=1, dim2=2).sum(-1)[:, None, None]
    damping = DAMPING * trace + torch.finfo(torch.float32).tiny
    damped = normal + damping * torch.eye(2, dtype=torch.float64, device=obj.device)
    return torch.linalg.solve(damped, asked[..., None])[..., 0].cpu().numpy()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Σ a·b of each frame, shape (b,), in double precision."""
    return (a * b).sum(dim=(1, 2), dtype=torch.float64)
