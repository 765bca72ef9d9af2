"""A mosaic as a picture: phase, coverage, disagreement, and the maps that need no network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ptycho_bluesky.errors import StorageError
from ptycho_bluesky.records import Mosaic

__all__ = ["draw_mosaic"]

PANELS = (
    ("phase / rad", "phase_rad", "gray"),
    ("frames a pixel", "coverage", "viridis"),
    ("circular variance", "variance", "magma"),
    ("bright field / counts", "bright_field", "gray"),
    ("centre of mass y / px", "com_y_px", "RdBu"),
    ("centre of mass x / px", "com_x_px", "RdBu"),
)
RESIDUAL = ("physics residual", "residual", "magma")
"""In place of the bright field, where it was computed."""


def draw_mosaic(mosaic: Mosaic, path: Path | str) -> None:
    """Draw a mosaic into a PNG file.

    Parameters
    ----------
    mosaic : Mosaic
    path : path

    Raises
    ------
    StorageError
        The file cannot be written.
    """
    covered = mosaic.coverage > 0
    known = mosaic.frame.pixel_size_m != 1.0  # 1.0 stands for object pixels
    scale, unit = (1e6, "µm") if known else (1.0, "object px")
    extent = tuple(edge * scale for edge in mosaic.frame.extent_m)
    figure = Figure(figsize=(13, 8), layout="constrained")
    panels = (*PANELS[:3], RESIDUAL, *PANELS[4:]) if "residual" in mosaic.maps else PANELS
    for axes, (title, name, colours) in zip(figure.subplots(2, 3).ravel(), panels, strict=True):
        values = np.asarray(mosaic.maps[name] if name in mosaic.maps else getattr(mosaic, name), dtype=np.float64)
        shown = covered if name not in mosaic.maps else mosaic.maps[name if name == "residual" else "bright_field"] != 0
        picture = axes.imshow(np.where(shown, values, np.nan), cmap=colours, extent=extent, **_limits(values[shown]))
        axes.set_title(title)
        axes.set_xlabel(f"x / {unit}")
        axes.set_ylabel(f"y / {unit}")
        figure.colorbar(picture, ax=axes, shrink=0.8)
    figure.suptitle(f"run {mosaic.run_uid[:8]}" if mosaic.run_uid else "")
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise StorageError(f"{path}: {error}", "the picture must be writable") from error


def _limits(values: NDArray[np.float64]) -> dict[str, float]:
    if not values.size:
        return {}
    low, high = np.percentile(values, [1, 99])
    return {"vmin": float(low), "vmax": float(high)} if high > low else {}
