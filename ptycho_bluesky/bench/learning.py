"""`bench learning`: a simulated experiment, scan by scan; what reserved scans look like after each.

Scans of random shapes, then scans of letters; after each one the network goes on learning with the same number of
frame-updates, from where it was, on all scans so far. One scan of shapes and one of letters are never learned from.
Everything that was done is in a folder, and the same call goes on where it was stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from ptycho_bluesky.bench.corpus import CorpusOptions, SimulatedCorpus
from ptycho_bluesky.bench.rows import Row
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.metrics import SsimResult
from ptycho_bluesky.models.export import from_onnx
from ptycho_bluesky.records import LabelSet
from ptycho_bluesky.simulation import Experiment, default_geometry, demo_map
from ptycho_bluesky.stitching import weight_from_manifest
from ptycho_bluesky.training.corpus import Corpus
from ptycho_bluesky.training.evaluate import predict
from ptycho_bluesky.training.options import TrainOptions
from ptycho_bluesky.training.trainer import train

__all__ = ["LearningBench", "LearningExperiment", "rows_of", "run"]

Progress = Callable[[int, int, str], None]
SAMPLES = ("familiar", "unfamiliar")


@dataclass(frozen=True)
class LearningBench:
    """What is simulated and how much is learned.

    Attributes
    ----------
    num_shapes, num_letters : int
        Scans of random shapes, and of letters behind them.
    num_points : int
        Frames of a scan.
    size_px : int
    architecture : str
    frames_per_scan : int
        Frame-updates after each scan.
    num_threads, seed : int
        The seed is that of the sample, the photons, the first weights and the batches.
    """

    num_shapes: int = 13
    num_letters: int = 6
    num_points: int = 963
    size_px: int = 64
    architecture: str = "ptychonn2"
    frames_per_scan: int = 6_000
    num_threads: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_shapes < 2 or self.num_letters < 2:
            raise InputError(f"{self.num_shapes} and {self.num_letters} scans", "a trend needs two of each kind")

    @property
    def num_scans(self) -> int:
        """Scans that are learned from."""
        return self.num_shapes + self.num_letters


class LearningExperiment(SimulatedCorpus):
    """The scans: areas of random shapes and of letters on one sample, the first of each kind reserved."""

    def __init__(self, bench: LearningBench) -> None:
        options = CorpusOptions(
            size_px=bench.size_px, num_scans=bench.num_scans, num_points=bench.num_points, seed=1000 + bench.seed
        )
        self.options, self.bench = options, bench
        sample = demo_map(
            bench.num_shapes + 1,
            pixel_size_m=default_geometry(bench.size_px).object_pixel_m,
            seed=options.seed,
            num_letters=bench.num_letters + 1,
        )
        self.experiment = Experiment.default(bench.size_px, sample)
        self._areas = {area.name: area for area in sample.areas}

    def scan(self, number: int) -> LabelSet:
        """Scan to learn from, numbered from 0: shapes first, then letters."""
        shapes = self.bench.num_shapes
        name = f"shapes-{number + 1}" if number < shapes else f"letters-{number - shapes + 1}"
        return self.labels(self._areas[name], seed=number + 1)

    @cached_property
    def reserved(self) -> dict[str, LabelSet]:
        """Scans that are never learned from: of shapes (familiar) and of letters (unfamiliar, until they are seen)."""
        return {
            "familiar": self.labels(self._areas["shapes-0"], seed=0),
            "unfamiliar": self.labels(self._areas["letters-0"], seed=999),
        }


def run(bench: LearningBench, out: Path, progress: Progress | None = None, stop_after_s: float = np.inf) -> bool:
    """Learn from every scan that is left.

    Parameters
    ----------
    bench : LearningBench
    out : path
        Folder of the experiment; it holds ``experiment.json``, ``scores.jsonl``, the corpus, the last model, and the
        phases of the reserved scans after some scans, for pictures.
    progress : callable, optional
        Called with (scans done, scans in all, what is done).
    stop_after_s : float
        Do not begin another scan after this time.

    Returns
    -------
    bool
        Whether all scans are done.

    Raises
    ------
    InputError
        The folder holds another experiment.
    """
    report = progress or (lambda done, total, name: None)
    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    _claim(out, bench)
    experiment = LearningExperiment(bench)
    corpus = Corpus(out / "corpus")
    options = TrainOptions.create(
        architecture=bench.architecture,
        frames_per_scan=bench.frames_per_scan,
        seed=bench.seed,
        num_threads=bench.num_threads,
    )
    for number in range(len(read_scores(out)), bench.num_scans):
        if time.monotonic() - began > stop_after_s:
            return False
        report(number, bench.num_scans, f"scan {number + 1}")
        labels = experiment.scan(number)
        corpus.add(labels)
        parent = out / f"model-{number - 1:02d}.onnx"
        started = time.monotonic()
        result = train(
            corpus,
            options,
            runs=corpus.runs()[: number + 1],
            parent=parent.read_bytes() if number else None,
            checkpoint_dir=out / "checkpoint",
        )
        (out / f"model-{number:02d}.onnx").write_bytes(result.content)
        figures = _score(experiment, result.content, out / f"reserved-{number:02d}.npz")
        line = {"scan": number + 1, "seconds": time.monotonic() - started, **figures}
        with (out / "scores.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
    report(bench.num_scans, bench.num_scans, "done")
    return True


def read_scores(out: Path) -> list[dict[str, Any]]:
    """Lines of ``scores.jsonl``, one a scan."""
    path = out / "scores.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _claim(out: Path, bench: LearningBench) -> None:
    path = out / "experiment.json"
    if not path.exists():
        path.write_text(json.dumps(asdict(bench)))
    elif json.loads(path.read_text()) != asdict(bench):
        raise InputError(f"folder {out}", "it holds another experiment", "name an empty folder, or the same options")


def _score(experiment: LearningExperiment, content: bytes, phases: Path) -> dict[str, Any]:
    """Similarity of the reserved scans' images with the true object; the patches are kept for pictures."""
    reader, manifest = from_onnx(content)
    found: dict[str, Any] = {}
    kept: dict[str, NDArray[Any]] = {}
    for sample in SAMPLES:
        labels = experiment.reserved[sample]
        guess = predict(reader, labels.image)
        weight = weight_from_manifest(manifest, (guess.shape[1], guess.shape[2]))
        result: SsimResult = experiment.score(guess, labels, weight)
        found[sample] = result.ssim
        found[f"{sample}_constant"], found[f"{sample}_blurred"] = result.constant, result.blurred
        kept[sample] = guess.astype(np.float16)
        kept[f"{sample}_weight"] = weight
    np.savez(phases, allow_pickle=False, **kept)
    return found


