"""A reconstruction that starts from what is known already: the stitched inference, or an earlier reconstruction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import ObjectFrame
from ptycho_bluesky.reconstruction.engine import MARGIN_PX
from ptycho_bluesky.reconstruction.gauge import flat_ramp, phase_ramp
from ptycho_bluesky.reconstruction.options import EngineOptions, EpieOptions
from ptycho_bluesky.reconstruction.prepare import select_frames
from ptycho_bluesky.records import Measurement, Mosaic, Reconstruction
from ptycho_bluesky.stitching.illumination import sample_at

__all__ = ["WarmStart", "object_from_mosaic", "starting_frame", "warm_start"]

TRUSTED_WEIGHT = 0.1
"""Weight of a mosaic's pixel, in units of the median, from which on it is believed; below it the object tends to 1."""


@dataclass(frozen=True)
class WarmStart:
    """Where a reconstruction starts from; give both to `ptycho_bluesky.reconstruction.reconstruct`.

    Attributes
    ----------
    object : ndarray of complex128, shape (rows, cols)
        On `starting_frame` of the measurement.
    probe : ndarray of complex, shape (modes, N, N), or None
        None: the engine looks for one as ever.
    covered : float
        Part of the object that something is known of.
    """

    object: NDArray[np.complex128]
    probe: NDArray[Any] | None
    covered: float


def starting_frame(
    measurement: Measurement, options: EngineOptions | None = None, rows: ArrayLike | None = None
) -> ObjectFrame:
    """Canvas on which ``reconstruct(measurement, options, rows=rows, object=…)`` takes a starting object."""
    selection = select_frames(measurement, options or EpieOptions(), rows)
    looked_at = np.concatenate([selection.used, selection.held_out])
    size = int(np.shape(measurement.image)[-1])
    return ObjectFrame.around(measurement.position_m[looked_at], size, measurement.step_px_m, MARGIN_PX)


def object_from_mosaic(
    phase_rad: NDArray[Any],
    weight: NDArray[Any],
    source: ObjectFrame,
    target: ObjectFrame,
    amplitude_of: Callable[[NDArray[Any]], NDArray[Any]] | None = None,
) -> tuple[NDArray[np.complex128], NDArray[np.float64]]:
    """Transmission of a stitched phase on another canvas.

    Parameters
    ----------
    phase_rad, weight : ndarray of float, shape ``source.shape``
        Of a mosaic; what has no weight is not looked at.
    source, target : ObjectFrame
        Of the mosaic, and of the object that is asked for.
    amplitude_of : callable, optional
        Amplitude of a phase, as a model knows it from its labels; 1 by default.

    Returns
    -------
    obj : ndarray of complex128, shape ``target.shape``
        A·exp(iφ) in the gauge of the engines: no linear ramp, mean phase 0 over the weight. Where the weight falls
        below `TRUSTED_WEIGHT` of its median it goes over into 1, which is what lies outside.
    trust : ndarray of float64, shape ``target.shape``
        0 to 1.

    Raises
    ------
    InputError
        The arrays do not fit their frame, or nothing is covered.
    """
    if np.shape(phase_rad) != source.shape or np.shape(weight) != source.shape:
        raise InputError(f"mosaic {np.shape(phase_rad)}, weight {np.shape(weight)}", f"the frame has {source.shape}")
    light = np.asarray(weight, dtype=np.float64)
    covered = np.isfinite(phase_rad) & (light > 0)
    if not covered.any():
        raise InputError("a mosaic without a covered pixel", "there is nothing to start from", "start without it")
    phase = np.where(covered, phase_rad, 0.0)
    wave = np.exp(1j * phase)
    ramp = phase_ramp(source.shape, flat_ramp(wave, np.where(covered, light, 0.0)), (0.0, 0.0))
    wave = wave * np.conj(ramp)
    wave *= np.exp(-1j * np.angle(np.sum(light[covered] * wave[covered])))
    if amplitude_of is not None:
        wave *= amplitude_of(phase)
    trust = np.where(covered, np.clip(light / (TRUSTED_WEIGHT * np.median(light[covered])), 0.0, 1.0), 0.0)
    # Weight and wave are interpolated apart, the wave as 1 + (O − 1), so that nothing rings at the rim.
    moved = sample_at(trust * (wave - 1.0), source, target)
    inside = np.clip(_zero_outside(trust, source, target), 0.0, 1.0)
    return np.where(inside > 0, 1.0 + moved, 1.0).astype(np.complex128), inside


def _zero_outside(values: NDArray[np.float64], source: ObjectFrame, target: ObjectFrame) -> NDArray[np.float64]:
    """Values on another canvas, 0 beyond their own."""
    rows, cols = (np.arange(n, dtype=np.float64) for n in target.shape)
    corner = source.to_px(np.asarray(target.origin_m))
    ratio = target.pixel_size_m / source.pixel_size_m
    inside = [
        (first + axis * ratio >= 0) & (first + axis * ratio <= size - 1)
        for first, axis, size in zip(corner, (rows, cols), source.shape, strict=True)
    ]
    return np.where(inside[0][:, None] & inside[1][None, :], sample_at(values, source, target), 0.0)


def warm_start(
    measurement: Measurement,
    known: Mosaic | Reconstruction,
    options: EngineOptions | None = None,
    *,
    rows: ArrayLike | None = None,
    probe: NDArray[Any] | None = None,
    amplitude_of: Callable[[NDArray[Any]], NDArray[Any]] | None = None,
) -> WarmStart:
    """Starting object, and probe if there is one, from a mosaic or from an earlier reconstruction.

    Parameters
    ----------
    measurement : Measurement
        What is to be reconstructed.
    known : Mosaic or Reconstruction
        At any pixel size, of any extent that overlaps the scan; a reconstruction brings its probe.
    options : EngineOptions, optional
        Those of the reconstruction: they choose the frames.
    rows : array-like, optional
        Those of the reconstruction.
    probe : ndarray of complex, shape (modes, N, N), optional
        Probe to start from, e.g. that of the model's labels. One of another window than the frames is left out.
    amplitude_of : callable, optional
        See `object_from_mosaic`.

    Returns
    -------
    WarmStart

    Raises
    ------
    InputError
        Nothing of the scan is covered.

    Examples
    --------
    >>> start = warm_start(measurement, mosaic, options)  # doctest: +SKIP
    >>> reconstruct(measurement, options, object=start.object, probe=start.probe)  # doctest: +SKIP
    """
    target = starting_frame(measurement, options, rows)
    if isinstance(known, Reconstruction):
        probe = np.asarray(known.probe) if probe is None else probe
        outside = sample_at(np.asarray(known.object, dtype=np.complex128) - 1.0, known.frame, target)
        trust = _zero_outside(np.ones(known.frame.shape), known.frame, target)
        obj = np.where(trust > 0, 1.0 + outside, 1.0).astype(np.complex128)
    else:
        obj, trust = object_from_mosaic(known.phase_rad, known.weight, known.frame, target, amplitude_of)
    if not (trust > 0).any():
        raise InputError(
            "a starting image elsewhere than the scan", "they overlap", "start from an image of this scan's area"
        )
    size = int(np.shape(measurement.image)[-1])
    fits = probe is not None and probe.shape[-2:] == (size, size)
    return WarmStart(obj, probe if fits else None, float(np.mean(trust > 0)))
