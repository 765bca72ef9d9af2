"""ePIE in mini-batches: object and probe from one pass over the frames after another.

With batches of one frame this is ePIE (Maiden & Rodenburg, Ultramicroscopy 109, 1256, 2009, eqs. 4 and 5). In a batch
the single-frame updates are added up where windows overlap and divided, at each pixel, by the larger of the summed
illumination and the illumination's peak: overlapping frames are averaged instead of overshooting, lonely ones step as
in ePIE. Several modes are projected together (Thibault & Menzel, Nature 494, 68, 2013).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho_bluesky.reconstruction.forward import (
    Scan,
    far_field,
    frame_ramps,
    gather,
    intensity,
    rows_of,
    scatter_add,
    sum_modes,
)
from ptycho_bluesky.reconstruction.options import EpieOptions

__all__ = ["Epie", "frame_errors", "run_epie"]


@dataclass
class Epie:
    """State of a running reconstruction.

    Attributes
    ----------
    scan : Scan
    obj : Tensor of complex, shape (rows, cols)
        Updated in place.
    probe : Tensor of complex, shape (modes, N, N)
    options : EpieOptions
    """

    scan: Scan
    obj: Tensor
    probe: Tensor
    options: EpieOptions
    _spectrum: Tensor = field(init=False)
    _numerator: Tensor = field(init=False)
    _illumination: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._spectrum = torch.fft.fft2(self.probe)
        self._numerator = torch.zeros_like(self.obj)
        self._illumination = torch.zeros(self.obj.shape, dtype=self.obj.real.dtype, device=self.obj.device)

    def update(self, rows: NDArray[np.int64], step_object: float, step_probe: float) -> Tensor:
        """Update object and probe (``step_probe`` = 0 leaves it) from the frames ``rows``.

        Returns
        -------
        Tensor, shape ()
            Sum of (|F| − √I)² over the frames before the update; left on the device, so that nothing waits for it.
        """
        scan, corner = self.scan, self.scan.corner[rows]
        index = rows_of(rows, self.obj.device)
        ramp = frame_ramps(scan, index)
        probe = torch.fft.ifft2(self._spectrum * ramp)
        patch = gather(self.obj, corner, scan.size_px)[:, None]
        change, misfit = _modulus_change(far_field(probe * patch), scan.amplitude[index], scan.trusted)
        power = intensity(self.probe[None])[0]
        if step_probe:
            self._step_probe(patch, change, ramp, step_probe)
        self._step_object(sum_modes(probe.conj() * change), power, corner, step_object)
        return misfit

    def _step_object(self, correlation: Tensor, power: Tensor, corner: NDArray[np.int64], step: float) -> None:
        # The illumination only scales the step: the probe before its sub-pixel shift is near enough.
        numerator, illumination = self._numerator.zero_(), self._illumination.zero_()
        scatter_add(numerator, correlation, corner)
        scatter_add(illumination, power.expand(len(corner), -1, -1), corner)
        self.obj += numerator.mul_(step / illumination.clamp_(min=power.amax()))

    def _step_probe(self, patch: Tensor, change: Tensor, ramp: Tensor, step: float) -> None:
        correlation = torch.fft.fft2(patch.conj() * change).mul_(ramp.conj()).sum(dim=0)
        power = intensity(patch)
        preconditioner = power.sum(dim=0).clamp_(min=power.amax())
        self.probe = self.probe + torch.fft.ifft2(correlation).mul_(step / preconditioner)
        self._spectrum = torch.fft.fft2(self.probe)


def _modulus_change(wave: Tensor, amplitude: Tensor, trusted: Tensor | None) -> tuple[Tensor, Tensor]:
    """Change of the exit waves that puts the measured modulus on the far field, and the squared misfit.

    Parameters
    ----------
    wave : Tensor of complex, shape (b, modes, N, N)
        Far field; overwritten.
    amplitude : Tensor, shape (b, N, N)
    trusted : Tensor of bool, shape (N, N), or None

    Returns
    -------
    Tensor of complex, shape (b, modes, N, N)
    Tensor, shape ()
    """
    power = intensity(wave).clamp_(min=torch.finfo(amplitude.dtype).tiny)
    # sqrt() costs as much as an FFT of the frame, its reciprocal a tenth of that.
    inverse = power.rsqrt()
    gap = amplitude - power.mul_(inverse)
    if trusted is not None:
        gap *= trusted
    flat = gap.reshape(-1)
    misfit = torch.dot(flat, flat)
    wave *= gap.mul_(inverse)[:, None]
    return torch.fft.ifft2(wave, norm="ortho"), misfit


def run_epie(
    scan: Scan,
    obj: Tensor,
    probe: Tensor,
    options: EpieOptions,
    progress: Callable[[int, int, float], None] | None = None,
) -> tuple[Tensor, Tensor, NDArray[np.float64]]:
    """Run all passes.

    Parameters
    ----------
    scan : Scan
    obj : Tensor of complex, shape (rows, cols)
        Starting object.
    probe : Tensor of complex, shape (modes, N, N)
        Starting probe.
    options : EpieOptions
    progress : callable, optional
        Called with (passes done, passes in all, error) after each pass; an exception in it ends the reconstruction.

    Returns
    -------
    Tensor of complex, shape (rows, cols)
        Object.
    Tensor of complex, shape (modes, N, N)
        Probe.
    ndarray of float64, shape (iterations,)
        Σ(|F| − √I)²/ΣI over each pass, each frame judged just before it is used.
    """
    state = Epie(scan, obj.clone(), probe.clone(), options)
    rng = np.random.default_rng(options.seed)
    total = float(scan.amplitude.double().square().sum())
    error = np.empty(options.iterations)
    for iteration in range(options.iterations):
        scale = _settling(iteration, options)
        step_probe = options.alpha_probe * scale if options.update_probe and iteration >= options.probe_start else 0.0
        order = rng.permutation(len(scan))
        misfits = [
            state.update(order[first : first + options.batch_size], options.alpha_object * scale, step_probe)
            for first in range(0, len(scan), options.batch_size)
        ]
        error[iteration] = float(torch.stack(misfits).double().sum()) / total
        if progress is not None:
            progress(iteration + 1, options.iterations, float(error[iteration]))
    return state.obj, state.probe, error


def _settling(iteration: int, options: EpieOptions) -> float:
    """Factor of the steps: 1, then falling geometrically to ``settle_to`` over the last ``settle_fraction``."""
    settling = round(options.iterations * options.settle_fraction)
    late = iteration - (options.iterations - settling) + 1
    return options.settle_to ** (late / settling) if settling and late > 0 else 1.0


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
