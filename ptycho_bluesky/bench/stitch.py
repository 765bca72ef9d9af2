"""``bench stitch``: patches per second of the mosaic, whether that holds as it grows, and how true the image is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.bench.corpus import SimulatedCorpus
from ptycho_bluesky.bench.released import NumpyStitcher, ReleasedStitcher
from ptycho_bluesky.bench.rows import Row
from ptycho_bluesky.bench.shipped import shipped_model
from ptycho_bluesky.bench.timing import measure_rates
from ptycho_bluesky.geometry import ObjectFrame
from ptycho_bluesky.inference import load_model
from ptycho_bluesky.stitching import MosaicBuilder, cosine_weight, disc_weight
from ptycho_bluesky.stitching.offsets import OffsetRecord

__all__ = ["StitchBench", "run"]

Progress = Callable[[int, int, str], None]

RELEASED = "released consumer (scipy)"
NUMPY = "whole-array NumPy"


@dataclass(frozen=True)
class StitchBench:
    """What is measured.

    Attributes
    ----------
    size : int
        Rows and columns of a patch.
    patches : int
        Distinct patches, used in turn.
    step_px : float
        Between successive patches of a line, and between lines.
    rounds : int
    seconds : float
        Of one case in one round.
    growth : int
        By how much the mosaic grows.
    offset_frames : int
        Frames of the held-out scan on which solving the patches' offsets is judged.
    """

    size: int = 128
    patches: int = 400
    step_px: float = 12.3
    rounds: int = 5
    seconds: float = 0.4
    growth: int = 10
    offset_frames: int = 400


def run(options: StitchBench | None = None, progress: Progress | None = None) -> list[Row]:
    """Measure on one core, in CPU seconds of the stitching thread.

    Parameters
    ----------
    options : StitchBench, optional
    progress : callable, optional
        Called with (turns done, turns in all, case).

    Returns
    -------
    list of Row
    """
    options = options or StitchBench()
    rng = np.random.default_rng(0)
    patches = rng.uniform(-np.pi, np.pi, (options.patches, options.size, options.size)).astype(np.float32)
    rows = _speed(options, patches, progress)
    rows += _growth(options, patches)
    rows += _truth(options)
    rows += _offsets(options.offset_frames)
    return rows


def _raster(count: int, step_px: float, per_line: int) -> NDArray[np.float64]:
    """Positions (count, 2) of a raster with fractional steps, in pixels."""
    index = np.arange(count)
    return np.stack([index // per_line, index % per_line], axis=1).astype(np.float64) * (step_px, step_px * 1.037)


def _speed(options: StitchBench, patches: NDArray[np.float32], progress: Progress | None) -> list[Row]:
    size, count = options.size, len(patches)
    positions = _raster(count, options.step_px, int(np.sqrt(count)))
    frame = ObjectFrame.around(positions, size, 1.0)
    corner = frame.to_px(positions) - size // 2
    weight = cosine_weight((size, size))
    full = MosaicBuilder(frame, (size, size), weight)
    disc = MosaicBuilder(frame, (size, size), disc_weight((size, size)))
    released, numpy = ReleasedStitcher(frame.shape), NumpyStitcher(frame.shape, weight)
    few, some = min(8, count), min(40, count)

    def show() -> None:
        disc.add(patches[:few], positions[:few])
        disc.picture()

    rates = measure_rates(
        {
            "mosaic": (lambda: full.add(patches, positions), count),
            "released": (lambda: released.add(patches[:few], corner[:few]), few),
            "numpy": (lambda: numpy.add(patches[:some], corner[:some]), some),
            "disc": (lambda: disc.add(patches, positions), count),
            "shown": (show, 1),
        },
        rounds=options.rounds,
        seconds=options.seconds,
        progress=progress,
        clock=time.thread_time,
    )
    ours, theirs = rates.median("mosaic"), rates.median("released")
    return [
        Row(f"stitch_patches_per_s_{size}", "1/s", "higher", ours, theirs, RELEASED, 20_000.0),
        Row("stitch_patches_per_s_vs_numpy", "1/s", "higher", ours, rates.median("numpy"), NUMPY),
        Row("stitch_patches_per_s_disc_weight", "1/s", "higher", rates.median("disc"), theirs, RELEASED),
        Row("stitch_8_patches_and_picture_ms", "ms", "lower", 1e3 / rates.median("shown")),
    ]  # fmt: skip


def _growth(options: StitchBench, patches: NDArray[np.float32]) -> list[Row]:
    """CPU time a patch over the first part of a long scan and over the last, in turns with small mosaics."""
    size, part = options.size, len(patches)
    per_line = int(np.sqrt(part * options.growth))
    positions = _raster(part * options.growth, options.step_px, per_line)
    weight = cosine_weight((size, size))
    ratios = []
    for _ in range(options.rounds):
        # no plan is known: the canvas starts around the first patch and grows with the scan
        grown = MosaicBuilder(ObjectFrame.around(positions[:1], size, 1.0), (size, size), weight)
        for k in range(options.growth - 1):
            grown.add(patches, positions[k * part : (k + 1) * part])
        small = MosaicBuilder(ObjectFrame.around(positions[:part], size, 1.0), (size, size), weight)
        last = positions[-part:]
        grown.add(patches[-1:], last[-1:])  # growing is not a cost of each patch: the canvas holds the part now
        times = {"small": np.inf, "grown": np.inf}
        for _ in range(3):
            for name, builder, where in (("small", small, positions[:part]), ("grown", grown, last)):
                begun_s = time.thread_time()
                builder.add(patches, where)
                times[name] = min(times[name], time.thread_time() - begun_s)
        ratios.append(times["grown"] / times["small"])
    return [Row(f"stitch_cost_after_growing_{options.growth}x", "1", "lower", float(np.median(ratios)), target=1.2)]


def _truth(options: StitchBench) -> list[Row]:
    """Error on a smooth phase that runs across the wrap, known at every point."""
    size, count = options.size, 100
    positions = _raster(count, options.step_px, 10)
    frame = ObjectFrame.around(positions, size, 1.0)
    corner = frame.to_px(positions) - size // 2
    axis = np.arange(size)
    rows, cols = (corner[:, k, None] + axis for k in (0, 1))
    patches = np.angle(np.exp(1j * _phase(rows[:, :, None], cols[:, None, :]))).astype(np.float32)
    builder = MosaicBuilder(frame, (size, size), cosine_weight((size, size)))
    builder.add(patches, positions)
    released = ReleasedStitcher(frame.shape)
    released.add(patches, corner)
    image = builder.snapshot()
    rows, cols = (np.arange(size, dtype=np.float64) for size in frame.shape)
    truth = _phase(rows[:, None], cols[None, :])
    inside = (image.coverage >= 3) & (released.count >= 3)
    errors = [_rms(np.angle(np.exp(1j * (found - truth)))[inside]) for found in (image.phase_rad, released.image())]
    return [Row("stitch_error_across_the_wrap", "rad", "lower", errors[0], errors[1], RELEASED, 0.05)]


def _offsets(num_frames: int, name: str = "lean16") -> list[Row]:
    """What solving the patches' phase offsets gains, and how far it leads, on a scan that the model has not seen."""
    corpus = SimulatedCorpus()
    labels = corpus.held_out(num_frames)
    model = load_model(shipped_model(name), num_threads=1)
    phase = model.engine.infer(labels.image.astype(np.float32))
    plain, solved = (corpus.score(phase, labels, model.weight, solve_offsets=way).ssim for way in (False, True))
    shape = (phase.shape[1], phase.shape[2])
    builder = MosaicBuilder(ObjectFrame.around(labels.position_m, shape, labels.pixel_size_m), shape, model.weight)
    _, offset = builder.add_levelled(phase, labels.position_m)
    record = OffsetRecord()
    record.add(offset, labels.position_m)
    drift = record.drift()
    return [
        Row("mosaic_ssim_offsets_solved", "1", "higher", solved, plain, "offsets as read"),
        Row("offset_rms", "rad", "lower", drift.rms_rad),
        Row("offset_walk", "rad", "lower", drift.walk_rad),
    ]


def _phase(row: NDArray[np.float64], col: NDArray[np.float64]) -> NDArray[np.float64]:
    """A smooth phase between about −5 and 5 rad."""
    return np.asarray(2.5 * np.sin(row / 19.0) + 2.5 * np.cos(col / 23.0 + row / 61.0), dtype=np.float64)


def _rms(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(values**2)))
