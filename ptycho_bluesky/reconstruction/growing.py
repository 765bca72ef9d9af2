"""A reconstruction that begins while the scan runs: frames are added, the object grows, an image is there always."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ptycho_bluesky._version import __version__
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import ObjectFrame
from ptycho_bluesky.reconstruction.forward import Scan, frame_errors
from ptycho_bluesky.reconstruction.gauge import fix_gauge
from ptycho_bluesky.reconstruction.options import EpieOptions, PieOptions
from ptycho_bluesky.reconstruction.pie import Pie
from ptycho_bluesky.records import Reconstruction

__all__ = ["GrowingReconstruction"]

logger = logging.getLogger(__name__)

MARGIN_PX = 8
GROWTH_PX = 64
"""The object grows by this much more than it must, so that it does not grow at every frame."""
MAX_SIDE_PX = 8192
"""A position that would ask for a larger object is an outlier."""


class GrowingReconstruction:
    """An engine of the ePIE family that takes frames while it runs.

    Parameters
    ----------
    probe : ndarray of complex, shape (N, N) or (modes, N, N)
        Starting probe, in √counts.
    pixel_size_m : float
        Object pixel.
    options : PieOptions, optional
        Settling comes with `finish`; refined positions, which need the whole scan, are left out.
    mask : ndarray of bool, shape (N, N), optional
        True where a pixel can be trusted, zero frequency at ``[N//2, N//2]``.

    Attributes
    ----------
    excluded : dict
        Frames that were not taken, by reason.
    frames : ndarray of int64, shape (n,)
        Those that were taken, numbered from 0 in the order in which all were offered.
    """

    def __init__(
        self,
        probe: NDArray[Any],
        pixel_size_m: float,
        options: PieOptions | None = None,
        mask: NDArray[np.bool_] | None = None,
    ) -> None:
        self.options = (options or EpieOptions()).model_copy(update={"settle_fraction": 0.0, "probe_start": 0})
        self._kind = torch.complex128 if self.options.dtype == "complex128" else torch.complex64
        waves = np.asarray(probe)
        self._probe = torch.from_numpy(np.array(waves.reshape(-1, *waves.shape[-2:]))).to(self._kind)
        self._trusted = None if mask is None else torch.fft.ifftshift(torch.from_numpy(np.array(mask, dtype=bool)))
        self._pixel_m = pixel_size_m
        real = self._probe.real.dtype
        self._amplitude = torch.empty((0, *self._probe.shape[-2:]), dtype=real)
        self._position_m = np.empty((0, 2))
        self._visits = np.empty(0, dtype=np.int64)
        self._frame: ObjectFrame | None = None
        self._engine: Pie | None = None
        self._rng = np.random.default_rng(self.options.seed)
        self._beam = float("nan")
        self._offered = 0
        self.frames = np.empty(0, dtype=np.int64)
        self.excluded = {"no position": 0, "outlier": 0, "no intensity monitor": 0}

    def __len__(self) -> int:
        """Number of frames taken."""
        return len(self._position_m)

    def append(self, image: ArrayLike, position_m: ArrayLike, i0: ArrayLike | None = None) -> int:
        """Take frames.

        Parameters
        ----------
        image : array-like of counts, shape (b, N, N)
            Zero frequency at ``[N//2, N//2]``; b may be 0.
        position_m : array-like of float, shape (b, 2)
        i0 : array-like of float, shape (b,), optional
            Beam monitor; counts are brought to the beam of the first frames that have one, unless the options say not
            to (``normalise_i0``). NaN for all of a scan without monitor.

        Returns
        -------
        int
            How many were taken; frames without position, without monitor where others have one, or so far away that
            the object would pass `MAX_SIDE_PX`, are counted in ``excluded`` instead.

        Raises
        ------
        InputError
            The shapes do not fit.
        """
        counts = np.asarray(image)
        position = np.asarray(position_m, dtype=np.float64).reshape(-1, 2)
        size = self._probe.shape[-1]
        if counts.shape[1:] != (size, size) or len(counts) != len(position):
            raise InputError(
                f"frames of shape {counts.shape} at {len(position)} positions",
                f"both (b, …), frames of {size} × {size}",
            )
        scale = self._beam_scale(len(position), i0)
        keep = self._acceptable(position, np.isfinite(scale))
        self.frames = np.concatenate([self.frames, self._offered + np.flatnonzero(keep)])
        self._offered += len(keep)
        if not keep.any():
            return 0
        brought = counts[keep].astype(np.float64) * scale[keep, None, None]
        frames = torch.from_numpy(brought).to(self._amplitude.dtype)
        amplitude = torch.fft.ifftshift(frames, dim=(-2, -1)).clamp_(min=0).sqrt_()
        if self._trusted is not None:
            amplitude *= self._trusted
        self._amplitude = torch.cat([self._amplitude, amplitude])
        self._position_m = np.concatenate([self._position_m, position[keep]])
        self._visits = np.concatenate([self._visits, np.zeros(int(keep.sum()), dtype=np.int64)])
        self._rebuild()
        return int(keep.sum())

    def _beam_scale(self, count: int, i0: ArrayLike | None) -> NDArray[np.float64]:
        """Factor (count,) that takes counts to the beam of the first frames; NaN where the monitor says nothing."""
        beam = np.full(count, np.nan) if i0 is None else np.asarray(i0, dtype=np.float64)
        good = np.isfinite(beam) & (beam > 0)
        if not self.options.normalise_i0 or not (good.any() or np.isfinite(self._beam)):
            return np.ones(count)
        if not np.isfinite(self._beam):
            self._beam = float(beam[good].mean())
        return np.where(good, self._beam / np.where(good, beam, 1.0), np.nan)

    def _acceptable(self, position: NDArray[np.float64], monitored: NDArray[np.bool_]) -> NDArray[np.bool_]:
        self.excluded["no intensity monitor"] += int((~monitored).sum())
        position = position[monitored]
        keep = monitored.copy()
        keep[monitored] = self._placed(position)
        if not keep.all():
            logger.warning("frames not taken: %s", {name: count for name, count in self.excluded.items() if count})
        return keep

    def _placed(self, position: NDArray[np.float64]) -> NDArray[np.bool_]:
        finite = np.asarray(np.isfinite(position).all(axis=1))
        keep = np.array(finite)
        if finite.any():
            known = self._position_m if len(self) else position[finite]
            middle = np.median(known, axis=0)
            reach = (MAX_SIDE_PX // 2 - self._probe.shape[-1]) * self._pixel_m
            keep[finite] = (np.abs(position[finite] - middle) < reach).all(axis=1)
        self.excluded["no position"] += int((~finite).sum())
        self.excluded["outlier"] += int((finite & ~keep).sum())
        return keep

    def _rebuild(self) -> None:
        """Scan and engine of all frames so far; the object keeps what it has."""
        size = int(self._probe.shape[-1])
        needed = ObjectFrame.around(self._position_m, size, self._pixel_m, MARGIN_PX)
        obj, probe = (None, self._probe) if self._engine is None else (self._engine.obj, self._engine.probe)
        if self._frame is None or not _holds(self._frame, needed):
            self._frame, obj = _grown(self._frame, needed, obj, self._kind)
        assert obj is not None
        position_px = self._frame.to_px(self._position_m)
        scan = Scan.prepare(self._amplitude, self._trusted, position_px, self._kind)
        self._engine = Pie(scan, obj, probe, self.options)

    def work(self, updates: int) -> None:
        """Spend frame-updates; nothing happens before the first frame.

        Half of each batch are the frames that have had the fewest updates, the other half any: updates of new frames
        alone would take object and probe away from the others.
        """
        if self._engine is None:
            return
        while updates > 0:
            batch = min(self.options.batch_size, updates, len(self))
            chance = self._visits + self._rng.random(len(self))
            new = np.argpartition(chance, (batch + 1) // 2 - 1)[: (batch + 1) // 2]
            old = self._rng.permutation(np.setdiff1d(np.arange(len(self)), new))[: batch - len(new)]
            self._update(np.concatenate([new, old]), 1.0)
            updates -= batch

    def finish(self, passes: int) -> None:
        """Passes over all frames with steps that shrink to ``settle_to``: when the scan is over, averages noise."""
        for done in range(1, passes + 1):
            order = self._rng.permutation(len(self))
            for first in range(0, len(order), self.options.batch_size):
                self._update(order[first : first + self.options.batch_size], self.options.settle_to ** (done / passes))

    def _update(self, rows: NDArray[np.int64], scale: float) -> None:
        if self._engine is not None:
            step_probe = self.options.alpha_probe * scale if self.options.update_probe else 0.0
            self._engine.update(np.sort(rows), self.options.alpha_object * scale, step_probe)
            self._visits[rows] += 1

    def error(self) -> float:
        """Σ(|F| − √I)²/ΣI of all frames so far; NaN before the first."""
        if self._engine is None:
            return float("nan")
        total = float(self._amplitude.double().square().sum())
        return float(frame_errors(self._engine.scan, self._engine.obj, self._engine.probe).sum()) / total

    def result(self) -> Reconstruction:
        """Object and probe so far, in the package's gauge.

        Raises
        ------
        InputError
            No frame has come yet.
        """
        if self._engine is None or self._frame is None:
            raise InputError("a reconstruction without frames", "an image needs at least one")
        obj, probe = self._engine.obj.numpy(), self._engine.probe.numpy()
        obj, probe, frame = fix_gauge(obj, probe, self._frame, self._position_m)
        return Reconstruction(
            object=obj.astype(np.complex64),
            probe=probe.astype(np.complex64),
            position_m=self._position_m.copy(),
            frame=frame,
            error=np.array([self.error()]),
            geometry=None,
            engine=self.options.engine,
            options=self.options.model_dump(),
            provenance={"frames_excluded": dict(self.excluded), "versions": {"ptycho_bluesky": __version__}},
        )


def _holds(frame: ObjectFrame, needed: ObjectFrame) -> bool:
    first = np.rint(frame.to_px(np.array(needed.origin_m)))
    return bool((first >= 0).all() and (first + needed.shape <= frame.shape).all())


def _grown(
    frame: ObjectFrame | None, needed: ObjectFrame, obj: torch.Tensor | None, kind: torch.dtype
) -> tuple[ObjectFrame, torch.Tensor]:
    """A frame on the old one's pixels that holds it and the needed one, and the object in it; 1 where it is new."""
    if frame is None or obj is None:
        return needed, torch.ones(needed.shape, dtype=kind)
    first = np.floor(frame.to_px(np.array(needed.origin_m))).astype(int)
    last = first + needed.shape + 1
    low = np.where(first < 0, first - GROWTH_PX, 0)
    high = np.where(last > frame.shape, last + GROWTH_PX, frame.shape)
    origin = frame.to_m(low.astype(np.float64))
    shape = (int(high[0] - low[0]), int(high[1] - low[1]))
    grown = replace(frame, origin_m=(float(origin[0]), float(origin[1])), shape=shape)
    canvas = torch.ones(shape, dtype=kind)
    canvas[-low[0] : -low[0] + frame.shape[0], -low[1] : -low[1] + frame.shape[1]] = obj
    return grown, canvas
