"""Pictures of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ptycho_bluesky.geometry import ObjectFrame

__all__ = ["Panel", "draw_curve", "draw_panels"]


class Panel:
    """One image of a row of images.

    Parameters
    ----------
    title : str
        Heading.
    image : ndarray, shape (rows, cols)
        What is shown; NaN is left blank.
    frame : ObjectFrame or None
        Gives the axes in µm; None leaves them in pixels.
    unit : str
        Unit of the colour bar.
    limits : tuple of float, optional
        Colour limits; by default the 1st and 99th percentile of the image.
    """

    def __init__(
        self,
        title: str,
        image: NDArray[np.floating],
        frame: ObjectFrame | None = None,
        unit: str = "rad",
        limits: tuple[float, float] | None = None,
    ) -> None:
        self.title, self.image, self.frame, self.unit = title, image, frame, unit
        finite = image[np.isfinite(image)]
        low, high = np.percentile(finite, (1, 99)) if finite.size else (0.0, 1.0)
        self.limits = limits or (float(low), float(high))

    def draw(self, figure: Figure, axes: Axes) -> None:
        """Draw into the axes."""
        options: dict = {"cmap": "gray", "vmin": self.limits[0], "vmax": self.limits[1], "interpolation": "nearest"}
        label = "px"
        if self.frame is not None:
            options["extent"] = [edge * 1e6 for edge in self.frame.extent_m]
            label = "µm"
        shown = axes.imshow(self.image, **options)
        axes.set_title(self.title, fontsize=10)
        axes.set_xlabel(f"x ({label})", fontsize=8)
        axes.set_ylabel(f"y ({label})", fontsize=8)
        axes.tick_params(labelsize=7)
        bar = figure.colorbar(shown, ax=axes, fraction=0.046, pad=0.03)
        bar.set_label(self.unit, fontsize=8)
        bar.ax.tick_params(labelsize=7)


def draw_panels(path: Path, panels: Sequence[Panel], columns: int = 4) -> Path:
    """Draw images side by side into a PNG, at most ``columns`` in a row."""
    columns = min(columns, len(panels))
    num_rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.4 * columns, 3.2 * num_rows), layout="constrained")
    grid = figure.subplots(num_rows, columns, squeeze=False)
    for panel, axes in zip(panels, grid.flat, strict=False):
        panel.draw(figure, axes)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    figure.savefig(path, dpi=110)
    return path


def draw_curve(
    path: Path,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x_label: str,
    y_label: str,
    levels: Mapping[str, float] | None = None,
    log: bool = False,
) -> Path:
    """Draw curves (x, y) and horizontal reference levels into a PNG."""
    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axes = figure.subplots()
    for label, (x, y) in curves.items():
        axes.plot(x, y, marker="o", markersize=4, label=label)
    for (label, value), style in zip((levels or {}).items(), (":", "--", "-."), strict=False):
        axes.axhline(value, color="gray", linestyle=style, label=label)
    if log:
        axes.set_yscale("log")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    return path
