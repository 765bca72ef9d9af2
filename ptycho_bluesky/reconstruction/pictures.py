"""One picture of a reconstruction: object, probe, diffraction error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ptycho_bluesky.errors import StorageError
from ptycho_bluesky.reconstruction.gauge import LIT_FRACTION, illumination, lit_median
from ptycho_bluesky.records import Reconstruction

__all__ = ["draw"]


def draw(reconstruction: Reconstruction, path: Path | str) -> Path:
    """Draw phase and amplitude of the object in its lit area, the first probe mode, its pupil and the error history.

    Parameters
    ----------
    reconstruction : Reconstruction
    path : path
        Where to write the picture; the suffix tells the format.

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
    axes = figure.subplot_mosaic([["phase", "phase", "amplitude", "amplitude"], ["probe", "pupil", "error", "error"]],
                                 height_ratios=[1.6, 1.0])  # fmt: skip
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
    modes = np.asarray(reconstruction.probe)
    share = np.sum(np.abs(modes[0]) ** 2) / np.sum(np.abs(modes) ** 2)
    title = "probe" if len(modes) == 1 else f"first probe mode, {share:.0%}"
    axes["probe"].imshow(_in_colour(modes[0]))
    axes["probe"].set(title=title, xlabel="px")
    axes["pupil"].imshow(np.abs(np.fft.fftshift(np.fft.fft2(modes[0]))), cmap="viridis")
    axes["pupil"].set(title="|far field of the probe|", xlabel="detector px")
    passes = np.arange(1, len(reconstruction.error) + 1)
    axes["error"].semilogy(passes, reconstruction.error, ".-")
    axes["error"].set(xlabel="pass", ylabel="Σ(|F| − √I)² / ΣI", title="diffraction error")
    axes["error"].grid(True, which="both", alpha=0.3)
    name = reconstruction.run_uid or "reconstruction"
    figure.suptitle(f"{name} · {reconstruction.engine} · {len(reconstruction.position_m)} frames")
    try:
        figure.savefig(path, dpi=100)
    except OSError as error:
        raise StorageError(f"picture {path}: {error}", "the folder must be writable", "name another file") from error
    return path


def _in_colour(wave: NDArray[Any]) -> NDArray[np.float64]:
    """RGB (N, N, 3) of a wave: brightness its amplitude, hue its phase."""
    value = np.abs(wave) / np.abs(wave).max()
    turn = np.angle(wave)[..., None] + np.array([0.0, -2 * np.pi / 3, 2 * np.pi / 3])
    return value[..., None] * (0.5 + 0.5 * np.cos(turn))
