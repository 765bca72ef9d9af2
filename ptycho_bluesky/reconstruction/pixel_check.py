"""Whether the pixel at the sample is the stated one, measured against the stage.

A frame's window is N pixels wide whatever a pixel is; the stage says how far windows lie apart. With the wrong pixel,
neighbouring windows show the same thing in different places, and frames left out are explained badly.

A probe out of focus hides most of this: a frame is then nearly a shadow of the sample, magnified by distance over
defocus, and another defocus stretches it as another pixel asks. Fringes and the pupil, whose size on the detector is
fixed, are what is left. So the probe of a trial starts with the pupil that was found and with the defocus that
belongs to its pixel; with that of the stated one, every other pixel would look bad for want of passes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.fourier import fft2, fftfreq, fftshift, ifft2, ifftshift
from ptycho_bluesky.reconstruction.engine import frame_misfit, reconstruct
from ptycho_bluesky.reconstruction.options import EngineOptions, EpieOptions
from ptycho_bluesky.reconstruction.placement import rows_of
from ptycho_bluesky.reconstruction.starting_probe import starting_probe
from ptycho_bluesky.records import Measurement, Reconstruction

__all__ = ["FACTORS", "PixelCheck", "check_pixel", "lowest_factor", "pixel_gains", "probe_for_pixel"]

FACTORS = (0.5, 0.73, 0.88, 0.95, 1.0, 1.05, 1.14, 1.36, 2.0)
"""Pixels that are tried, in units of the stated one: small errors of energy or distance, 55 µm for 75 µm, binning."""
TOLERANCE = 0.02
"""Relative difference up to which the pixel counts as the stated one."""
NEAR_STEP = 0.05
"""Relative step of the trials about the best so far."""
NEAR_MODES = 3
"""Least number of modes of these trials: with one, light that is partly coherent passes for a larger pixel."""
NEAR_FRAMES, NEAR_PASSES, NEAR_HOLDOUT = 200, 10, 0.2
GAIN_STEPS, CHECK_STEPS = 1, 3
"""Steps on the better side, after one either way."""
MIN_SPREAD = 1e-12


@dataclass(frozen=True)
class PixelCheck:
    """What the frames say of the pixel.

    Attributes
    ----------
    factor : float
        Pixel that explains frames left out best, in units of the stated one.
    errors : dict of float to float
        Normalised error of these frames for each of `FACTORS`, from new starting probes.
    near_errors : dict of float to float
        The same about the best of them, from its probe, with `NEAR_MODES` modes.
    """

    factor: float
    errors: Mapping[float, float]
    near_errors: Mapping[float, float] = field(default_factory=dict)

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
        The best of `FACTORS`, each from a starting probe of its own; then, from the probe of that one, steps of
        `NEAR_STEP` until the error rises on both sides, and the lowest point of a parabola there.

    Raises
    ------
    InputError
        The measurement cannot be reconstructed.
    """
    chosen = options or EpieOptions(iterations=20, holdout_fraction=0.1)
    # A probe that optics state in metres would speak for the stated pixel.
    bare = replace(measurement, probe=None, metadata={})
    total = len(FACTORS) + 3 + CHECK_STEPS
    done = 0

    def trial(factor: float, options: EngineOptions, probe: NDArray[Any] | None = None) -> _Trial:
        nonlocal done
        if progress is not None:
            progress(done, total, f"pixel × {factor:.3g}")
        done += 1
        return _try(bare, factor, options, probe)

    found = {factor: trial(factor, chosen) for factor in FACTORS}
    best = min(found, key=lambda factor: found[factor].error)
    probe = found[best].probe
    several = chosen.model_copy(update={"probe_modes": max(NEAR_MODES, len(probe)), "check_probe": False})
    near = _descend(lambda f: trial(f, several, probe_for_pixel(probe, f / best)), best, CHECK_STEPS)
    near_errors = {factor: near[factor].error for factor in sorted(near)}
    return PixelCheck(lowest_factor(near_errors), {f: found[f].error for f in FACTORS}, near_errors)


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
        For pixels a `NEAR_STEP` smaller and larger, and two where one is better, by how much the misfit of the frames
        left out is smaller than with the stated pixel: in units of the standard error of that difference, and relative
        to the misfit. Negative where it is larger.

    Raises
    ------
    InputError
        There are too few frames.

    Notes
    -----
    `NEAR_PASSES` passes over the `NEAR_FRAMES` frames in the middle, three or four times. The same frames are left out
    each time, and compared one by one: what noise leaves of each is common to all trials.
    """
    changes = {"iterations": NEAR_PASSES, "holdout_fraction": NEAR_HOLDOUT, "patience": 0, "stop_error": 0.0}
    changes |= {"correct_positions": False, "check_probe": False}
    chosen = options.model_copy(update={**changes, "probe_modes": max(NEAR_MODES, len(reconstruction.probe))})
    used = rows_of(reconstruction, measurement, "frames_used")
    away = np.linalg.norm(reconstruction.position_m - np.median(reconstruction.position_m, axis=0), axis=1)
    rows = np.sort(used[np.argsort(away, kind="stable")[:NEAR_FRAMES]])
    position = np.array(measurement.position_m, dtype=np.float64)
    position[used] = _unstretched(reconstruction.position_m, position[used])
    placed = replace(measurement, position_m=position)
    probe = np.asarray(reconstruction.probe)
    found = _descend(lambda f: _try(placed, f, chosen, probe_for_pixel(probe, f), rows), 1.0, GAIN_STEPS)
    stated = found.pop(1.0).misfit

    def gain(misfit: NDArray[np.float64]) -> tuple[float, float]:
        difference = stated - misfit
        spread = max(float(difference.std()), MIN_SPREAD * float(stated.mean()))
        mean = float(difference.mean())
        return mean * float(np.sqrt(len(difference))) / spread, mean / float(stated.mean())

    return {factor: gain(found[factor].misfit) for factor in sorted(found)}


def lowest_factor(errors: Mapping[float, float]) -> float:
    """Where the error is least: by a parabola over the logarithm of the factor, through the least and its neighbours.

    Parameters
    ----------
    errors : mapping of float to float
        Error of each factor that was tried; an outermost one that is the least is returned itself.

    Returns
    -------
    float
    """
    factors = sorted(errors)
    k = min(range(len(factors)), key=lambda i: errors[factors[i]])
    if k in (0, len(factors) - 1):
        return factors[k]
    at = np.log(factors[k - 1 : k + 2])
    bend, slope, _ = np.polyfit(at - at[1], [errors[factor] for factor in factors[k - 1 : k + 2]], 2)
    # Bounds matter where three errors are alike to rounding.
    move = float(np.clip(-slope / (2.0 * bend), at[0] - at[1], at[2] - at[1])) if bend > 0 else 0.0
    return float(factors[k] * np.exp(move))


def probe_for_pixel(probe: NDArray[Any], factor: float) -> NDArray[np.complex64]:
    """The probe as another pixel would have it: the same pupil, its defocus scaled so that the beam keeps its width.

    Parameters
    ----------
    probe : ndarray of complex, shape (modes, N, N)
        The strongest mode first.
    factor : float
        Other pixel in units of that of the probe.

    Returns
    -------
    ndarray of complex64, shape (modes, N, N)

    Notes
    -----
    A phase −πc|q|² on the pupil spreads the beam over a width of c pixels times the pupil's: in pixels of another size,
    c/factor. All modes go through the same optics and are propagated alike.
    """
    more = _curvature(probe[0]) * (1.0 / factor - 1.0)
    q = fftfreq(probe.shape[-1])
    phase = np.exp(-1j * np.pi * more * (q[:, None] ** 2 + q[None, :] ** 2))
    return fftshift(ifft2(fft2(ifftshift(probe)) * phase)).astype(np.complex64)


def _curvature(wave: NDArray[Any]) -> float:
    """Defocus of a wave (N, N): c of the phase −πc|q|² on its pupil, px².

    The second difference of that phase is −2πc/N² everywhere: its mean, weighted by the light, needs no unwrapping.
    """
    size = len(wave)
    pupil = fft2(ifftshift(wave.astype(np.complex128)))
    bends = 0.0j
    for axis in (0, 1):
        product = np.roll(pupil, 1, axis) * np.conj(pupil) ** 2 * np.roll(pupil, -1, axis)
        bends += np.sum(product / np.sqrt(np.maximum(np.abs(product), np.finfo(np.float64).tiny)))
    return -float(np.angle(bends)) * size**2 / (2.0 * np.pi)


def _unstretched(refined_m: NDArray[np.float64], measured_m: NDArray[np.float64]) -> NDArray[np.float64]:
    """Refined positions (n, 2) on the scale of the measured ones: a common stretch may be a wrong pixel made good."""
    middle = refined_m.mean(axis=0)
    refined, measured = refined_m - middle, measured_m - measured_m.mean(axis=0)
    return middle + refined * (np.sum(measured**2) / np.sum(measured * refined))


@dataclass(frozen=True)
class _Trial:
    """A reconstruction with a pixel: misfit of each frame left out, their counts together being 1, and the probe."""

    misfit: NDArray[np.float64]
    probe: NDArray[Any]

    @property
    def error(self) -> float:
        """Normalised error of the frames left out."""
        return float(self.misfit.sum())


def _descend(trial: Callable[[float], _Trial], start: float, most: int) -> dict[float, _Trial]:
    """Trials at ``start``, a step either way, and on downhill by at most so many steps until both sides are higher."""
    rungs = {rung: trial(start * (1.0 + rung * NEAR_STEP)) for rung in (0, -1, 1)}
    for _ in range(most):
        best = min(rungs, key=lambda rung: rungs[rung].error)
        beyond = next((best + way for way in (-1, 1) if best + way not in rungs), None)
        if beyond is None:
            break
        rungs[beyond] = trial(start * (1.0 + beyond * NEAR_STEP))
    return {start * (1.0 + rung * NEAR_STEP): found for rung, found in rungs.items()}


def _try(
    measurement: Measurement,
    factor: float,
    options: EngineOptions,
    probe: NDArray[Any] | None = None,
    rows: NDArray[np.int64] | None = None,
) -> _Trial:
    """Reconstruct as if the pixel were so many times the stated one."""
    # Only the ratio of positions and pixel enters: positions in the pixels of the trial, whose size is then 1.
    position_px = measurement.position_m / (measurement.step_px_m * factor)
    trial = replace(measurement, position_m=position_px, pixel_size_m=None, geometry=None)
    wave = starting_probe(trial, options).wave if probe is None else probe
    result = reconstruct(trial, options, probe=wave, rows=rows)
    left_out = rows_of(result, trial, "frames_held_out")
    misfit, scan = frame_misfit(result, trial, left_out, options)
    return _Trial(np.asarray(misfit) / scan.amplitude.double().square().sum().item(), np.asarray(result.probe))
