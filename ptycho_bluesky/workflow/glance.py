"""A cheap look at a run: the middle of it is reconstructed, and the serving model compared with that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.models.onnx_file import read_manifest
from ptycho_bluesky.reconstruction import EngineOptions, reconstruct
from ptycho_bluesky.records import Measurement
from ptycho_bluesky.training.labels import make_labels
from ptycho_bluesky.trust.physics import read_physics
from ptycho_bluesky.workflow.validation import TRAIN_FRACTION, score_of_areas

__all__ = ["MIN_FRAMES", "glance", "middle"]

MIN_FRAMES = 64
"""Fewer frames say too little of a model."""


def middle(position_m: NDArray[np.float64], fraction: float) -> NDArray[np.int64]:
    """Rows of the frames nearest to the median position, ascending: a part of the scan, at least `MIN_FRAMES`."""
    centre = np.nanmedian(position_m, axis=0)
    away = np.nan_to_num(np.linalg.norm(position_m - centre, axis=1), nan=np.inf)
    count = max(MIN_FRAMES, round(fraction * len(position_m)))
    return np.sort(np.argsort(away, kind="stable")[:count])


def glance(
    measurement: Measurement,
    options: EngineOptions,
    model: bytes,
    fraction: float,
    progress: Callable[[int, int, float], None] | None = None,
) -> dict[str, Any]:
    """Score of a model on the middle of a run.

    Parameters
    ----------
    measurement : Measurement
    options : EngineOptions
        Of a whole run's reconstruction; no frame is left out here, for nothing is learned from it.
    model : bytes
    fraction : float
        Part of the run.
    progress : callable, optional
        Called with (passes done, passes in all, error).

    Returns
    -------
    dict
        ``figures``: ``glance_score`` as `score_of_areas` has it, on areas as large as a held-out one of the whole run,
        ``glance_frames``, and ``glance_frame_updates`` that it cost.

    Raises
    ------
    InputError
        The middle cannot be reconstructed, or the model does not fit the frames.
    """
    rows = middle(np.asarray(measurement.position_m), fraction)
    shape = np.shape(measurement.image)
    probe = _known_probe(model, int(shape[1]))
    # A known probe saves the search for one; where it is wrong by now, the score is low and the whole run is looked at.
    changes = {"holdout_fraction": 0.0, "patience": 0, "check_probe": probe is None}
    result = reconstruct(measurement, options.model_copy(update=changes), probe=probe, rows=rows, progress=progress)
    labels = make_labels(result, measurement, (int(shape[1]), int(shape[2])))
    area = min(len(labels), round((1.0 - TRAIN_FRACTION) * len(measurement)))
    return {
        "figures": {
            "glance_score": score_of_areas(model, labels, area),
            "glance_frames": len(labels),
            "glance_frame_updates": len(result.error) * len(labels),
        }
    }


def _known_probe(model: bytes, size_px: int) -> NDArray[np.complex64] | None:
    """Probe of the labels that a model was trained with, None where it has another window."""
    physics, _ = read_physics(read_manifest(model))
    return None if physics is None or physics.probe.shape[-1] != size_px else physics.probe
