"""One scan as our engines and pty-chi's see it, and where both start: shared by the parts of ``bench reconstruct``."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ptycho_bluesky.geometry import ObjectFrame
from ptycho_bluesky.reconstruction import EngineOptions, PtychiOptions
from ptycho_bluesky.reconstruction.engine import MARGIN_PX
from ptycho_bluesky.reconstruction.forward import Scan, frame_errors
from ptycho_bluesky.reconstruction.passes import make_engine
from ptycho_bluesky.reconstruction.pie import Pie
from ptycho_bluesky.reconstruction.prepare import prepare_scan, select_frames
from ptycho_bluesky.reconstruction.ptychi_adapter import PtychiEngine
from ptycho_bluesky.reconstruction.starting_probe import starting_probe
from ptycho_bluesky.records import Measurement

__all__ = ["BATCH", "BenchScan", "seconds"]

BATCH = 100
"""Frames of a batch, pty-chi's default."""


@dataclass(frozen=True)
class BenchScan:
    """Frames and positions, and the object and probe that both sides start from.

    Attributes
    ----------
    scan : Scan
    obj : Tensor of complex64, shape (rows, cols)
    probe : Tensor of complex64, shape (1, N, N)
    frame : ObjectFrame
        Of the object.
    """

    scan: Scan
    obj: torch.Tensor
    probe: torch.Tensor
    frame: ObjectFrame

    @classmethod
    def of(cls, measurement: Measurement, probe: NDArray[Any] | None = None, check_probe: bool = True) -> BenchScan:
        """All usable frames of a measurement; ``check_probe`` as in the options of the engines."""
        options = EngineOptions(holdout_fraction=0.0, check_probe=check_probe)
        used = select_frames(measurement, options).used
        size = int(np.shape(measurement.image)[-1])
        frame = ObjectFrame.around(measurement.position_m[used], size, measurement.step_px_m, MARGIN_PX)
        scan = prepare_scan(measurement, used, frame, options)
        wave = torch.from_numpy(starting_probe(measurement, options, probe=probe).wave)
        return cls(scan, torch.ones(frame.shape, dtype=torch.complex64), wave, frame)

    def part(self, rows: NDArray[np.int64]) -> BenchScan:
        """Some of the frames, on the same object."""
        return replace(self, scan=self.scan.part(rows, (0, 0)))

    def ours(self, options: EngineOptions) -> Pie:
        """An engine of ours."""
        engine = make_engine(self.scan, self.obj, self.probe, options)
        assert isinstance(engine, Pie)
        return engine

    def theirs(self, options: PtychiOptions) -> PtychiEngine:
        """An engine of pty-chi's."""
        return PtychiEngine(self.scan, self.obj, self.probe, options)

    def error(self, engine: Pie | PtychiEngine) -> float:
        """Σ(|F| − √I)²/ΣI of all frames with one object and probe."""
        total = float(self.scan.amplitude.double().square().sum())
        return float(frame_errors(self.scan, engine.obj, engine.probe).sum()) / total


def seconds(call: Callable[[], object]) -> float:
    """Wall-clock of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