def rows_of(bench: LearningBench, scores: list[dict[str, Any]]) -> list[Row]:
    """Figures of a finished experiment.

    Familiar features are counted over the scans that show them; unfamiliar ones from the last scan before the first
    letters on.
    """
    familiar = [line["familiar"] for line in scores[: bench.num_shapes]]
    unfamiliar = [line["unfamiliar"] for line in scores[bench.num_shapes - 1 :]]
    last, first = scores[-1], scores[0]
    return [
        Row("spearman_familiar", "1", "higher", _rank_correlation(familiar), target=0.9),
        Row("spearman_unfamiliar", "1", "higher", _rank_correlation(unfamiliar), target=0.9),
        Row("ssim_familiar", "1", "higher", familiar[-1]),
        Row("ssim_familiar_blurred", "1", "lower", first["familiar_blurred"]),
        Row("ssim_unfamiliar", "1", "higher", unfamiliar[-1]),
        Row("ssim_unfamiliar_blurred", "1", "lower", first["unfamiliar_blurred"]),
        Row("ssim_constant", "1", "lower", max(first["familiar_constant"], first["unfamiliar_constant"])),
        Row("ssim_unfamiliar_gain", "1", "higher", unfamiliar[-1] - unfamiliar[0]),
        Row("ssim_familiar_after_letters", "1", "higher", last["familiar"], familiar[-1], "before the letters"),
        Row("minutes", "min", "lower", sum(line["seconds"] for line in scores) / 60, target=45.0),
    ]


def _rank_correlation(values: list[float]) -> float:
    """Spearman's coefficient of values with their order; 0 where they are all alike."""
    if len(set(values)) < 2:
        return 0.0
    return float(np.corrcoef(np.arange(len(values)), scipy.stats.rankdata(values))[0, 1])
