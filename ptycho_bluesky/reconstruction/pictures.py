"""One picture of a reconstruction: object, probe, diffraction error, ring correlation of its half-scans."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ptycho_bluesky.errors import StorageError
from ptycho_bluesky.reconstruction.gauge import LIT_FRACTION, illumination, lit_median
from ptycho_bluesky.reconstruction.ring_correlation import ONE_SEVENTH, RingCorrelation
from ptycho_bluesky.records import Reconstruction

__all__ = ["draw"]


def draw(reconstruction: Reconstruction, path: Path | str, rings: RingCorrelation | None = None) -> Path:
    """Draw phase and amplitude of the object in its lit area, the first probe mode, its pupil, the error history.

    Parameters
    ----------
    reconstruction : Reconstruction
    path : path
        Where to write the picture; the suffix tells the format.
    rings : RingCorrelation, optional
        Of two half-scans; drawn beside the error with its thresholds.

    Returns
    -------
    Path

    Raises
    ------
    StorageError
        The picture cannot be written.
    """
    path = Path(path)
    # A figure of its own, without pyplot: nothing global is touched, so it works in threads and without a display.
    figure = Figure(figsize=(15, 9), layout="constrained")
    FigureCanvasAgg(figure)
    panels: list[Any] = [["phase", "phase", "amplitude", "amplitude"]]
    panels.append(["probe", "pupil", "error", "error" if rings is None else "rings"])
    axes = figure.subplot_mosaic(panels, height_ratios=[1.6, 1.0])
    _draw_object(figure, axes, reconstruction)
    _draw_probe(axes, np.asarray(reconstruction.probe))
    _draw_error(axes["error"], reconstruction)
    if rings is not None:
        _draw_rings(axes["rings"], rings)
    name = reconstruction.run_uid or "reconstruction"
    figure.suptitle(f"{name} · {reconstruction.engine} · {len(reconstruction.position_m)} frames")
    try:
        figure.savefig(path, dpi=100)
    except OSError as error:
        raise StorageError(f"picture {path}: {error}", "the folder must be writable", "name another file") from error
    return path


def _draw_object(figure: Figure, axes: Mapping[str, Axes], reconstruction: Reconstruction) -> None:
    frame = reconstruction.frame
    known = reconstruction.provenance.get("pixel_size_known", reconstruction.geometry is not None)
    scale, unit = (1e6, "µm") if known else (1.0, "px")
    left, right, bottom, top = (value * scale for value in frame.extent_m)
    light = illumination(reconstruction.probe, frame.to_px(reconstruction.position_m), frame.shape)
    lit = light > LIT_FRACTION * lit_median(light)
    phase = np.angle(reconstruction.object)
    phase = np.angle(np.exp(1j * (phase - np.angle(np.mean(np.exp(1j * phase[lit]))))))
    for name, image, label in (("phase", phase, "phase, rad"), ("amplitude", np.abs(reconstruction.object), "|O|")):
        low, high = np.percentile(image[lit], [0.5, 99.5])
        shown = axes[name].imshow(
            np.where(lit, image, np.nan), extent=(left, right, bottom, top), cmap="gray", vmin=low, vmax=high
        )
        axes[name].set(xlabel=f"x, {unit}", ylabel=f"y, {unit}", title=f"object: {name}")
        figure.colorbar(shown, ax=axes[name], label=label, shrink=0.85)


def _draw_probe(axes: Mapping[str, Axes], modes: NDArray[Any]) -> None:
    share = np.sum(np.abs(modes[0]) ** 2) / np.sum(np.abs(modes) ** 2)
    title = "probe" if len(modes) == 1 else f"first probe mode, {share:.0%}"
    axes["probe"].imshow(_in_colour(modes[0]))
    axes["probe"].set(title=title, xlabel="px")
    axes["pupil"].imshow(np.abs(np.fft.fftshift(np.fft.fft2(modes[0]))), cmap="viridis")
    axes["pupil"].set(title="|far field of the probe|", xlabel="detector px")


def _draw_error(axes: Axes, reconstruction: Reconstruction) -> None:
    passes = np.arange(1, len(reconstruction.error) + 1)
    axes.semilogy(passes, reconstruction.error, ".-", label="frames used")
    held_out = reconstruction.provenance.get("held_out_error") or []
    if len(held_out):
        axes.semilogy(np.arange(1, len(held_out) + 1), held_out, "-", label="frames left out")
        axes.legend(fontsize="small")
    axes.set(xlabel="pass", ylabel="Σ(|F| − √I)² / ΣI", title="diffraction error")
    axes.grid(True, which="both", alpha=0.3)


def _draw_rings(axes: Axes, rings: RingCorrelation) -> None:
    axes.plot(rings.freq, rings.frc, ".-", markersize=3, label="two half-scans")
    axes.plot(rings.freq, rings.half_bit, "--", color="C1", label="½ bit")
    axes.axhline(ONE_SEVENTH, linestyle=":", color="C2", label="1/7")
    if np.isfinite(rings.resolution_px):
        axes.axvline(0.5 / rings.resolution_px, color="C1", alpha=0.4)
    metres = f" = {rings.resolution_m * 1e9:.3g} nm" if np.isfinite(rings.resolution_m) else ""
    axes.set(
        xlabel="spatial frequency, 1/px",
        ylabel="Fourier ring correlation",
        title=f"half period resolved: {rings.resolution_px:.2f} px{metres}",
        xlim=(0.0, 0.5),
        ylim=(-0.15, 1.05),
    )
    axes.legend(fontsize="small", loc="upper right")
    axes.grid(True, alpha=0.3)


def _in_colour(wave: NDArray[Any]) -> NDArray[np.float64]:
    """RGB (N, N, 3) of a wave: brightness its amplitude, hue its phase."""
    value = np.abs(wave) / np.abs(wave).max()
    turn = np.angle(wave)[..., None] + np.array([0.0, -2 * np.pi / 3, 2 * np.pi / 3])
    return value[..., None] * (0.5 + 0.5 * np.cos(turn))
