"""Two reconstructions from two halves of a scan: what both show is there, what one shows is noise or error."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.reconstruction.engine import reconstruct
from ptycho_bluesky.reconstruction.options import EngineOptions
from ptycho_bluesky.reconstruction.placement import rows_of
from ptycho_bluesky.reconstruction.ring_correlation import RingCorrelation, correlate_rings
from ptycho_bluesky.records import Measurement, Reconstruction

__all__ = [
    "HALF_PASSES",
    "half_scan_agreement",
    "reconstruct_halves",
    "split_in_halves",
    "stored_agreement",
    "try_half_scans",
]

logger = logging.getLogger(__name__)

PROVENANCE_KEY = "half_scans"
"""Under which a reconstruction's provenance keeps the agreement of its half-scans."""

HALF_PASSES = 20
"""Passes of a half-scan, which starts from the probe of the whole one."""
NEIGHBOURS = 16
MIN_FRAMES = 16


def split_in_halves(position_m: NDArray[np.float64], seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide frames into two sets that cover the same area equally densely.

    Parameters
    ----------
    position_m : ndarray of float64, shape (n, 2)
    seed : int
        Of the coin.

    Returns
    -------
    tuple of ndarray of int64
        Rows of either half, ascending.

    Notes
    -----
    Each frame is paired with the nearest one that has no partner yet, and a coin tells which of the two goes where.
    Every other frame of a raster with an even number of columns would leave one half every other column.
    """
    count = len(position_m)
    if count < 2:
        raise InputError(f"{count} frames", "two halves need at least two")
    near = np.asarray(KDTree(position_m).query(position_m, k=min(NEIGHBOURS, count))[1])
    coin = np.random.default_rng(seed)
    half = np.full(count, -1, dtype=np.int64)
    for row in range(count):
        if half[row] >= 0:
            continue
        half[row] = coin.integers(2)
        free = near[row][half[near[row]] < 0]
        if len(free):
            half[free[0]] = 1 - half[row]
    return np.flatnonzero(half == 0), np.flatnonzero(half == 1)


def reconstruct_halves(
    measurement: Measurement,
    reconstruction: Reconstruction,
    options: EngineOptions,
    *,
    passes: int = HALF_PASSES,
    progress: Callable[[int, int, float], None] | None = None,
) -> tuple[Reconstruction, Reconstruction]:
    """Reconstruct two halves of the frames that a reconstruction was made from.

    Parameters
    ----------
    measurement : Measurement
    reconstruction : Reconstruction
        Of all frames, by this package: gives positions and the starting probe. The objects start from nothing.
    options : EngineOptions
        Engine; passes, frames left out and refinement of positions are set here.
    passes : int
        Of each half.
    progress : callable, optional
        ``progress(done, total, error)`` over both.

    Returns
    -------
    tuple of Reconstruction

    Raises
    ------
    InputError
        The measurement is another one, or has too few frames.
    """
    rows = rows_of(reconstruction, measurement, "frames_used")
    if len(rows) < MIN_FRAMES:
        raise InputError(f"{len(rows)} frames", f"halves are made of at least {MIN_FRAMES}", "take more frames")
    position = np.array(measurement.position_m, dtype=np.float64)
    position[rows] = reconstruction.position_m
    changes = {"iterations": passes, "holdout_fraction": 0.0, "patience": 0, "correct_positions": False}
    changes |= {"probe_modes": len(reconstruction.probe), "stop_error": 0.0, "check_probe": False}
    chosen = options.model_copy(update=changes)
    placed = replace(measurement, position_m=position)

    def one(number: int, half: NDArray[np.int64]) -> Reconstruction:
        def told(done: int, _: int, error: float) -> None:
            if progress is not None:
                progress(number * passes + done, 2 * passes, error)

        return reconstruct(placed, chosen, probe=reconstruction.probe, rows=rows[half], progress=told)

    first, second = split_in_halves(reconstruction.position_m, options.seed)
    return one(0, first), one(1, second)


def half_scan_agreement(
    measurement: Measurement,
    reconstruction: Reconstruction,
    options: EngineOptions,
    *,
    passes: int = HALF_PASSES,
    progress: Callable[[int, int, float], None] | None = None,
) -> RingCorrelation:
    """Reconstruct two half-scans and compare them; see `reconstruct_halves` for arguments and errors."""
    clock = time.perf_counter()
    halves = reconstruct_halves(measurement, reconstruction, options, passes=passes, progress=progress)
    found = correlate_rings(*halves)
    return replace(found, passes=passes, duration_s=time.perf_counter() - clock)


def try_half_scans(
    measurement: Measurement,
    reconstruction: Reconstruction,
    options: EngineOptions,
    passes: int = HALF_PASSES,
    progress: Callable[[int, int, float], None] | None = None,
) -> dict[str, Any]:
    """What `half_scan_agreement` finds, as an entry of the reconstruction's provenance; why there is none, else."""
    try:
        found = half_scan_agreement(measurement, reconstruction, options, passes=passes, progress=progress)
    except InputError as error:
        logger.warning("%s: no half-scans: %s", measurement.run_uid or "measurement", error)
        return {PROVENANCE_KEY: {"reason": str(error)}}
    return {PROVENANCE_KEY: found.as_dict()}


def stored_agreement(reconstruction: Reconstruction) -> RingCorrelation | None:
    """Agreement of the half-scans from a reconstruction's provenance, if it has one."""
    content = reconstruction.provenance.get(PROVENANCE_KEY) or {}
    return RingCorrelation.from_dict(content) if "frc" in content else None
