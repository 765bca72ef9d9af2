"""Curve and pictures of `bench learning`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.bench.learning import SAMPLES, LearningBench, LearningExperiment
from ptycho_bluesky.geometry import ObjectFrame
from ptycho_bluesky.stitching import MosaicBuilder
from ptycho_bluesky.stitching.illumination import sample_at

__all__ = ["draw_curve", "draw_pictures"]

COLOURS = {"familiar": "tab:blue", "unfamiliar": "tab:orange"}
NAMES = {"familiar": "random shapes", "unfamiliar": "letters"}


def draw_curve(path: Path, bench: LearningBench, seeds: dict[int, list[dict[str, Any]]]) -> None:
    """Similarity of the reserved scans against scans seen, one line a seed.

    Parameters
    ----------
    path : path
        Picture to write.
    bench : LearningBench
    seeds : dict of int to list
        Scores of each seed (`ptycho_bluesky.bench.learning.read_scores`).
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for place, scores in enumerate(seeds.values()):
        for sample in SAMPLES:
            label = f"reserved scan of {NAMES[sample]}" if place == 0 else None
            seen = [line["scan"] for line in scores]
            axes.plot(
                seen, [line[sample] for line in scores], "o-", ms=3, color=COLOURS[sample], alpha=0.8, label=label
            )
    axes.axvline(bench.num_shapes + 0.5, color="grey", lw=0.8, ls="--")
    axes.set(xlabel=f"scans seen (letters from scan {bench.num_shapes + 1} on)", ylabel="SSIM with the true phase")
    axes.set_title(f"Simulated, {bench.frames_per_scan} frame-updates a scan, seeds: {len(seeds)}", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=130)


def draw_pictures(path: Path, bench: LearningBench, out: Path, scans: tuple[int, ...]) -> None:
    """Images of the reserved scans after some scans, beside the truth.

    Parameters
    ----------
    path : path
        Picture to write.
    bench : LearningBench
    out : path
        Folder of the experiment.
    scans : tuple of int
        After how many scans.
    """
    from matplotlib.figure import Figure

    experiment = LearningExperiment(bench)
    figure = Figure(figsize=(2.2 * (len(scans) + 1), 4.8), layout="constrained")
    axes = figure.subplots(2, len(scans) + 1)
    for row, sample in enumerate(SAMPLES):
        labels = experiment.reserved[sample]
        images = []
        for number in scans:
            with np.load(out / f"reserved-{number - 1:02d}.npz") as kept:
                images.append(_stitched(kept[sample], kept[f"{sample}_weight"], labels))
        truth, truth_frame = experiment.experiment.truth()
        frame = ObjectFrame.around(labels.position_m, (bench.size_px, bench.size_px), labels.pixel_size_m)
        image = np.angle(sample_at(truth, truth_frame, frame))
        low, high = np.percentile(image, (1, 99))
        titles = [*(f"after {number} scan{'s' if number > 1 else ''}" for number in scans), "truth"]
        for axis, picture, title in zip(axes[row], [*images, image], titles, strict=True):
            shown = picture - np.nanmedian(picture) + np.median(image)
            axis.imshow(shown, vmin=low, vmax=high, cmap="viridis")
            axis.set(xticks=[], yticks=[])
            axis.set_title(title, fontsize=9)
        axes[row][0].set_ylabel(NAMES[sample])
    figure.suptitle("Reserved scans, simulated; phase", fontsize=10)
    figure.savefig(path, dpi=110)


def _stitched(phase_rad: NDArray[Any], weight: NDArray[np.float32], labels: Any) -> NDArray[np.float32]:
    patches = phase_rad.astype(np.float32)
    shape = (patches.shape[1], patches.shape[2])
    size = labels.image.shape[1:]
    builder = MosaicBuilder(ObjectFrame.around(labels.position_m, size, labels.pixel_size_m), shape, weight)
    builder.add(patches, labels.position_m)
    image = builder.snapshot()
    return np.where(image.coverage > 0, image.phase_rad, np.nan)
