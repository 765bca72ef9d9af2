"""A calibration applied to frames that were read already, of whatever format."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ptycho_bluesky.config import DetectorSettings
from ptycho_bluesky.io.masks import stated_canonical
from ptycho_bluesky.preprocess import Canonical
from ptycho_bluesky.records import Measurement

__all__ = ["as_calibrated"]


def as_calibrated(
    measurement: Measurement,
    detector: DetectorSettings,
    orientation: str = "identity",
    *,
    limit: int | None = None,
    pixel_px: int | None = None,
) -> Measurement:
    """Cut, mask and turn frames as a calibration says.

    Parameters
    ----------
    measurement : Measurement
        Frames (n, H, W) as the detector laid them.
    detector : DetectorSettings
        Centre, region, mask and saturation.
    orientation : str
        D4 operation after the cut.
    limit : int, optional
        Keep the first frames only.
    pixel_px : int, optional
        Side of the frames that the measurement's pixel size belongs to; by default the shorter one of its own.

    Returns
    -------
    Measurement
        The object's pixel is λz/(Np): with fewer rows of the detector it grows, and positions in object pixels shrink.

    Raises
    ------
    InputError
        The region leaves the frame, or the mask is of another shape.
    """
    shape = (int(measurement.image.shape[1]), int(measurement.image.shape[2]))
    content = {"canonical": stated_canonical(detector, shape), "geometry": {"orientation": orientation}}
    canonical = Canonical.from_run(content, shape)
    image, unusable = canonical.read(np.asarray(measurement.image[:limit]))
    good = canonical.good if unusable is None else ~unusable.any(axis=0)
    grown = (pixel_px or min(shape)) / canonical.num_px
    geometry, pixel_m, position = measurement.geometry, measurement.pixel_size_m, measurement.position_m[:limit]
    if geometry is not None:
        geometry = replace(geometry, num_px=canonical.num_px, orientation=orientation)
        pixel_m = geometry.object_pixel_m
    elif pixel_m is not None:
        pixel_m *= grown
    else:
        position = position / grown
    cut = {"cut_from": list(shape), "cut_centre_px": list(canonical.centre_px), "orientation": orientation}
    columns = ("frame_index", "unique_id", "timestamp_s", "i0")
    return replace(
        measurement,
        image=np.ascontiguousarray(image),
        position_m=position,
        geometry=geometry,
        pixel_size_m=pixel_m,
        # A starting probe belongs to the frames as they were.
        probe=measurement.probe if canonical.num_px == min(shape) and orientation == "identity" else None,
        mask=None if good.all() else np.asarray(good),
        metadata={**measurement.metadata, **cut},
        **{name: getattr(measurement, name)[:limit] for name in columns},
    )
