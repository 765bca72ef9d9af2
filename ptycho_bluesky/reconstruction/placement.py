"""Which frames a reconstruction was made from, and where they stood."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.reconstruction.positions import refine_positions
from ptycho_bluesky.reconstruction.prepare import frame_options, prepare_scan
from ptycho_bluesky.records import Measurement, Reconstruction

__all__ = ["rows_of", "with_refined_positions"]

STEPS = 8
"""Of the refinement of a held-out frame's position, object and probe being as they are."""


def rows_of(reconstruction: Reconstruction, measurement: Measurement, name: str) -> NDArray[np.int64]:
    """Rows of a measurement that a reconstruction names.

    Parameters
    ----------
    reconstruction : Reconstruction
    measurement : Measurement
        The scan that was reconstructed.
    name : {"frames_used", "frames_held_out"}

    Returns
    -------
    ndarray of int64
        In the order of the reconstruction.

    Raises
    ------
    InputError
        The reconstruction does not say, or is one of another scan.
    """
    stated = reconstruction.provenance.get(name)
    if stated is None:
        raise InputError(
            f"a reconstruction without {name!r} in its provenance",
            "labels are cut for the frames that it was made from",
            "reconstruct the measurement with this package",
        )
    order = np.argsort(measurement.frame_index, kind="stable")
    index = np.asarray(measurement.frame_index)[order]
    wanted = np.asarray(stated, dtype=np.int64)
    place = np.searchsorted(index, wanted)
    missing = place >= len(index)
    missing |= index[np.minimum(place, len(index) - 1)] != wanted
    if missing.any():
        raise InputError(
            f"{int(missing.sum())} frames of the reconstruction are not in the measurement {measurement.run_uid!r}",
            "both must be of one run",
        )
    return order[place]


def with_refined_positions(measurement: Measurement, reconstruction: Reconstruction) -> Measurement:
    """The measurement with its frames where the reconstruction found them.

    Parameters
    ----------
    measurement : Measurement
        The scan that was reconstructed.
    reconstruction : Reconstruction

    Returns
    -------
    Measurement
        Frames used stand at the reconstruction's positions. Where these were refined, those of the frames left out are
        too, by the same steps and against the finished object and probe: two numbers a frame, which leave its
        thousands of counts to judge by. Else the measurement itself.
    """
    if not reconstruction.options.get("correct_positions"):
        return measurement
    used, held_out = (rows_of(reconstruction, measurement, name) for name in ("frames_used", "frames_held_out"))
    position = np.array(measurement.position_m, dtype=np.float64)
    position[used] = reconstruction.position_m
    placed = replace(measurement, position_m=position)
    if len(held_out):
        # Together with the others: the mean of all corrections is 0, that of a few frames is not.
        rows = np.concatenate([held_out, used])
        measured_px = reconstruction.frame.to_px(measurement.position_m[rows])
        position[held_out] = _refined_m(placed, reconstruction, rows, measured_px)[: len(held_out)]
    return placed


def _refined_m(
    placed: Measurement, reconstruction: Reconstruction, rows: NDArray[np.int64], measured_px: NDArray[np.float64]
) -> NDArray[np.float64]:
    frame = reconstruction.frame
    scan = prepare_scan(placed, rows, frame, frame_options(reconstruction.options))
    obj, probe = (
        torch.from_numpy(np.array(wave)).to(scan.ramp_row) for wave in (reconstruction.object, reconstruction.probe)
    )
    limit = float(reconstruction.options.get("max_correction_px", 6.0))
    for _ in range(STEPS):
        scan = scan.moved(refine_positions(scan, obj, probe, measured_px, limit))
    return frame.to_m(scan.position_px)
