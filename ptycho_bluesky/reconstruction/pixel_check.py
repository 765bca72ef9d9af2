"""Whether the pixel at the sample is the stated one, measured against the stage.

A frame's window is N pixels wide whatever a pixel is; the stage says how far windows lie apart. With the wrong pixel,
neighbouring windows show the same thing in different places, and frames left out are explained badly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.reconstruction.engine import frame_misfit, reconstruct
from ptycho_bluesky.reconstruction.options import EngineOptions, EpieOptions
from ptycho_bluesky.reconstruction.placement import rows_of
from ptycho_bluesky.reconstruction.starting_probe import starting_probe
from ptycho_bluesky.records import Measurement, Reconstruction

__all__ = ["FACTORS", "PixelCheck", "check_pixel", "pixel_gains"]

FACTORS = (0.5, 0.73, 0.88, 0.95, 1.0, 1.05, 1.14, 1.36, 2.0)
"""Pixels that are tried, in units of the stated one: small errors of energy or distance, 55 µm for 75 µm, binning."""
STEPS = (0.04, 0.02)
"""Relative steps about the best so far."""
TOLERANCE = 0.02
"""Relative difference up to which the pixel counts as the stated one."""
NEAR_FACTORS = (0.9, 0.96, 1.04, 1.1)
NEAR_FRAMES, NEAR_PASSES, NEAR_HOLDOUT = 200, 10, 0.2
MIN_SPREAD = 1e-12


@dataclass(frozen=True)
class PixelCheck:
    """What the frames say of the pixel.

    Attributes
    ----------
    factor : float
        Pixel that explains frames left out best, in units of the stated one.
    errors : dict of float to float
        Normalised error of these frames for each factor that was tried.
    """

    factor: float
    errors: Mapping[float, float]

    @property
    def agrees(self) -> bool:
        """Whether it is the stated one, to `TOLERANCE`."""
        return abs(self.factor - 1.0) <= TOLERANCE


def check_pixel(
    measurement: Measurement,
    options: EngineOptions | None = None,
    *,
    progress: Callable[[int, int, str], None] | None = None,
) -> PixelCheck:
    """Reconstruct a scan with several pixels and compare how frames left out are explained.

    Parameters
    ----------
    measurement : Measurement
        Square, centred frames in the right orientation, with positions in metres or in (stated) object pixels.
    options : EngineOptions, optional
        20 passes with a tenth of the frames left out by default.
    progress : callable, optional
        ``progress(done, total, name)``.

    Returns
    -------
    PixelCheck
        The best of `FACTORS`, refined by a parabola through its error and those of its neighbours, twice (`STEPS`).

    Raises
    ------
    InputError
        The measurement cannot be reconstructed.
    """
    chosen = options or EpieOptions(iterations=20, holdout_fraction=0.1)
    # A probe that optics state in metres would speak for the stated pixel.
    bare = replace(measurement, probe=None, metadata={})
    total = len(FACTORS) + 2 * len(STEPS)
    errors: dict[float, float] = {}

    def tried(factor: float) -> float:
        if progress is not None:
            progress(len(errors), total, f"pixel × {factor:.3g}")
        errors[factor] = _error(bare, factor, chosen)
        return errors[factor]

    best, factor = min(FACTORS, key=tried), 1.0
    for step in STEPS:
        below, above = tried(best * (1.0 - step)), tried(best * (1.0 + step))
        bend = below - 2.0 * errors[best] + above
        move = 0.5 * (below - above) / bend if bend > 0 else 0.0
        factor = best * (1.0 + step * float(np.clip(move, -1.5, 1.5)))
        best = min(errors, key=lambda each: errors[each])
    return PixelCheck(factor, dict(sorted(errors.items())))


def pixel_gains(
    measurement: Measurement, reconstruction: Reconstruction, options: EngineOptions
) -> dict[float, tuple[float, float]]:
    """Whether pixels somewhat larger or smaller than the stated one explain frames left out better.

    Parameters
    ----------
    measurement : Measurement
    reconstruction : Reconstruction
        Of it, converged; gives the starting probe.
    options : EngineOptions
        Engine.

    Returns
    -------
    dict of float to tuple of float
        For each of `NEAR_FACTORS` by how much the misfit of the frames left out is smaller than with the stated pixel:
        in units of the standard error of that difference, and relative to the misfit. Negative where it is larger.

    Raises
    ------
    InputError
        There are too few frames.

    Notes
    -----
    `NEAR_PASSES` passes over the `NEAR_FRAMES` frames in the middle, five times. The same frames are left out each
    time, and compared one by one: what noise leaves of each is common to all trials. The probe has adapted to the
    stated pixel, which favours it a little; from a starting guess, all pixels are far from converged after so few
    passes, and a larger one, with which windows overlap more, gets ahead.
    """
    changes = {"iterations": NEAR_PASSES, "holdout_fraction": NEAR_HOLDOUT, "patience": 0, "stop_error": 0.0}
    changes |= {"correct_positions": False, "probe_modes": len(reconstruction.probe), "check_probe": False}
    chosen = options.model_copy(update=changes)
    used = rows_of(reconstruction, measurement, "frames_used")
    away = np.linalg.norm(reconstruction.position_m - np.median(reconstruction.position_m, axis=0), axis=1)
    rows = np.sort(used[np.argsort(away, kind="stable")[:NEAR_FRAMES]])
    position = np.array(measurement.position_m, dtype=np.float64)
    position[used] = reconstruction.position_m
    placed = replace(measurement, position_m=position)
    stated = _misfit(placed, 1.0, chosen, reconstruction.probe, rows)

    def gain(factor: float) -> tuple[float, float]:
        difference = stated - _misfit(placed, factor, chosen, reconstruction.probe, rows)
        spread = max(float(difference.std()), MIN_SPREAD * float(stated.mean()))
        mean = float(difference.mean())
        return mean * float(np.sqrt(len(difference))) / spread, mean / float(stated.mean())

    return {factor: gain(factor) for factor in NEAR_FACTORS}


def _error(measurement: Measurement, factor: float, options: EngineOptions) -> float:
    """Normalised error of frames left out, were the pixel so many times the stated one."""
    return float(_misfit(measurement, factor, options).sum())


def _misfit(
    measurement: Measurement,
    factor: float,
    options: EngineOptions,
    probe: NDArray[Any] | None = None,
    rows: NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:
    """Misfit of each frame left out, were the pixel so many times the stated one; their counts together are 1."""
    # Only the ratio of positions and pixel enters: positions in the pixels of the trial, whose size is then 1.
    position_px = measurement.position_m / (measurement.step_px_m * factor)
    trial = replace(measurement, position_m=position_px, pixel_size_m=None, geometry=None)
    wave = starting_probe(trial, options).wave if probe is None else probe
    result = reconstruct(trial, options, probe=wave, rows=rows)
    left_out = rows_of(result, trial, "frames_held_out")
    misfit, scan = frame_misfit(result, trial, left_out, options)
    return np.asarray(misfit) / scan.amplitude.double().square().sum().item()
