"""The checks beside the inference of one run: light, physics residual, flags; within a share of its time."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.inference import LoadedModel
from ptycho_bluesky.stitching.mosaic import MosaicImage
from ptycho_bluesky.trust.disagreement import disagreement
from ptycho_bluesky.trust.flags import Flag, flag_frames, run_flags
from ptycho_bluesky.trust.light import Light, LightScale
from ptycho_bluesky.trust.maps import map_values
from ptycho_bluesky.trust.physics import Physics, read_physics
from ptycho_bluesky.trust.residual import ResidualMeter

__all__ = ["RunTrust"]

logger = logging.getLogger(__name__)

SMOOTHING = 0.1
"""Weight of the newest batch in the running means of cost, rate and residual."""
EQUAL_LIGHT = 0.005
"""Factors that differ by less than this are one: it changes the roots of the counts by 0.25 %."""
CHUNK_FRAMES = 4
"""Frames checked at once: their waves stay in the processor's cache."""
MAP_PERIOD_S = 2.0
"""Least time between two maps of a running scan: they cost milliseconds."""


@dataclass
class _ModelChecks:
    """What is known of one model in this run."""

    physics: Physics | None
    reason: str
    scale: LightScale
    meter: ResidualMeter | None = None
    counted: dict[Flag, int] = field(default_factory=dict)
    checked: int = 0
    flagged: int = 0
    residual_sum: float = 0.0
    warned: bool = False


