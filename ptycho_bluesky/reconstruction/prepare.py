"""From a measurement to what an engine works on: which frames, where, how bright."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import KDTree
from torch import Tensor

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import ObjectFrame
from ptycho_bluesky.reconstruction.forward import Scan
from ptycho_bluesky.reconstruction.options import EngineOptions
from ptycho_bluesky.records import Measurement

__all__ = [
    "Selection",
    "frame_options",
    "i0_scale",
    "load_amplitude",
    "mean_counts",
    "prepare_scan",
    "select_frames",
    "torch_device",
]

logger = logging.getLogger(__name__)

DARK_FRACTION = 0.01
"""A frame with fewer counts than this part of the median frame saw no beam."""
NEIGHBOURS = 8
"""Neighbours that tell whether a position lies inside the scan or at its rim."""
INSIDE_QUANTILE = 0.75
"""Part of the frames, those with the evenest neighbourhood, of which the held-out ones are drawn."""
READ_BYTES = 64 << 20
"""Frames are read this much at a time: a measurement may be an array on disk."""


@dataclass(frozen=True)
class Selection:
    """Which rows of a measurement an engine uses.

    Attributes
    ----------
    used : ndarray of int64
        Rows that the reconstruction is made from.
    held_out : ndarray of int64
        Rows inside the scan that it is validated with and never sees.
    excluded : dict
        Number of frames that cannot be used, by reason.
    """

    used: NDArray[np.int64]
    held_out: NDArray[np.int64]
    excluded: Mapping[str, int]


def frame_options(options: Mapping[str, Any]) -> EngineOptions:
    """The part of a reconstruction's stored options that tells how frames are read; defaults for engines of others."""
    return EngineOptions.of(**{name: options[name] for name in ("normalise_i0", "dtype") if name in options})


def select_frames(measurement: Measurement, options: EngineOptions, rows: ArrayLike | None = None) -> Selection:
    """Check a measurement and choose its frames.

    Parameters
    ----------
    measurement : Measurement
    options : EngineOptions
        ``holdout_fraction``, ``normalise_i0`` and ``seed`` are used.
    rows : array-like of int or bool, optional
        Rows to choose from, e.g. those of one area; all by default.

    Raises
    ------
    InputError
        Frames are not square, counts are NaN or negative, positions are missing, or nothing is left.
    """
    n = _check_shapes(measurement)
    total = _total_counts(measurement)
    chosen = np.zeros(n, dtype=bool)
    chosen[_as_rows(rows, n)] = True
    position_ok = np.isfinite(measurement.position_m).all(axis=1)
    lit = total > DARK_FRACTION * np.median(total[total > 0]) if (total > 0).any() else np.zeros(n, dtype=bool)
    scale_ok = np.isfinite(i0_scale(measurement, options))
    excluded = {
        "no position": int((chosen & ~position_ok).sum()),
        "no beam": int((chosen & position_ok & ~lit).sum()),
        "no intensity monitor": int((chosen & position_ok & lit & ~scale_ok).sum()),
    }
    good = np.flatnonzero(chosen & position_ok & lit & scale_ok)
    if len(good) < 2:
        raise InputError(
            f"{len(good)} usable frames of {int(chosen.sum())} ({_reasons(excluded)})", "a reconstruction needs several"
        )
    if any(excluded.values()):
        logger.warning("%s: frames left out: %s", measurement.run_uid or "measurement", _reasons(excluded))
    held_out = _choose_held_out(measurement.position_m[good], options)
    return Selection(np.delete(good, held_out), good[held_out], excluded)


def _reasons(excluded: Mapping[str, int]) -> str:
    return ", ".join(f"{count} with {reason}" for reason, count in excluded.items() if count) or "all usable"


def _check_shapes(measurement: Measurement) -> int:
    shape = tuple(np.shape(measurement.image))
    if len(shape) != 3 or shape[1] != shape[2]:
        raise InputError(f"frames of shape {shape}", "an engine takes (n, N, N)", "crop the frames to a square")
    position = np.shape(measurement.position_m)
    if position != (shape[0], 2):
        raise InputError(
            f"positions of shape {position} beside {shape[0]} frames",
            "every frame has a position (y, x)",
            "give one row of positions for each frame",
        )
    mask = measurement.mask
    if mask is not None and np.shape(mask) != shape[1:]:
        raise InputError(f"mask of shape {np.shape(mask)}", f"frames have {shape[1:]}")
    if not (np.isfinite(measurement.step_px_m) and measurement.step_px_m > 0):
        raise InputError(f"pixel_size_m = {measurement.pixel_size_m}", "it must be positive", "give --object-pixel-m")
    return shape[0]


def _as_rows(rows: ArrayLike | None, n: int) -> NDArray[np.int64]:
    if rows is None:
        return np.arange(n)
    chosen = np.asarray(rows)
    if chosen.dtype == bool:
        if chosen.shape != (n,):
            raise InputError(f"row mask of shape {chosen.shape}", f"the measurement has {n} frames")
        return np.flatnonzero(chosen)
    chosen = chosen.astype(np.int64).reshape(-1)
    if len(chosen) and (chosen.min() < 0 or chosen.max() >= n):
        raise InputError(f"rows from {chosen.min()} to {chosen.max()}", f"the measurement has {n} frames")
    return chosen


