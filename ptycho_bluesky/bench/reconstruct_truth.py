"""How long until the object is there: our default reconstruction and pty-chi's LSQML from the same wrong probe."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.bench.reconstruct_scan import BATCH, BenchScan, seconds
from ptycho_bluesky.bench.rows import Row
from ptycho_bluesky.gauges import remove_gauge
from ptycho_bluesky.geometry import ObjectFrame
from ptycho_bluesky.metrics import pearson
from ptycho_bluesky.reconstruction import PtychiOptions, reconstruct
from ptycho_bluesky.reconstruction.gauge import LIT_FRACTION, fix_gauge, illumination, lit_median
from ptycho_bluesky.reconstruction.prepare import torch_threads
from ptycho_bluesky.records import Measurement
from ptycho_bluesky.simulation import Experiment, ZonePlate
from ptycho_bluesky.simulation.scans import spiral_scan

__all__ = ["convergence_rows", "phase_error_rad", "phase_likeness"]

WRONG_DEFOCUS_M = 0.13e-3
"""Of the starting probe; the true one is 0.19 mm."""
ENOUGH = 0.95
"""Phase correlation that counts as reconstructed."""
LOOK_EVERY = 4
"""Epochs of LSQML between two looks; where it is met, those between are looked at too."""


def convergence_rows(points: int, size_px: int, passes: int, limit_s: float, threads: int) -> list[Row]:
    """Wall-clock of the whole default reconstruction, and of LSQML until it reaches `ENOUGH`.

    Parameters
    ----------
    points, size_px : int
        Frames of the simulated scan, and their side.
    passes : int
        Most passes of LSQML.
    limit_s : float
        Time after which LSQML is given up.
    threads : int
        Of LSQML; ours has the default, one.

    Returns
    -------
    list of Row
    """
    measurement, experiment = spiral_scan(points, size_px)
    plate = replace(ZonePlate(), defocus_m=WRONG_DEFOCUS_M)
    wrong = replace(measurement, metadata={"zone_plate": plate.as_dict()})
    began = time.perf_counter()
    result = reconstruct(wrong)
    ours_s = time.perf_counter() - began
    likeness = phase_likeness(result.object, result.frame, measurement, experiment)
    theirs, spent_s, done = _until_enough(wrong, experiment, passes, limit_s, threads)
    name = f"pty-chi LSQML, {done} passes, phase correlation {theirs:.3f}"
    return [
        Row("default_engine_phase_correlation", "1", "higher", likeness, theirs, name, ENOUGH),
        Row("default_engine_time_to_error", "s", "lower", ours_s, spent_s, name, spent_s),
    ]


def _until_enough(
    measurement: Measurement, experiment: Experiment, passes: int, limit_s: float, threads: int
) -> tuple[float, float, int]:
    """Phase correlation that LSQML reaches, seconds of its epochs alone, and their number."""
    bench = BenchScan.of(measurement, check_probe=False)
    engine = bench.theirs(PtychiOptions(algorithm="lsqml", batch_size=BATCH))
    waves: list[tuple[NDArray[Any], NDArray[Any]]] = []
    spent_s: list[float] = [0.0]

    @cache
    def likeness(done: int) -> float:
        obj, probe = waves[done - 1]
        obj, _, placed = fix_gauge(obj, probe, bench.frame, measurement.position_m)
        return phase_likeness(obj, placed, measurement, experiment)

    with torch_threads(threads):
        while len(waves) < passes and spent_s[-1] < limit_s:
            spent_s.append(spent_s[-1] + seconds(engine.run_epoch))
            engine.fetch()
            waves.append((engine.obj.numpy().copy(), engine.probe.numpy().copy()))
            # Comparing takes as long as an epoch.
            if len(waves) % LOOK_EVERY == 0 and likeness(len(waves)) >= ENOUGH:
                break
    first = max(1, len(waves) - LOOK_EVERY + 1)
    done = next((each for each in range(first, len(waves) + 1) if likeness(each) >= ENOUGH), len(waves))
    return likeness(done), spent_s[done], done


def phase_likeness(obj: NDArray[Any], frame: ObjectFrame, measurement: Measurement, experiment: Experiment) -> float:
    """Pearson correlation of the phase with the truth's, gauges removed, in the lit area."""
    return pearson(*_phases(obj, frame, measurement, experiment))


def phase_error_rad(obj: NDArray[Any], frame: ObjectFrame, measurement: Measurement, experiment: Experiment) -> float:
    """Root of the mean squared difference of the phase from the truth's, gauges removed, in the lit area."""
    found, true, lit = _phases(obj, frame, measurement, experiment)
    return float(np.sqrt(np.mean(np.square(found - true)[lit])))


def _phases(
    obj: NDArray[Any], frame: ObjectFrame, measurement: Measurement, experiment: Experiment
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Phase of the object and of the truth, and where there is light."""
    truth, own = experiment.truth()
    first = np.rint(own.to_px(np.array(frame.origin_m))).astype(int)
    window = truth[first[0] : first[0] + frame.shape[0], first[1] : first[1] + frame.shape[1]]
    light = illumination(experiment.probe[None], frame.to_px(measurement.position_m), frame.shape)
    lit = light > LIT_FRACTION * lit_median(light)
    turn = np.exp(-1j * np.angle(window[lit].mean()))
    found, true = (np.angle(wave * turn) for wave in (remove_gauge(obj, window, lit), window))
    return found, true, lit
