"""Maximum likelihood by conjugate gradients: all frames at once, object and probe together.

A step along a direction (dO, dP) changes the exit wave P·O by γ(P·dO + dP·O) + γ²·dP·dO. The far fields of the three
products are kept, so that the likelihood at any γ costs no transform: an iteration takes one inverse transform of all
frames for the gradient and two forward ones for the direction (one with the probe fixed), however many steps are tried.
Directions follow Dai & Yuan (SIAM J. Optim. 10, 177, 1999), scaled by the illumination; steps satisfy Armijo's rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from ptycho_bluesky.reconstruction.forward import Scan, gather, intensity, scatter_add
from ptycho_bluesky.reconstruction.likelihood import Likelihood
from ptycho_bluesky.reconstruction.options import CgOptions
from ptycho_bluesky.reconstruction.shift_basis import ShiftBasis
from ptycho_bluesky.reconstruction.workers import Alone, Workers, make_tiles

__all__ = ["ConjugateGradient", "Gradient"]

CHUNK_BYTES = 4 << 20
"""Waves that are worked on at once."""
DAMPING = 0.05
"""Part of the largest illumination that is added to the local one where gradients are divided by it."""
TRIALS = (2.0, 1.0, 0.5, 0.25)
"""Steps tried in one look at the stored fields, in units of the Gauss–Newton step."""
MAX_LOOKS = 6


class Gradient:
    """Object and probe part of a gradient or direction, a probe part of None being a probe that is not updated."""

    def __init__(self, obj: Tensor, probe: Tensor | None) -> None:
        self.obj, self.probe = obj, probe

    def dot(self, other: Gradient, owned: Tensor | None = None) -> tuple[float, float]:
        """Re⟨self, other⟩ of the object, where it is ``owned``, and of the probe, in double precision."""
        obj = self.obj if owned is None else self.obj * owned
        probe = 0.0 if self.probe is None or other.probe is None else _dot(self.probe, other.probe)
        return _dot(obj, other.obj), probe

    def combined(self, factor: float, other: Gradient | None) -> Gradient:
        """−self + factor · other, on what self holds."""
        obj, probe = -self.obj, None if self.probe is None else -self.probe
        if other is not None:
            obj = obj + factor * other.obj
            if probe is not None and other.probe is not None:
                probe = probe + factor * other.probe
        return Gradient(obj, probe)


class ConjugateGradient:
    """A running maximum-likelihood reconstruction.

    Parameters
    ----------
    scan : Scan
    obj : Tensor of complex, shape (rows, cols)
        Starting object.
    probe : Tensor of complex, shape (modes, N, N)
        Starting probe.
    options : CgOptions
    counted : callable, optional
        Called with the number of frames of every batched transform.
    workers : Workers, optional
        Processes that share the work; each is given the whole scan and object and takes its part of both.

    Attributes
    ----------
    scan : Scan
        Of this worker.
    probe : Tensor of complex, shape (modes, N, N)
    """

    def __init__(
        self,
        scan: Scan,
        obj: Tensor,
        probe: Tensor,
        options: CgOptions,
        counted: Callable[[int], None] | None = None,
        workers: Workers | None = None,
    ) -> None:
        self.options, self.workers, self._counted = options, workers or Alone(), counted or (lambda frames: None)
        self._total = float(scan.amplitude.double().square().sum())
        self._tiles = make_tiles(scan.corner, scan.size_px, (obj.shape[0], obj.shape[1]), self.workers.count)
        tile = self._tiles[self.workers.rank]
        self._tile, self.probe = obj[tile.slices].clone(), probe.clone()
        self._owned = torch.ones(self._tile.shape, dtype=obj.real.dtype, device=obj.device)
        for lower in self._tiles[: self.workers.rank]:
            region = tile.shared(lower)
            if region is not None:
                self._owned[region] = 0
        # What no tile reaches stays as it was; the first worker has it.
        self._outside = obj.clone() if self.workers.rank == 0 else torch.zeros_like(obj)
        for one in self._tiles:
            self._outside[one.slices] = 0
        # Of the whole scan, that it is the same for every worker.
        mean_counts = self._total / scan.amplitude.numel()
        floor = options.poisson_floor if options.noise == "poisson" else options.gaussian_floor * mean_counts
        if self.workers.count > 1:
            scan = scan.part(tile.rows, tile.first)
        self._likelihood = Likelihood(scan.amplitude, scan.trusted, floor, poisson=options.noise == "poisson")
        self._direction: Gradient | None = None
        self._slope_before: Gradient | None = None
        self.move(scan)

    @property
    def obj(self) -> Tensor:
        """The whole object (rows, cols), from all workers: every one of them must ask."""
        if self.workers.count == 1:
            return self._tile
        whole = self._outside.clone()
        whole[self._tiles[self.workers.rank].slices] += self._tile * self._owned
        return self.workers.sum(whole)

    @property
    def gathered_bytes(self) -> int:
        """Bytes that this worker would send an iteration if its whole tile went to all others."""
        pixel = self._tile.element_size() + self._owned.element_size()
        return self._tile.numel() * pixel * (self.workers.count - 1)

    def move(self, scan: Scan) -> None:
        """Go on with other positions of the same frames; the direction starts anew."""
        self.scan = scan
        self._basis = ShiftBasis(scan.rest_px, scan.size_px, self.probe)
        shape = (len(scan), *self.probe.shape)
        self._far = torch.empty(shape, dtype=self._tile.dtype, device=self._tile.device)
        self._first, self._second = torch.empty_like(self._far), None
        self._direction = self._slope_before = None
        self._see()

    def _see(self) -> None:
        """Far fields of the present object and probe."""
        fields = self._basis.fields(self.probe)
        for rows in self._chunks():
            self._far[rows] = self._transform(self._basis.shifted(fields, rows) * self._windows(self._tile, rows))

    def run_pass(self, iteration: int) -> float:
        """One step along one direction.

        Returns
        -------
        float
            Σ(|F| − √I)²/ΣI before it.
        """
        with_probe = self.options.update_probe and iteration >= self.options.probe_start
        slope, value, misfit = self.gradient(with_probe)
        direction = self._next_direction(slope)
        self._look_along(direction)
        descent = 2.0 * self._dots((slope, direction))[0]
        step = self._search(value, descent)
        self._go(direction, step)
        self._direction, self._slope_before = direction, slope
        return misfit / self._total

    def gradient(self, with_probe: bool) -> tuple[Gradient, float, float]:
        """Gradient ∂L/∂O*, ∂L/∂P* of the likelihood at the present object and probe.

        Returns
        -------
        Gradient
        float
            L.
        float
            Σ(|F| − √I)².
        """
        slope = torch.zeros_like(self._tile)
        fields = self._basis.fields(self.probe)
        collected = torch.zeros_like(fields)
        value = misfit = 0.0
        for rows in self._chunks():
            residual, more, gap = self._likelihood.residual(self._far[rows], rows)
            value, misfit = value + more, misfit + gap
            self._counted(len(residual))
            change = torch.fft.ifft2(residual, norm="ortho")
            shifted = self._basis.shifted(fields, rows)
            scatter_add(slope, (shifted.conj() * change).sum(dim=1), self.scan.corner[rows])
            if with_probe:
                collected += self._basis.collect(self._windows(self._tile, rows).conj() * change, rows)
        self.workers.sum_shared(slope, self._tiles)
        probe = self.workers.sum(self._basis.combine(collected)) if with_probe else None
        value, misfit = self.workers.sum(torch.tensor([value, misfit], dtype=torch.float64)).tolist()
        return Gradient(slope, probe), value, misfit

    def _dots(self, *pairs: tuple[Gradient, Gradient]) -> list[float]:
        """Inner products over the whole object and the probe."""
        found = torch.tensor([a.dot(b, self._owned) for a, b in pairs], dtype=torch.float64)
        found[:, 0] = self.workers.sum(found[:, 0].contiguous())
        return found.sum(dim=1).tolist()

    def _next_direction(self, slope: Gradient) -> Gradient:
        """Dai–Yuan direction of the scaled gradient; steepest descent where that would not descend."""
        scaled = self._scaled(slope)
        before, last = self._slope_before, self._direction
        if before is None or last is None or (slope.probe is None) != (last.probe is None):
            return scaled.combined(0.0, None)
        along, along_before, steepest = self._dots((last, slope), (last, before), (scaled, slope))
        divisor = along - along_before
        factor = steepest / divisor if divisor > 0 else 0.0
        # The new direction is −scaled + factor · last.
        return scaled.combined(factor if factor * along < steepest else 0.0, last)

    def _scaled(self, slope: Gradient) -> Gradient:
        """The gradient divided by the curvature that a flat object or probe would have."""
        power = intensity(self.probe[None])[0]
        light = torch.zeros(self._tile.shape, dtype=power.dtype, device=power.device)
        scatter_add(light, power.expand(len(self.scan), -1, -1), self.scan.corner)
        self.workers.sum_shared(light, self._tiles)
        obj = slope.obj / (light + DAMPING * self.workers.largest(light.amax()))
        if slope.probe is None:
            return Gradient(obj, None)
        patches = torch.zeros_like(power)
        strength = self._tile.real.square() + self._tile.imag.square()
        for rows in self._chunks():
            patches += gather(strength, self.scan.corner[rows], self.scan.size_px).sum(dim=0)
        self.workers.sum(patches)
        return Gradient(obj, slope.probe / (patches + DAMPING * patches.amax()))

    def _look_along(self, direction: Gradient) -> None:
        """Far fields of the first and second order of a step."""
        fields = self._basis.fields(self.probe)
        moved = None if direction.probe is None else self._basis.fields(direction.probe)
        if moved is None:
            self._second = None
        elif self._second is None:
            self._second = torch.empty_like(self._far)
        for rows in self._chunks():
            window = self._windows(direction.obj, rows)
            first = self._basis.shifted(fields, rows) * window
            if moved is not None and self._second is not None:
                shifted = self._basis.shifted(moved, rows)
                first += shifted * self._windows(self._tile, rows)
                self._second[rows] = self._transform(shifted * window)
            self._first[rows] = self._transform(first)

    def _search(self, value: float, descent: float) -> float:
        """Best of the tried steps that satisfies Armijo's rule; 0 where none does."""
        own = 2.0 * sum(_dot(self._first[rows], self._first[rows]) for rows in self._chunks())
        curvature = float(self.workers.sum(torch.tensor(own, dtype=torch.float64)))
        step = -descent / curvature if curvature > 0 else 0.0
        for _ in range(MAX_LOOKS):
            steps = [trial * step for trial in TRIALS]
            values = np.zeros(len(steps))
            for rows in self._chunks():
                second = None if self._second is None else self._second[rows]
                values += self._likelihood.along(self._far[rows], self._first[rows], second, rows, steps)
            values = self.workers.sum(torch.from_numpy(values)).numpy()
            allowed = values <= value + self.options.armijo * descent * np.asarray(steps)
            if allowed.any():
                best = int(np.argmin(np.where(allowed, values, np.inf)))
                return steps[best]
            step *= TRIALS[-1] / 2
        return 0.0

    def _go(self, direction: Gradient, step: float) -> None:
        self._tile += step * direction.obj
        if direction.probe is not None:
            self.probe += step * direction.probe
        for rows in self._chunks():
            self._far[rows] += step * self._first[rows]
            if self._second is not None:
                self._far[rows] += step**2 * self._second[rows]

    def memory(self) -> dict[str, Tensor]:
        """Far fields, direction and gradient of the last step; of this worker's part."""
        found: dict[str, Tensor] = {"far": self._far}
        for name, item in (("direction", self._direction), ("slope", self._slope_before)):
            if item is not None:
                found[f"{name}_object"] = item.obj
                if item.probe is not None:
                    found[f"{name}_probe"] = item.probe
        return found

    def recall(self, memory: Mapping[str, Tensor]) -> None:
        """Inverse of `memory`."""
        if "far" in memory:
            self._far.copy_(memory["far"])
        pair = [
            Gradient(memory[f"{name}_object"].to(self._tile), _optional(memory.get(f"{name}_probe"), self._tile))
            if f"{name}_object" in memory
            else None
            for name in ("direction", "slope")
        ]
        self._direction, self._slope_before = pair

    def _chunks(self) -> Iterator[slice]:
        frames = max(1, CHUNK_BYTES // (self.probe.numel() * self.probe.element_size()))
        return (slice(first, min(first + frames, len(self.scan))) for first in range(0, len(self.scan), frames))

    def _windows(self, canvas: Tensor, rows: slice) -> Tensor:
        return gather(canvas, self.scan.corner[rows], self.scan.size_px)[:, None]

    def _transform(self, waves: Tensor) -> Tensor:
        self._counted(len(waves))
        return torch.fft.fft2(waves, norm="ortho")


def _optional(wave: Tensor | None, like: Tensor) -> Tensor | None:
    return None if wave is None else wave.to(like)


def _dot(a: Tensor, b: Tensor) -> float:
    """Re⟨a, b⟩; parts are summed in single precision, their sums in double."""
    return float(torch.sum(torch.view_as_real(a) * torch.view_as_real(b), dtype=torch.float64))