def _chunks(measurement: Measurement) -> list[slice]:
    n, rows, cols = np.shape(measurement.image)
    step = max(1, READ_BYTES // (rows * cols * 4))
    return [slice(first, min(first + step, n)) for first in range(0, n, step)]


def _total_counts(measurement: Measurement) -> NDArray[np.float64]:
    """Counts of each frame on trusted pixels, shape (n,)."""
    total = np.empty(len(measurement.position_m))
    mask = measurement.mask
    for part in _chunks(measurement):
        image = np.asarray(measurement.image[part])
        counts = image if mask is None else np.where(mask, image, 0)
        if counts.dtype.kind == "f" and not np.isfinite(counts).all():
            raise InputError(
                f"{np.count_nonzero(~np.isfinite(counts))} counts that are not finite in frames {part.start} to "
                f"{part.stop - 1}",
                "a trusted pixel holds a number",
                "mask the pixels or leave the frames out",
            )
        if counts.dtype.kind in "fi" and (counts < 0).any():
            raise InputError(
                f"negative counts, down to {counts.min()}, in frames {part.start} to {part.stop - 1}",
                "counts are ≥ 0",
                "do not subtract a background, or clip and mask",
            )
        total[part] = counts.sum(axis=(1, 2), dtype=np.float64)
    return total


def i0_scale(measurement: Measurement, options: EngineOptions) -> NDArray[np.float64]:
    """Factor (n,) that takes the counts of each frame to the mean beam; NaN for a frame without monitor.

    1 for all when the source has no monitor, or `EngineOptions.normalise_i0` is False.
    """
    i0 = np.asarray(measurement.i0, dtype=np.float64)
    good = np.isfinite(i0) & (i0 > 0)
    if not options.normalise_i0 or not good.any():
        return np.ones(len(measurement.position_m))
    return np.where(good, i0[good].mean() / np.where(good, i0, 1.0), np.nan)


def _choose_held_out(position: NDArray[np.float64], options: EngineOptions) -> NDArray[np.int64]:
    """Rows to leave out: evenly spread, away from the rim, where neighbours light the same object."""
    count = int(np.ceil(options.holdout_fraction * len(position)))
    if not count or len(position) <= NEIGHBOURS:
        return np.empty(0, dtype=np.int64)
    distance, neighbour = (np.asarray(v) for v in KDTree(position).query(position, k=NEIGHBOURS + 1))
    # At the rim the neighbours all lie to one side.
    lean = np.linalg.norm(position[neighbour[:, 1:]].mean(axis=1) - position, axis=1)
    lean /= np.maximum(distance[:, 1:].mean(axis=1), np.finfo(np.float64).tiny)
    inside = np.flatnonzero(lean <= np.quantile(lean, INSIDE_QUANTILE))
    rng = np.random.default_rng(options.seed)
    return np.sort(rng.choice(inside, size=min(count, len(inside)), replace=False))


def load_amplitude(
    measurement: Measurement, rows: NDArray[np.int64], options: EngineOptions
) -> tuple[Tensor, Tensor | None]:
    """Amplitudes of some rows on the engine's device.

    Returns
    -------
    Tensor of float, shape (m, N, N)
        √(counts · `i0_scale`), zero frequency at ``[0, 0]``; 0 on pixels that are not trusted.
    Tensor of bool, shape (N, N), or None
        Trusted pixels, zero frequency at ``[0, 0]``.
    """
    device = torch_device(options.device)
    real = torch.float64 if options.dtype == "complex128" else torch.float32
    size = int(np.shape(measurement.image)[-1])
    scale = i0_scale(measurement, options)
    trusted = None
    if measurement.mask is not None and not np.all(measurement.mask):
        trusted = torch.fft.ifftshift(torch.from_numpy(np.array(measurement.mask, dtype=bool)))
    amplitude = torch.empty((len(rows), size, size), dtype=real)
    step = max(1, READ_BYTES // (size * size * 4))
    for first in range(0, len(rows), step):
        part = rows[first : first + step]
        # Sorted and unique, as arrays on disk ask for.
        counts = np.asarray(measurement.image[part]).astype(np.float64 if real == torch.float64 else np.float32)
        counts *= scale[part, None, None].astype(counts.dtype)
        amplitude[first : first + step] = torch.fft.ifftshift(torch.from_numpy(counts), dim=(-2, -1)).sqrt_()
    if trusted is not None:
        amplitude = torch.where(trusted, amplitude, torch.zeros((), dtype=real))
    return amplitude.to(device), None if trusted is None else trusted.to(device)


def prepare_scan(measurement: Measurement, rows: NDArray[np.int64], frame: ObjectFrame, options: EngineOptions) -> Scan:
    """Frames and positions of some rows, placed on an object frame that holds all of their windows."""
    amplitude, trusted = load_amplitude(measurement, rows, options)
    dtype = torch.complex128 if options.dtype == "complex128" else torch.complex64
    return Scan.prepare(amplitude, trusted, frame.to_px(measurement.position_m[rows]), dtype)


def mean_counts(scan: Scan) -> float:
    """Mean counts of a frame on trusted pixels, after division by the monitor."""
    flat = scan.amplitude.reshape(-1)
    return float(torch.dot(flat, flat)) / len(scan)


def torch_device(name: str) -> torch.device:
    """Device by name; ``auto`` takes the first GPU, else the CPU.

    Raises
    ------
    InputError
        The device is unknown or not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {name!r}: {reason}", "it must be there", "use cpu, cuda or auto") from error
    return device


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Number of torch's CPU threads inside the block.

    The operations of a mini-batch take tens of microseconds each. Threads that meet after each of them spin while they
    wait, and where cores are shared with other processes they wait for the scheduler: measured here, two threads on two
    busy cores were 8 times slower than one.
    """
    before = torch.get_num_threads()
    try:
        if threads:
            torch.set_num_threads(threads)
        yield
    finally:
        torch.set_num_threads(before)
