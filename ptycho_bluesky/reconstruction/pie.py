"""The ePIE family in mini-batches: object and probe from one pass over the frames after another.

With batches of one frame this is ePIE (Maiden & Rodenburg, Ultramicroscopy 109, 1256, 2009, eqs. 4 and 5) or rPIE with
momentum (Maiden, Johnson & Li, Optica 4, 736, 2017). In a batch the single-frame updates are added up where windows
overlap and divided, at each pixel, by a blend of the summed illumination and the illumination's peak: overlapping
frames are averaged instead of overshooting, lonely ones step as in the sequential engine. Several modes are projected
together (Thibault & Menzel, Nature 494, 68, 2013).
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho_bluesky.reconstruction.batches import make_batches
from ptycho_bluesky.reconstruction.forward import Scan
from ptycho_bluesky.reconstruction.options import PieOptions, RpieOptions

__all__ = ["Pie"]


class Pie:
    """A running reconstruction of the ePIE family.

    Parameters
    ----------
    scan : Scan
    obj : Tensor of complex, shape (rows, cols)
        Starting object.
    probe : Tensor of complex, shape (modes, N, N)
        Starting probe.
    options : PieOptions
        `EpieOptions` or `RpieOptions`.

    Attributes
    ----------
    scan : Scan
    obj : Tensor of complex, shape (rows, cols)
        Updated in place.
    probe : Tensor of complex, shape (modes, N, N)
    """

    def __init__(self, scan: Scan, obj: Tensor, probe: Tensor, options: PieOptions) -> None:
        self.options, self.scan = options, scan
        self.obj, self.probe = obj.clone().contiguous(), probe.clone().contiguous()
        self._batches = make_batches(scan, self.obj, len(probe), _threads(options))
        regularised = isinstance(options, RpieOptions)
        self._weights = (options.regularise_object, options.regularise_probe) if regularised else (1.0, 1.0)
        self._total = float(scan.amplitude.double().square().sum())
        self._push = _Push(self.obj, self.probe, options) if isinstance(options, RpieOptions) else None

    def run_pass(self, iteration: int) -> float:
        """Use every frame once, in the order that the seed gives to this pass.

        Returns
        -------
        float
            Σ(|F| − √I)²/ΣI, each frame judged just before it is used.
        """
        options = self.options
        scale = _settling(iteration, options)
        step_probe = options.alpha_probe * scale if options.update_probe and iteration >= options.probe_start else 0.0
        order = np.random.default_rng([options.seed, iteration]).permutation(len(self.scan))
        misfits = [
            self.update(order[first : first + options.batch_size], options.alpha_object * scale, step_probe)
            for first in range(0, len(order), options.batch_size)
        ]
        return float(torch.stack([torch.as_tensor(m, dtype=torch.float64) for m in misfits]).sum()) / self._total

    def update(self, rows: NDArray[np.int64], step_object: float, step_probe: float) -> Tensor | float:
        """Update object and probe (``step_probe`` = 0 leaves it) from the frames ``rows``.

        Returns
        -------
        Tensor of shape () or float
            Sum of (|F| − √I)² over the frames before the update; left on the device, so that nothing waits for it.
        """
        misfit = self._batches.sum(self.probe, rows, step_probe > 0)
        self._batches.step_object(step_object, self._weights[0])
        if step_probe:
            self._batches.step_probe(self.probe, step_probe, self._weights[1])
        if self._push is not None:
            self._push.after(len(rows), self.obj, self.probe, step_probe > 0)
        return misfit

    def move(self, scan: Scan) -> None:
        """Go on with other positions of the same frames."""
        self.scan = scan
        self._batches = make_batches(scan, self.obj, len(self.probe), _threads(self.options))

    def memory(self) -> dict[str, Tensor]:
        """What, beside object, probe and positions, the next pass depends on."""
        return {} if self._push is None else self._push.memory()

    def recall(self, memory: Mapping[str, Tensor]) -> None:
        """Inverse of `memory`."""
        if self._push is not None:
            self._push.recall(memory)


def _threads(options: PieOptions) -> int:
    return options.threads or os.cpu_count() or 1


class _Push:
    """Momentum: every so many frames object and probe go on by a part of the way that they have come."""

    def __init__(self, obj: Tensor, probe: Tensor, options: RpieOptions) -> None:
        self._keep, self._frames, self._seen = options.momentum, options.momentum_frames, 0
        waves = (obj, probe) if options.momentum else ()
        self._before = [wave.clone() for wave in waves]
        self._velocity = [torch.zeros_like(wave) for wave in waves]

    def after(self, frames: int, obj: Tensor, probe: Tensor, with_probe: bool) -> None:
        """Count the frames of a batch and push when it is time."""
        self._seen += frames
        if not self._keep or self._seen < self._frames:
            return
        self._seen = 0
        for wave, before, velocity, moves in zip(
            (obj, probe), self._before, self._velocity, (True, with_probe), strict=True
        ):
            if moves:
                velocity.mul_(self._keep).add_(wave - before)
                wave.add_(velocity, alpha=self._keep)
            before.copy_(wave)

    def memory(self) -> dict[str, Tensor]:
        names = ("object", "probe")
        found = {f"before_{name}": wave for name, wave in zip(names, self._before, strict=False)}
        found |= {f"velocity_{name}": wave for name, wave in zip(names, self._velocity, strict=False)}
        return {**found, "seen": torch.tensor(self._seen)}

    def recall(self, memory: Mapping[str, Tensor]) -> None:
        for name, before, velocity in zip(("object", "probe"), self._before, self._velocity, strict=False):
            before.copy_(memory[f"before_{name}"])
            velocity.copy_(memory[f"velocity_{name}"])
        self._seen = int(memory["seen"])


def _settling(iteration: int, options: PieOptions) -> float:
    """Factor of the steps: 1, then falling geometrically to ``settle_to`` over the last ``settle_fraction``."""
    settling = round(options.iterations * options.settle_fraction)
    late = iteration - (options.iterations - settling) + 1
    return options.settle_to ** (late / settling) if settling and late > 0 else 1.0
