"""Splitting one scan by area, and scoring what was read outside the trained area.

Overlapping neighbours show the same features, so a split frame by frame leaks and flatters. Here frames are split by
where their probe stood, a gap keeps them apart, and only pixels that no training patch reaches are scored.
Everything is plain numpy, in object pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.records import LabelSet

__all__ = [
    "AreaSplit",
    "hold_out_area",
    "near_area",
    "patch_reach",
    "pearson_in_mask",
    "scored_pixel_mask",
    "similarity_lookup",
    "split_by_area",
    "split_off_area",
]


@dataclass(frozen=True)
class AreaSplit:
    """Frames of a scan by area.

    Attributes
    ----------
    train, held_out : ndarray of bool, shape (n,)
        Disjoint; frames in the gap belong to neither.
    direction_yx : tuple of float
        Unit vector along which the area was cut; training lies on its lower side.
    gap_px : float
        Least distance between a held-out and a training probe centre, in object pixels (as found, not as asked).
    """

    train: NDArray[np.bool_]
    held_out: NDArray[np.bool_]
    direction_yx: tuple[float, float]
    gap_px: float


def split_by_area(
    position_px: ArrayLike,
    gap_px: float = 60.0,
    train_fraction: float = 0.5,
    direction_yx: tuple[float, float] = (0.0, 1.0),
) -> AreaSplit:
    """Cut a scan by a strip of width `gap_px` across one direction.

    Parameters
    ----------
    position_px : array-like, shape (n, 2)
        Probe centres (y, x) in object pixels.
    gap_px : float
        Distance that every held-out centre keeps from any training one.
    train_fraction : float
        Fraction of all frames on the training side.
    direction_yx : tuple of float
        Direction of the cut; its lower side trains.

    Returns
    -------
    AreaSplit

    Raises
    ------
    InputError
        Positions of another shape or not finite, or nothing left on one side of the gap.
    """
    position = np.asarray(position_px, dtype=np.float64)
    if position.ndim != 2 or position.shape[1] != 2 or not np.isfinite(position).all():
        raise InputError(f"positions of shape {position.shape}", "(n, 2) finite positions (y, x) are needed")
    if not 0.0 < train_fraction < 1.0 or gap_px < 0:
        raise InputError(
            f"train_fraction = {train_fraction}, gap_px = {gap_px}", "a fraction lies in (0, 1), a gap is ≥ 0"
        )
    direction = np.asarray(direction_yx, dtype=np.float64)
    direction = direction / np.linalg.norm(direction)
    along = position @ direction
    edge = np.quantile(along, train_fraction)
    train, held_out = along <= edge, along > edge + gap_px
    if not train.any() or not held_out.any():
        raise InputError(
            f"a gap of {gap_px} px in a scan {np.ptp(along):.0f} px wide",
            "frames are needed on both sides",
            "lower gap_px or train_fraction",
        )
    distance = along[held_out].min() - along[train].max()
    return AreaSplit(train, held_out, (float(direction[0]), float(direction[1])), float(distance))


def hold_out_area(labels: LabelSet, fraction: float = 0.1, gap_px: float | None = None) -> tuple[LabelSet, LabelSet]:
    """Split a label set by area, for a validation that overlapping neighbours do not flatter.

    Parameters
    ----------
    labels : LabelSet
    fraction : float
        Of the frames that validate. Frames in the gap are lost to both.
    gap_px : float, optional
        In object pixels; half a patch by default.

    Returns
    -------
    train, validation : LabelSet
    """
    gap = labels.phase_rad.shape[-1] / 2 if gap_px is None else gap_px
    pixel = 1.0 if np.isnan(labels.pixel_size_m) else labels.pixel_size_m
    split = split_off_area(np.asarray(labels.position_m) / pixel, gap, fraction)
    return _select(labels, split.train), _select(labels, split.held_out)


def split_off_area(position_px: ArrayLike, gap_px: float, fraction: float = 0.1) -> AreaSplit:
    """Cut a strip with this fraction of the frames off a scan, as `split_by_area` with the edge found for it."""
    if not 0.0 < fraction < 1.0:
        raise InputError(f"fraction = {fraction}", "it lies in (0, 1)")
    position = np.asarray(position_px, dtype=np.float64)
    along = np.sort(position[:, 1])
    # the edge lies one gap before the frames that validate
    edge = np.quantile(along, 1.0 - fraction) - gap_px
    trained = np.count_nonzero(along <= edge) / len(along)
    if trained <= 0:
        raise InputError(
            f"a gap of {gap_px} px in a scan {np.ptp(along):.0f} px wide",
            "frames are needed on both sides",
            "lower gap_px or the fraction",
        )
    return split_by_area(position, gap_px, trained)


def near_area(position_m: ArrayLike, area_m: ArrayLike, gap_m: float) -> NDArray[np.bool_]:
    """Which positions lie in the box around others, or within a gap of it.

    Parameters
    ----------
    position_m : array_like, shape (n, 2)
    area_m : array_like, shape (k, 2)
        Positions whose box it is.
    gap_m : float

    Returns
    -------
    ndarray of bool, shape (n,)
    """
    position, area = np.asarray(position_m, dtype=np.float64), np.asarray(area_m, dtype=np.float64)
    return ((position > area.min(axis=0) - gap_m) & (position < area.max(axis=0) + gap_m)).all(axis=1)


def _select(labels: LabelSet, rows: NDArray[Any]) -> LabelSet:
    columns = ("image", "phase_rad", "amplitude", "position_m", "frame_index")
    return replace(labels, **{name: np.asarray(getattr(labels, name))[rows] for name in columns})


def patch_reach(shape: tuple[int, int], centre_px: ArrayLike, patch_shape: tuple[int, int]) -> NDArray[np.int32]:
    """Count of patches that reach each pixel of a canvas.

    Parameters
    ----------
    shape : tuple of int
        (rows, cols) of the canvas.
    centre_px : array-like, shape (n, 2)
        Patch centres (row, col) as fractional indices of the canvas. A patch that lies between pixels touches one more.
    patch_shape : tuple of int
        (h, w); the centre is at index ``h // 2``.

    Returns
    -------
    ndarray of int32, shape (rows, cols)
    """
    centre = np.asarray(centre_px, dtype=np.float64).reshape(-1, 2)
    half = np.array([patch_shape[0] // 2, patch_shape[1] // 2])
    first = np.maximum(np.floor(centre).astype(int) - half, 0)
    last = np.clip(np.ceil(centre).astype(int) - half + np.array(patch_shape), 0, None)
    count = np.zeros(shape, dtype=np.int32)
    for (top, left), (bottom, right) in zip(first, last, strict=True):
        count[top:bottom, left:right] += 1
    return count


def scored_pixel_mask(
    shape: tuple[int, int],
    train_px: ArrayLike,
    held_out_px: ArrayLike,
    patch_shape: tuple[int, int],
    illumination: NDArray[np.floating],
    *,
    min_frames: int = 3,
    min_light: float = 0.1,
) -> NDArray[np.bool_]:
    """Pixels that can be scored: lit by held-out frames, reached by no training patch.

    Parameters
    ----------
    shape : tuple of int
        (rows, cols) of the canvas.
    train_px, held_out_px : array-like, shape (n, 2)
        Patch centres (row, col) as fractional indices of the canvas.
    patch_shape : tuple of int
        (h, w) of the *whole* training patch, label and frame window alike.
    illumination : ndarray, shape (h, w)
        Intensity of the probe, centre at ``[h // 2, w // 2]``.
    min_frames : int
        Held-out frames that must reach a pixel with at least a tenth of the probe's largest intensity.
    min_light : float
        Fraction of the median summed illumination (over pixels that fulfil `min_frames`).

    Returns
    -------
    ndarray of bool, shape (rows, cols)
    """
    light = np.asarray(illumination, dtype=np.float64)
    lit = (light > 0.1 * light.max()).astype(np.float64)
    coverage, summed = np.zeros(shape), np.zeros(shape)
    half = np.array(light.shape) // 2
    for row, col in np.rint(np.asarray(held_out_px)).astype(int) - half:
        rows = slice(max(row, 0), max(min(row + light.shape[0], shape[0]), 0))
        cols = slice(max(col, 0), max(min(col + light.shape[1], shape[1]), 0))
        part = slice(rows.start - row, rows.stop - row), slice(cols.start - col, cols.stop - col)
        coverage[rows, cols] += lit[part]
        summed[rows, cols] += light[part]
    mask = coverage >= min_frames
    if mask.any():
        mask &= summed >= min_light * np.median(summed[mask])
    return mask & (patch_reach(shape, train_px, patch_shape) == 0)


def similarity_lookup(
    train_image: NDArray, train_phase_rad: NDArray, image: NDArray, *, chunk: int = 64
) -> tuple[NDArray, NDArray[np.int64]]:
    """Baseline without a network: give each frame the label of the most similar training frame.

    Similarity is the Pearson correlation of the square roots of the counts.

    Parameters
    ----------
    train_image : ndarray, shape (m, H, W)
        Training frames in counts.
    train_phase_rad : ndarray, shape (m, h, w)
        Their labels.
    image : ndarray, shape (n, H, W)
        Frames to read.
    chunk : int
        Frames compared at a time.

    Returns
    -------
    phase_rad : ndarray, shape (n, h, w)
    index : ndarray of int64, shape (n,)
        Training frame that was looked up.
    """

    def standardise(frames: NDArray) -> NDArray[np.float32]:
        rows = np.sqrt(np.maximum(np.asarray(frames, dtype=np.float32), 0)).reshape(len(frames), -1)
        rows -= rows.mean(axis=1, keepdims=True)
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)

    known = standardise(train_image)
    index = np.concatenate(
        [np.argmax(standardise(image[i : i + chunk]) @ known.T, axis=1) for i in range(0, len(image), chunk)]
    ).astype(np.int64)
    return np.asarray(train_phase_rad)[index], index


def pearson_in_mask(image: NDArray, reference: NDArray, mask: NDArray[np.bool_]) -> float:
    """Pearson correlation of two images over the pixels of a mask; NaN when one is constant there."""
    a = np.asarray(image, dtype=np.float64)[mask]
    b = np.asarray(reference, dtype=np.float64)[mask]
    if len(a) < 2:
        raise InputError(f"{len(a)} pixels to correlate", "at least two are needed", "check the mask")
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / norm) if norm > 0 else float("nan")