class RunTrust:
    """Scales the counts of a run to its models' light, and checks what they read.

    Parameters
    ----------
    light : Light
        Of the run.
    share : float
        Part of the run's time that residuals may take; 1 or more: every frame is checked.

    Notes
    -----
    Every k-th frame is checked, k being the smallest number that keeps the cost of a residual (measured) within the
    share of the time between frames (measured): at low rates every frame is.
    """

    def __init__(self, light: Light, share: float = 0.05) -> None:
        self.light, self.share = light, share
        self.latest = math.nan
        """Running mean of the residuals."""
        self.every = 1
        self.frames_without_i0 = 0
        self._models: dict[str, _ModelChecks] = {}
        self._model_id = ""
        self._good: NDArray[np.bool_] | None = None
        self._frames = 0
        self._cost_s, self._interval_s = math.nan, math.nan
        self._last_s = math.nan
        self._disagreement = math.nan
        self._next_map_s = 0.0

    # --- light -------------------------------------------------------------------------------------------------------

    def factors(self, model: LoadedModel | None, i0: NDArray[np.float64]) -> NDArray[np.float32]:
        """Factors (n,) that bring the counts of frames with monitor values (n,) to the light of a model's training."""
        if model is None:
            self.frames_without_i0 += int(np.count_nonzero(~(i0 > 0)))
            return np.ones(len(i0), dtype=np.float32)
        checks = self._checks_of(model)
        factor, without = checks.scale.factors(i0)
        self.frames_without_i0 += int(without.sum())
        if not checks.warned and (warning := checks.scale.warning()):
            checks.warned = True
            logger.warning("light of the run: %s", warning)
        return factor

    @staticmethod
    def scaled(model: LoadedModel, counts: NDArray[np.float32], factor: NDArray[np.float32]) -> NDArray[np.float32]:
        """Read counts (n, N, N) times their factors (n,); phase (n, h, w)."""
        low, high = float(factor.min()), float(factor.max())
        if max(abs(low - 1.0), abs(high - 1.0)) < EQUAL_LIGHT:
            return model.engine.infer(counts)
        if high - low < 2 * EQUAL_LIGHT * low:
            own = float(model.engine.manifest.get("count_scale", 1.0))
            return model.engine.infer(counts, own * 0.5 * (low + high))
        return model.engine.infer(counts * factor[:, None, None])

    # --- frames ------------------------------------------------------------------------------------------------------

    def check(
        self,
        model: LoadedModel,
        counts: NDArray[np.float32],
        phase_rad: NDArray[np.float32],
        factor: NDArray[np.float32],
        good: NDArray[np.bool_],
        unusable: NDArray[np.bool_] | None,
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Residual (n,), NaN where it is not computed, and `Flag` (n,) of frames that a model read.

        Parameters
        ----------
        model : LoadedModel
        counts : ndarray of float32, shape (n, N, N)
            As measured.
        phase_rad : ndarray of float32, shape (n, h, w)
        factor : ndarray of float32, shape (n,)
        good : ndarray of bool, shape (N, N)
        unusable : ndarray of bool, shape (n, N, N), or None
        """
        n = len(counts)
        residual, flags = np.full(n, np.nan, dtype=np.float32), np.zeros(n, dtype=np.uint8)
        rows = self._due(n)
        checks = self._checks_of(model)
        meter = self._meter(checks, phase_rad.shape, good)
        if meter is None or not len(rows):
            return residual, flags
        begun_s = time.thread_time()
        for start in range(0, len(rows), CHUNK_FRAMES):
            at = rows[start : start + CHUNK_FRAMES]
            left_out = None if unusable is None else unusable[at]
            fit = meter.measure(counts[at], phase_rad[at], factor[at], unusable=left_out)
            residual[at] = fit.residual
            if meter.physics.limits is not None:
                flags[at] = flag_frames(fit, meter.physics.limits)
        self._note_cost((time.thread_time() - begun_s) / len(rows))
        self._count(checks, residual[rows], flags[rows])
        return residual, flags

    def _due(self, n: int) -> NDArray[np.int64]:
        """Rows of a batch of n frames that are to be checked now."""
        now_s = time.monotonic()
        if np.isfinite(self._last_s):
            interval_s = (now_s - self._last_s) / n
            known = np.isfinite(self._interval_s)
            self._interval_s += SMOOTHING * (interval_s - self._interval_s) if known else 0.0
            self._interval_s = self._interval_s if known else interval_s
        self._last_s = now_s
        if self.share >= 1.0 or not np.isfinite(self._cost_s):
            self.every = 1
        elif np.isfinite(self._interval_s):
            budget_s = max(self.share * self._interval_s, 1e-9)
            self.every = max(1, math.ceil(self._cost_s / budget_s)) if self.share > 0 else 0
        first = self._frames
        self._frames += n
        if self.share <= 0:
            return np.zeros(0, dtype=np.int64)
        if self.share < 1.0 and not np.isfinite(self._cost_s):
            return np.zeros(1, dtype=np.int64)  # one frame tells what a check costs
        return np.arange(-first % self.every, n, self.every, dtype=np.int64)

    def _note_cost(self, cost_s: float) -> None:
        self._cost_s = self._cost_s + SMOOTHING * (cost_s - self._cost_s) if np.isfinite(self._cost_s) else cost_s

    def _count(self, checks: _ModelChecks, residual: NDArray[np.float32], flags: NDArray[np.uint8]) -> None:
        known = residual[np.isfinite(residual)]
        checks.checked += len(residual)
        checks.flagged += int(np.count_nonzero(flags))
        checks.residual_sum += float(known.sum())
        for flag in (Flag.CONTRAST, Flag.UNEXPLAINED, Flag.BRIGHTNESS):
            checks.counted[flag] = checks.counted.get(flag, 0) + int(np.count_nonzero(flags & flag))
        if len(known):
            mean = float(known.mean())
            self.latest = mean if np.isnan(self.latest) else self.latest + SMOOTHING * (mean - self.latest)

    def _checks_of(self, model: LoadedModel) -> _ModelChecks:
        checks = self._models.get(model.model_id)
        if checks is None:
            physics, reason = read_physics(model.engine.manifest)
            reference = Light() if physics is None else physics.light
            checks = self._models[model.model_id] = _ModelChecks(physics, reason, LightScale(reference, self.light))
            if reason:
                logger.info("model %s: %s", model.model_id[:12], reason)
        self._model_id = model.model_id
        return checks

    def _meter(self, checks: _ModelChecks, patches: tuple[int, ...], good: NDArray[np.bool_]) -> ResidualMeter | None:
        if checks.meter is None and checks.physics is not None and not checks.reason:
            try:
                checks.meter = ResidualMeter(checks.physics, (patches[1], patches[2]), good)
            except InputError as error:
                checks.reason = str(error)
                logger.warning("no residual: %s", error)
        return checks.meter

    # --- the run -----------------------------------------------------------------------------------------------------

    def flags(self) -> Flag:
        """What is unusual about the run under the present model, as far as it goes."""
        checks = self._models.get(self._model_id)
        if checks is None or checks.physics is None or checks.physics.limits is None:
            return Flag.NONE
        return run_flags(checks.checked, checks.counted, self._disagreement, checks.physics.limits)

    def maps(
        self, image: MosaicImage, log: Mapping[str, NDArray[Any]], sigma_px: float, final: bool
    ) -> dict[str, NDArray[np.float32]]:
        """Map of the residual on the canvas, where it is due; the patches' disagreement is looked at on the way.

        Parameters
        ----------
        image : MosaicImage
        log : mapping
            Frame log of the run.
        sigma_px : float
            Distance over which a frame counts.
        final : bool
            Whether it is the run's last; while it goes on a map is made every `MAP_PERIOD_S`.
        """
        now_s = time.monotonic()
        if not self._models or (not final and now_s < self._next_map_s):
            return {}
        self._disagreement = disagreement(image.phase_rad, image.variance, image.coverage, image.weight)
        maps = {}
        if np.isfinite(log["residual"]).any():
            position_m = np.stack([log["position_y_m"], log["position_x_m"]], axis=1)
            maps["residual"] = map_values(log["residual"], position_m, image.frame, sigma_px)
        self._next_map_s = time.monotonic() + max(MAP_PERIOD_S, 20 * (time.monotonic() - now_s))
        return maps

    def summary(self) -> dict[str, Any]:
        """Light, residuals and flags of the run by model, JSON-able."""
        return {
            "flags": self.flags().words,
            "residual_every": self.every,
            "disagreement": _json(self._disagreement),
            "models": {model_id: self._summary_of(checks) for model_id, checks in self._models.items()},
        }

    def _summary_of(self, checks: _ModelChecks) -> dict[str, Any]:
        limits = None if checks.physics is None else checks.physics.limits
        return {
            "light": checks.scale.as_dict(),
            "frames_checked": checks.checked,
            "frames_flagged": checks.flagged,
            "flagged_by": {flag.words: count for flag, count in checks.counted.items() if count},
            "residual_mean": _json(checks.residual_sum / checks.checked if checks.checked else math.nan),
            "residual_reason": checks.reason,
            "reference": {} if checks.physics is None else dict(checks.physics.figures),
            "limits": None if limits is None else limits.as_dict(),
        }


def _json(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
