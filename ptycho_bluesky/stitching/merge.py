"""One mosaic of several: what edges that shared a stream have each seen of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import ObjectFrame
from ptycho_bluesky.records import FrameState, Mosaic

__all__ = ["merge_mosaics"]

GRID_TOLERANCE_PX = 1e-3


def merge_mosaics(mosaics: Sequence[Mosaic]) -> Mosaic:
    """Put mosaics of one run together as if one edge had stitched all their frames.

    The sums behind a mosaic follow from what it states: Σ w = ``weight``, |Σ w e^{iφ}| = (1 − ``variance``) · Σ w. They
    are added, so the result does not depend on who saw which frame, and a wrap costs nothing.

    Parameters
    ----------
    mosaics : sequence of Mosaic
        Of one run, on canvases of one pixel size whose origins differ by whole pixels (every canvas of this package
        lies on the same grid).

    Returns
    -------
    Mosaic
        On a canvas that holds them all. Maps are averaged, weighted with the number of frames that each mosaic has
        inferred; the log holds a row a frame, from the mosaic that inferred it.

    Raises
    ------
    InputError
        None is given, or their runs or grids differ, or a frame was inferred by more than one.
    """
    if not mosaics:
        raise InputError("no mosaic", "at least one is merged")
    first = mosaics[0]
    if len({mosaic.run_uid for mosaic in mosaics}) > 1:
        raise InputError("mosaics of different runs", "a merged mosaic belongs to one run")
    frame, corners = _common_frame([mosaic.frame for mosaic in mosaics])
    total = np.zeros(frame.shape, dtype=np.complex128)
    weight = np.zeros(frame.shape, dtype=np.float64)
    coverage = np.zeros(frame.shape, dtype=np.int32)
    for mosaic, (row, col) in zip(mosaics, corners, strict=True):
        here = np.s_[row : row + mosaic.frame.shape[0], col : col + mosaic.frame.shape[1]]
        length = (1.0 - mosaic.variance.astype(np.float64)) * mosaic.weight
        total[here] += length * np.exp(1j * mosaic.phase_rad)
        weight[here] += mosaic.weight
        coverage[here] += mosaic.coverage
    covered = (coverage > 0) & (weight > 0)
    variance = np.where(covered, 1.0 - np.abs(total) / np.where(covered, weight, 1.0), 0.0)
    model_ids = tuple(dict.fromkeys(model_id for mosaic in mosaics for model_id in mosaic.model_ids))
    return replace(
        first,
        phase_rad=np.where(covered, np.angle(total), 0.0).astype(np.float32),
        weight=weight.astype(np.float32),
        coverage=coverage,
        variance=np.clip(variance, 0.0, 1.0).astype(np.float32),
        frame=frame,
        frame_log=_merge_logs(mosaics, model_ids),
        model_ids=model_ids,
        maps=_merge_maps(mosaics, corners, frame.shape),
    )


def _common_frame(frames: Sequence[ObjectFrame]) -> tuple[ObjectFrame, list[tuple[int, int]]]:
    """Canvas that holds them all, and where the corner of each lies on it."""
    pixel = frames[0].pixel_size_m
    corners = []
    for frame in frames:
        corner = frames[0].to_px([frame.origin_m])[0]
        whole = np.rint(corner)
        if abs(frame.pixel_size_m / pixel - 1.0) > 1e-9 or np.abs(corner - whole).max() > GRID_TOLERANCE_PX:
            raise InputError(f"canvas {frame}", f"its grid differs from that of {frames[0]}", "stitch on one grid")
        corners.append(whole.astype(np.int64))
    low = np.min(corners, axis=0)
    high = np.max([corner + frame.shape for corner, frame in zip(corners, frames, strict=True)], axis=0)
    origin = frames[0].to_m([low])[0]
    rows, cols = (high - low).tolist()
    places = [(int(row), int(col)) for row, col in (corner - low for corner in corners)]
    return ObjectFrame((float(origin[0]), float(origin[1])), pixel, (rows, cols)), places


def _merge_maps(
    mosaics: Sequence[Mosaic], corners: Sequence[tuple[int, int]], shape: tuple[int, int]
) -> dict[str, NDArray[np.float32]]:
    maps = {}
    for name in dict.fromkeys(name for mosaic in mosaics for name in mosaic.maps):
        total, share = np.zeros(shape), np.zeros(shape)
        for mosaic, (row, col) in zip(mosaics, corners, strict=True):
            if name not in mosaic.maps:
                continue  # an edge whose model has no probe maps no residual
            here = np.s_[row : row + mosaic.frame.shape[0], col : col + mosaic.frame.shape[1]]
            values = np.nan_to_num(np.asarray(mosaic.maps[name], dtype=np.float64))
            part = int((mosaic.frame_log["state"] == FrameState.INFERRED).sum()) * (values != 0)
            total[here] += part * values
            share[here] += part
        maps[name] = np.where(share > 0, total / np.where(share > 0, share, 1.0), 0.0).astype(np.float32)
    return maps


def _merge_logs(mosaics: Sequence[Mosaic], model_ids: tuple[str, ...]) -> dict[str, NDArray[np.generic]]:
    """One row a frame: the row of the mosaic that inferred it, else one that at least rejected it."""
    columns: dict[str, list[NDArray[np.generic]]] = {name: [] for name in mosaics[0].frame_log}
    for mosaic in mosaics:
        number = np.array([*(model_ids.index(model_id) for model_id in mosaic.model_ids), -1], dtype=np.int32)
        for name in columns:
            column = np.asarray(mosaic.frame_log[name])
            columns[name].append(number[column] if name == "model" else column)
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    inferred = joined["frame_index"][joined["state"] == FrameState.INFERRED]
    if len(np.unique(inferred)) != len(inferred):
        raise InputError(
            "frames that two mosaics hold", "each frame is stitched once", "give the edges different shares"
        )
    rank = np.select([joined["state"] == FrameState.INFERRED, joined["state"] == FrameState.REJECTED], [0, 1], 2)
    order = np.lexsort((rank, joined["frame_index"]))
    _, first = np.unique(joined["frame_index"][order], return_index=True)
    return {name: column[order][first] for name, column in joined.items()}
