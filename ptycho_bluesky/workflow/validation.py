"""How well a model that serves reads a run that nobody has learned from, measured as its live image would be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import ObjectFrame
from ptycho_bluesky.inference import load_model
from ptycho_bluesky.metrics import mosaic_ssim
from ptycho_bluesky.models.export import from_onnx
from ptycho_bluesky.records import LabelSet, Measurement, Reconstruction
from ptycho_bluesky.stitching.illumination import illumination, sample_at
from ptycho_bluesky.stitching.mosaic import MosaicBuilder
from ptycho_bluesky.training.area_split import split_by_area
from ptycho_bluesky.training.evaluate import count_scale_for, evaluate

__all__ = ["TRAIN_FRACTION", "away_from", "live_figures", "score_of_areas", "select_frames", "split_labels"]

CHUNK_FRAMES = 64
MIN_HELD_OUT = 16
"""Frames under which a held-out area says nothing."""
NUM_CAPS = 8
"""Directions in which areas are cut off a run to score a model on it."""
TRAIN_FRACTION = 0.8
GAPS = (0.5, 0.25)
"""Distances between training and held-out probe centres that are tried, in widths of the patch; probes light about
the inner half of it."""


def live_figures(
    measurement: Measurement, reconstruction: Reconstruction, model: bytes | None, num_threads: int = 2
) -> dict[str, Any]:
    """Stitch what a model reads in every frame and compare it with the reconstruction of the same run.

    Parameters
    ----------
    measurement : Measurement
        Frames and positions.
    reconstruction : Reconstruction
        Of the same run; the reference.
    model : bytes, optional
        Model file; without one only the trivial figures are computed.
    num_threads : int
        Of the inference engine.

    Returns
    -------
    dict
        ``ssim_serving`` and ``pearson_serving`` (None without a model), ``ssim_constant``, ``ssim_blurred`` (the
        reference blurred to the probe's width): by `ptycho_bluesky.metrics.mosaic_ssim` in the same place.

    Raises
    ------
    InputError
        The model does not fit the frames, or the reconstruction has no contrast.
    """
    frames, positions = np.asarray(measurement.image), np.asarray(measurement.position_m)
    light = (np.abs(np.asarray(reconstruction.probe)) ** 2).sum(axis=0)
    if model is None:
        patch: tuple[int, int] = (frames.shape[1], frames.shape[2])
        weight, engine = (light / light.max()).astype(np.float32), None
    else:
        loaded = load_model(model, num_threads=num_threads)
        engine, weight, patch = loaded.engine, loaded.weight, loaded.engine.patch_shape
    builder = MosaicBuilder(ObjectFrame.around(positions, patch, measurement.step_px_m), patch, weight)
    for start in range(0, len(frames), CHUNK_FRAMES):
        rows = slice(start, start + CHUNK_FRAMES)
        counts = frames[rows]
        phase = np.zeros((len(counts), *patch), dtype=np.float32) if engine is None else engine.infer(counts)
        builder.add(phase, positions[rows])
    image = builder.snapshot()
    reference = np.angle(sample_at(reconstruction.object, reconstruction.frame, image.frame))
    found = mosaic_ssim(
        image.phase_rad,
        reference,
        image.coverage,
        illumination(reconstruction.probe, positions, image.frame),
        probe_width_px=float(np.sqrt(light.sum() / light.max())),
    )
    return {
        "ssim_serving": None if model is None else found.ssim,
        "pearson_serving": None if model is None else found.pearson,
        "ssim_constant": found.constant,
        "ssim_blurred": found.blurred,
    }


def select_frames(labels: LabelSet, rows: NDArray[Any]) -> LabelSet:
    """Label set of some frames (indices or a mask)."""
    names = ("image", "phase_rad", "amplitude", "position_m", "frame_index")
    columns: dict[str, Any] = {name: np.asarray(getattr(labels, name))[rows] for name in names}
    return replace(labels, **columns)


def score_of_areas(model: bytes, labels: LabelSet, frames: int) -> float:
    """Mean score of a model on areas cut off a label set in `NUM_CAPS` directions.

    A model's score at its promotion is often that on a small area at the edge of a scan, which differs from that on a
    whole one; areas of the same size are compared with it, several because one alone is noisy.

    Parameters
    ----------
    model : bytes
    labels : LabelSet
    frames : int
        Of each area.
    """
    reader, manifest = from_onnx(model)
    scale = count_scale_for(manifest, labels)
    angles = np.arange(NUM_CAPS) * 2 * np.pi / NUM_CAPS
    scores = []
    for direction in np.stack([np.sin(angles), np.cos(angles)], axis=1):
        cap = np.argsort(np.asarray(labels.position_m) @ direction)[-frames:]
        scores.append(float(evaluate(reader, select_frames(labels, cap), count_scale=scale)["score"]))
    return float(np.nanmean(scores))


def split_labels(labels: LabelSet) -> tuple[LabelSet, LabelSet] | None:
    """Split a label set by area into one to train on and one to validate on, a gap between them.

    Returns
    -------
    tuple of LabelSet, or None
        None where the scan is too small for two areas.
    """
    pixel = 1.0 if np.isnan(labels.pixel_size_m) else labels.pixel_size_m
    width = max(labels.phase_rad.shape[1:])
    for gap in GAPS:
        try:
            split = split_by_area(labels.position_m / pixel, gap * width, TRAIN_FRACTION)
        except InputError:
            continue
        if split.held_out.sum() >= MIN_HELD_OUT:
            return select_frames(labels, split.train), select_frames(labels, split.held_out)
    return None


def away_from(labels: LabelSet, positions_m: Sequence[NDArray[np.float64]]) -> LabelSet | None:
    """Frames of a label set whose probes stood at least half a patch away from every trained position.

    Parameters
    ----------
    labels : LabelSet
        Of a reserved run.
    positions_m : sequence of ndarray, shape (n, 2)
        Positions of the runs that were, or will be, trained on.

    Returns
    -------
    LabelSet or None
        None where fewer than `MIN_HELD_OUT` frames are left.
    """
    pixel = 1.0 if np.isnan(labels.pixel_size_m) else labels.pixel_size_m
    reach = GAPS[0] * max(labels.phase_rad.shape[1:]) * pixel
    keep = np.ones(len(labels), dtype=bool)
    if positions_m:
        tree = KDTree(np.concatenate([np.asarray(each) for each in positions_m]))
        keep = tree.query(labels.position_m)[0] >= reach
    if keep.sum() < MIN_HELD_OUT:
        return None
    return labels if keep.all() else select_frames(labels, keep)
