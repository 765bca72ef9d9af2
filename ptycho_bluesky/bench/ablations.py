"""What each option of the trainer is worth: ``python -m ptycho_bluesky.bench.ablations --out FOLDER``.

The same small training with one option changed at a time, scored on a scan that none trains on. Results are kept a line
each, and the same command goes on with those that are missing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ptycho_bluesky.bench.corpus import CorpusOptions, SimulatedCorpus
from ptycho_bluesky.models.export import from_onnx
from ptycho_bluesky.records import LabelSet
from ptycho_bluesky.training.augmentation import thin_counts
from ptycho_bluesky.training.evaluate import evaluate
from ptycho_bluesky.training.options import TrainOptions
from ptycho_bluesky.training.trainer import train

__all__ = ["VARIANTS", "main", "table_of"]

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "initialisation=torch": {"initialisation": "torch"},
    "inputs=root": {"inputs": "root"},
    "inputs=counts": {"inputs": "counts"},
    "loss_area=whole": {"loss_area": "whole"},
    "average_frames=0": {"average_frames": 0},
    "schedule=constant": {"schedule": "constant"},
    "schedule=cosine": {"schedule": "cosine"},
    "augment=off": {"augment": "off"},
    "thin_to=0.1": {"thin_to": 0.1},
    "batch_size=64": {"batch_size": 64},
    "precision=float32": {"precision": "float32"},
    "compile=true": {"compile": True},
    "recipe=published": {"recipe": "published"},
}
LOW_LIGHT = 1 / 16
"""Share of the photons of the second score: the frames are scaled back to the light of the training, as at the edge."""
FIGURES = ("score", "score_low_light", "l1_rad", "cpu_s")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is missing and print the table.

    Returns
    -------
    int
        0, or 75 when the time was up first.
    """
    options = _parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    corpus = SimulatedCorpus(CorpusOptions(size_px=options.size, num_scans=options.scans, num_points=options.points))
    label_sets, held_out = corpus.training(), corpus.held_out(400)
    path = options.out / "ablations.jsonl"
    began = time.monotonic()
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for name in options.variants:
            if any(line["name"] == name and line["seed"] == seed for line in _read(path)):
                continue
            if time.monotonic() - began > options.seconds:
                return 75
            line = {"name": name, "seed": seed, **_figures(label_sets, held_out, name, seed, options)}
            with path.open("a") as file:
                file.write(json.dumps(line) + "\n")
    sys.stdout.write(table_of(_read(path)))
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--size", type=int, default=64, help="rows and columns of a frame")
    parser.add_argument("--scans", type=int, default=3, help="scans to train on")
    parser.add_argument("--points", type=int, default=963, help="frames of a scan")
    parser.add_argument("--frames", type=int, default=6000, help="frame-updates of each training")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin none after this time")
    return parser.parse_args(arguments)


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _figures(
    label_sets: list[LabelSet], held_out: LabelSet, name: str, seed: int, options: argparse.Namespace
) -> dict[str, float]:
    """Train one variant and score it."""
    frames = sum(map(len, label_sets))
    chosen = TrainOptions.create(
        **{
            "seed": seed,
            "num_threads": options.threads,
            "frames_per_scan": options.frames // len(label_sets),
            "average_frames": options.frames // 8,
            "epochs": max(1, round(options.frames / frames)),
            **VARIANTS[name],
        }
    )
    began = time.process_time()
    result = train(label_sets, chosen, validation=held_out)
    cpu_s = time.process_time() - began
    reader, _ = from_onnx(result.content)
    thinned = thin_counts(held_out.image, LOW_LIGHT, np.random.default_rng(seed)) / np.float32(LOW_LIGHT)
    dim = evaluate(reader, replace(held_out, image=thinned.astype(np.float32)))
    return {
        "score": result.figures["score"],
        "l1_rad": result.figures["l1_rad"],
        "score_low_light": dim["score"],
        "cpu_s": cpu_s,
        "frame_updates": float(result.frame_updates),
    }


def table_of(lines: Sequence[Mapping[str, Any]]) -> str:
    """Markdown table: mean over the seeds, and half their range."""
    rows = ["| changed | SSIM | SSIM at 1/16 of the light | error in rad | CPU s |", "|---|---|---|---|---|"]
    for name in dict.fromkeys(line["name"] for line in lines):
        cells = []
        for figure in FIGURES:
            values = np.array([line[figure] for line in lines if line["name"] == name])
            digits = 0 if figure == "cpu_s" else 3
            spread = f" ± {np.ptp(values) / 2:.{digits}f}" if len(values) > 1 and digits else ""
            cells.append(f"{values.mean():.{digits}f}{spread}")
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
