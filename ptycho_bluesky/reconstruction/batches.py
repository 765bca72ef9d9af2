"""One mini-batch of the ePIE family: what its frames ask of object and probe, and the step that follows.

Two implementations do the same: `TorchBatches` on any device of torch, `CpuBatches` with compiled loops between the
transforms, several times faster on a CPU.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho_bluesky.reconstruction import kernels
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

__all__ = ["Batches", "CpuBatches", "TorchBatches", "change_to_modulus", "make_batches"]

CHUNK_BYTES = 1 << 19
"""Waves that a thread works on at once: its buffers stay in the second- and third-level cache."""
MIN_FRAMES_A_THREAD = 8
"""Fewer frames are not worth waking a second thread for."""


class Batches(Protocol):
    """Works off mini-batches: `sum`, then the steps, in this order.

    A step divides the summed correlation, at each pixel, by α·max(power, peak) + (1 − α)·power: for one frame, with
    its |P|² as the power, that is max|P|² for α = 1 and (1 − α)|P|² + α·max|P|² otherwise. In a batch the summed power
    replaces the peak where it is larger, so that no pixel is moved by more than the mean of what its frames ask for.
    """

    def sum(self, probe: Tensor, rows: NDArray[np.int64], with_probe: bool) -> Tensor | float:
        """Sum the correlations P*·χ and O*·χ of the frames ``rows``, χ being the changes to the measured moduli.

        Parameters
        ----------
        probe : Tensor of complex, shape (modes, N, N)
        rows : ndarray of int64
        with_probe : bool
            Whether `step_probe` will follow.

        Returns
        -------
        Tensor of shape () or float
            Σ(|F| − √I)²; left on the device, so that nothing waits for it.
        """
        ...

    def step_object(self, step: float, weight: float) -> None:
        """Step the object, with ``weight`` for α and Σ|P|², sub-pixel shifts left out, for the power."""
        ...

    def step_probe(self, probe: Tensor, step: float, weight: float) -> None:
        """Step the probe, in place, with Σ|O|² over the windows for the power."""
        ...


def make_batches(scan: Scan, obj: Tensor, modes: int, threads: int = 1) -> Batches:
    """The fastest implementation for the device of the object, which it updates in place."""
    if obj.device.type == "cpu":
        return CpuBatches(scan, obj, modes, threads)
    return TorchBatches(scan, obj)


def change_to_modulus(wave: Tensor, amplitude: Tensor, trusted: Tensor | None) -> tuple[Tensor, Tensor]:
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


def _box(corner: NDArray[np.int64], size: int) -> tuple[slice, slice]:
    low, high = corner.min(axis=0), corner.max(axis=0) + size
    return slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1]))


class TorchBatches:
    """Mini-batches by operations of torch, on any of its devices.

    Parameters
    ----------
    scan : Scan
    obj : Tensor of complex, shape (rows, cols)
        Updated in place.
    """

    def __init__(self, scan: Scan, obj: Tensor) -> None:
        self._scan, self._obj = scan, obj
        self._numerator = torch.zeros_like(obj)
        self._light = torch.zeros(obj.shape, dtype=obj.real.dtype, device=obj.device)
        self._light_peak = torch.zeros((), device=obj.device)
        self._probe_sums: tuple[Tensor, Tensor, Tensor] | None = None

    def sum(self, probe: Tensor, rows: NDArray[np.int64], with_probe: bool) -> Tensor:
        """Sum over the frames ``rows``."""
        scan, corner = self._scan, self._scan.corner[rows]
        index = rows_of(rows, self._obj.device)
        ramp = frame_ramps(scan, index)
        shifted = torch.fft.ifft2(torch.fft.fft2(probe) * ramp)
        patch = gather(self._obj, corner, scan.size_px)[:, None]
        change, misfit = change_to_modulus(far_field(shifted * patch), scan.amplitude[index], scan.trusted)
        power = intensity(probe[None])[0]
        scatter_add(self._numerator.zero_(), sum_modes(shifted.conj() * change), corner)
        scatter_add(self._light.zero_(), power.expand(len(corner), -1, -1), corner)
        self._light_peak = power.amax()
        if with_probe:
            correlation = torch.fft.fft2(patch.conj() * change).mul_(ramp.conj()).sum(dim=0)
            patch_power = intensity(patch)
            self._probe_sums = torch.fft.ifft2(correlation), patch_power.sum(dim=0), patch_power.amax()
        return misfit

    def step_object(self, step: float, weight: float) -> None:
        """Step the object."""
        self._obj += self._numerator * (step / _divisor(self._light, self._light_peak, weight))

    def step_probe(self, probe: Tensor, step: float, weight: float) -> None:
        """Step the probe."""
        if self._probe_sums is not None:
            correlation, power, peak = self._probe_sums
            probe += correlation * (step / _divisor(power, peak, weight))


def _divisor(power: Tensor, peak: Tensor, weight: float) -> Tensor:
    return power.clamp(min=peak) * weight + power * (1.0 - weight)


class CpuBatches:
    """Mini-batches by compiled loops between the transforms, on the threads of this process.

    Parameters
    ----------
    scan : Scan
        On the CPU.
    obj : Tensor of complex, shape (rows, cols)
        Updated in place; contiguous.
    modes : int
        Of the probe.
    threads : int
        Each takes an equal part of a batch. The same number gives the same result bit for bit.
    """

    def __init__(self, scan: Scan, obj: Tensor, modes: int, threads: int = 1) -> None:
        self._scan, self._obj = scan, _parts(obj)
        self._workers = [_Worker(scan, obj, modes) for _ in range(max(1, threads))]
        self._pool = ThreadPoolExecutor(len(self._workers) - 1) if len(self._workers) > 1 else None
        real = scan.amplitude.dtype
        self._light = torch.zeros(tuple(obj.shape), dtype=real).numpy()
        self._power = torch.zeros((scan.size_px, scan.size_px), dtype=real).numpy()
        self._light_peak = self._power[0, 0]
        self._box = (slice(0, 0), slice(0, 0))

    def sum(self, probe: Tensor, rows: NDArray[np.int64], with_probe: bool) -> float:
        """Sum over the frames ``rows``."""
        # The kernels expect inverse transforms without their norm.
        spectrum = _parts(torch.fft.fft2(probe, norm="forward"))
        workers = self._workers[: max(1, min(len(self._workers), len(rows) // MIN_FRAMES_A_THREAD))]
        self._box = _box(self._scan.corner[rows], self._scan.size_px)
        parts = np.array_split(rows, len(workers)) if len(workers) > 1 else [rows]
        others = [
            self._pool.submit(worker.sum, spectrum, part, with_probe)
            for worker, part in zip(workers[1:], parts[1:], strict=True)
            if self._pool is not None
        ]
        misfit = workers[0].sum(spectrum, parts[0], with_probe)
        self._light_peak = kernels.probe_power(_parts(probe), self._power)
        kernels.add_illumination(self._light, self._power, self._scan.corner, rows)
        for worker, other in zip(workers[1:], others, strict=True):
            misfit += other.result()
            workers[0].take(worker, self._box, with_probe)
        return misfit

    def step_object(self, step: float, weight: float) -> None:
        """Step the object, and empty the sums for the next batch."""
        rows, cols = self._box
        kernels.step_box(
            self._obj, self._workers[0].numerator_parts, self._light, rows.start, rows.stop, cols.start, cols.stop,
            self._light_peak, self._kind(step), self._kind(weight),
        )  # fmt: skip

    def step_probe(self, probe: Tensor, step: float, weight: float) -> None:
        """Step the probe."""
        first = self._workers[0]
        correlation = torch.fft.ifft2(first.spectrum)
        kernels.step_modes(
            _parts(probe), _parts(correlation), first.patch_power, first.patch_peak.max(),
            self._kind(step), self._kind(weight),
        )  # fmt: skip

    def _kind(self, value: float) -> Any:
        return self._power.dtype.type(value)


def _parts(wave: Tensor) -> NDArray[Any]:
    """Real numbers (..., N, 2N) of complex ones (..., N, N), sharing their memory."""
    return torch.view_as_real(wave).flatten(-2).numpy()


class _Worker:
    """Buffers of one thread, and what it adds up."""

    def __init__(self, scan: Scan, obj: Tensor, modes: int) -> None:
        size, kind = scan.size_px, obj.dtype
        real = scan.amplitude.dtype
        self._chunk = max(1, CHUNK_BYTES // (modes * size * size * obj.element_size()))
        self._obj, self._corner = _parts(obj), np.ascontiguousarray(scan.corner)
        self._ramp_row, self._ramp_col = _parts(scan.ramp_row), _parts(scan.ramp_col)
        self._amplitude = scan.amplitude.numpy()
        trusted = scan.trusted
        self._trusted = (torch.zeros((0, 0), dtype=real) if trusted is None else trusted.to(real)).numpy()
        shape = (self._chunk, modes, size, size)
        self._waves = [torch.empty(shape, dtype=kind) for _ in range(3)]
        self._waves_parts = [_parts(wave) for wave in self._waves]
        self.numerator_parts = _parts(torch.zeros_like(obj))
        self.spectrum = torch.zeros((modes, size, size), dtype=kind)
        self._spectrum_parts = _parts(self.spectrum)
        self.patch_power = torch.zeros((size, size), dtype=real).numpy()
        self.patch_peak = torch.zeros(size, dtype=real).numpy()
        self._scale = self._amplitude.dtype.type(1.0 / size)
        self._tiny = np.finfo(self._amplitude.dtype).tiny

    def sum(self, spectrum: NDArray[Any], rows: NDArray[np.int64], with_probe: bool) -> float:
        """Sum over the frames ``rows``; returns their squared misfit."""
        if with_probe:
            self.spectrum.zero_()
            self.patch_power[:] = 0
            self.patch_peak[:] = 0
        return sum(
            self._sum_chunk(spectrum, rows[first : first + self._chunk], with_probe)
            for first in range(0, len(rows), self._chunk)
        )

    def _sum_chunk(self, spectrum: NDArray[Any], rows: NDArray[np.int64], with_probe: bool) -> float:
        work, shifted, wave = (buffer[: len(rows)] for buffer in self._waves)
        work_parts, shifted_parts, wave_parts = (parts[: len(rows)] for parts in self._waves_parts)
        kernels.ramped_spectrum(spectrum, self._ramp_row, self._ramp_col, rows, work_parts)
        torch.fft.ifft2(work, norm="forward", out=shifted)
        kernels.exit_waves(shifted_parts, self._obj, self._corner, rows, work_parts)
        torch.fft.fft2(work, out=wave)
        misfit = kernels.put_modulus(wave_parts, self._amplitude, self._trusted, rows, self._scale, self._tiny)
        torch.fft.ifft2(wave, norm="forward", out=work)
        kernels.correlate(
            shifted_parts, work_parts, self._obj, self._corner, rows, self._scale,
            self.numerator_parts, self.patch_power, self.patch_peak, with_probe,
        )  # fmt: skip
        if with_probe:
            torch.fft.fft2(work, out=wave)
            kernels.add_probe_spectrum(wave_parts, self._ramp_row, self._ramp_col, rows, self._spectrum_parts)
        return misfit

    def take(self, other: _Worker, box: tuple[slice, slice], with_probe: bool) -> None:
        """Move what another thread has summed to here."""
        part = (box[0], slice(2 * box[1].start, 2 * box[1].stop))
        self.numerator_parts[part] += other.numerator_parts[part]
        other.numerator_parts[part] = 0
        if with_probe:
            self.spectrum += other.spectrum
            self.patch_power += other.patch_power
            np.maximum(self.patch_peak, other.patch_peak, out=self.patch_peak)
