"""Train the models of the benches: ``python -m ptycho_bluesky.bench.train_models --out FOLDER``.

All architectures learn from the same simulated frames, with the same recipe, seed and number of frame-updates. A run
that was stopped goes on where it was. With ``--install`` the finished models and ``models.json``, which says how they
were made and what they score on two scans that none has seen, are copied into the package.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ptycho_bluesky._version import __version__
from ptycho_bluesky.bench.corpus import CorpusOptions, SimulatedCorpus
from ptycho_bluesky.bench.engine_models import from_labels, search_int8
from ptycho_bluesky.bench.rows import hardware
from ptycho_bluesky.bench.shipped import MODELS_DIR
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.inference import load_engine
from ptycho_bluesky.inference.cache import EngineCache
from ptycho_bluesky.inference.quantise import MAX_SSIM_LOSS
from ptycho_bluesky.models import ARCHITECTURES
from ptycho_bluesky.models.onnx_file import read_manifest
from ptycho_bluesky.records import LabelSet
from ptycho_bluesky.stitching import weight_from_manifest
from ptycho_bluesky.training.corpus import Corpus
from ptycho_bluesky.training.options import TrainOptions
from ptycho_bluesky.training.trainer import TrainingStoppedError, train

__all__ = ["main", "score_model"]

log = logging.getLogger(__name__)

DEFAULT_ARCHITECTURES = ("ptychonn2", "lean24", "lean16", "lean8")
FRAMES_PER_SCAN = 6000
SCORED_FRAMES = 400
"""Of the held-out scan, for the integer forms; the rest calibrates."""


def score_model(content: bytes, corpus: SimulatedCorpus, labels: LabelSet) -> dict[str, float]:
    """Score of a model's stitched phase against the true object, by single precision.

    Returns
    -------
    dict
        ``ssim``, ``pearson``, and ``constant``, ``blurred`` as `ptycho_bluesky.metrics.mosaic_ssim` gives them.
    """
    engine = load_engine(content, "onnxruntime", num_threads=1)
    chunks = [engine.infer(labels.image[first : first + 32]) for first in range(0, len(labels), 32)]
    weight = weight_from_manifest(engine.manifest, engine.patch_shape)
    found = corpus.score(np.concatenate(chunks), labels, weight)
    return {name: float(getattr(found, name)) for name in ("ssim", "pearson", "constant", "blurred")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, score, install.

    Returns
    -------
    int
        0 when every model is finished, 75 when the time was up first.
    """
    options = _parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    deadline = time.monotonic() + options.seconds
    options.out.mkdir(parents=True, exist_ok=True)
    corpus = SimulatedCorpus(CorpusOptions(num_scans=options.scans, seed=options.corpus_seed))
    store = _render(corpus, options.out / "corpus")
    for name in options.architectures:
        path = options.out / f"{name}.onnx"
        if not path.exists() and not _train(name, store, path, options, deadline):
            log.info("%s is not finished; the same command goes on", name)
            return 75
    scores = _score(corpus, options)
    if options.install:
        _install(scores, corpus, options)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of corpus, checkpoints and models")
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=list(DEFAULT_ARCHITECTURES))
    parser.add_argument("--frames-per-scan", type=int, default=FRAMES_PER_SCAN, help="frame-updates for each scan")
    parser.add_argument("--scans", type=int, default=CorpusOptions.num_scans, help="scans to learn from")
    parser.add_argument("--corpus-seed", type=int, default=CorpusOptions.seed, help="of sample and photons")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time, to go on later")
    parser.add_argument("--install", action="store_true", help="copy the models into the package")
    return parser.parse_args(arguments)


def _render(corpus: SimulatedCorpus, folder: Path) -> Corpus:
    store = Corpus(folder)
    if len(store.runs()) < corpus.options.num_scans:
        log.info("rendering %d scans", corpus.options.num_scans)
        for labels in corpus.training():
            store.add(labels)
    stored = store.read(store.runs()[0]).provenance
    if any(stored.get(key) != value for key, value in corpus.options.as_dict().items()):
        raise InputError(f"corpus {folder}", "it was made with other options", "name an empty folder")
    return store


def _train(name: str, store: Corpus, path: Path, options: argparse.Namespace, deadline: float) -> bool:
    chosen = TrainOptions.create(architecture=name, frames_per_scan=options.frames_per_scan, seed=options.seed)
    last = [0.0]

    def report(done: int, total: int, loss: float) -> None:
        if time.monotonic() - last[0] > 10:
            last[0] = time.monotonic()
            log.info("%s: %d of %d frame-updates, %.4f rad", name, done, total, loss)

    try:
        result = train(
            store,
            chosen,
            progress=report,
            checkpoint_dir=path.with_suffix(".checkpoint"),
            should_stop=lambda: time.monotonic() > deadline,
        )
    except TrainingStoppedError:
        return False
    path.write_bytes(result.content)
    with contextlib.suppress(OSError):  # not empty, or never made
        path.with_suffix(".checkpoint").rmdir()
    return True


def _score(corpus: SimulatedCorpus, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    held_out, letters = corpus.held_out(), corpus.letters()
    found: dict[str, dict[str, Any]] = {}
    for name in options.architectures:
        content = (options.out / f"{name}.onnx").read_bytes()
        manifest = read_manifest(content)
        found[name] = {
            "file": f"{name}.onnx",
            "held_out": score_model(content, corpus, held_out),
            "letters": score_model(content, corpus, letters),
            "frame_updates": manifest["frame_updates"],
            "recipe": manifest["recipe"],
        }
        log.info("%s: %s", name, json.dumps(found[name]["held_out"]))
    return found


def _install(scores: dict[str, dict[str, Any]], corpus: SimulatedCorpus, options: argparse.Namespace) -> None:
    MODELS_DIR.mkdir(exist_ok=True)
    held_out, floor = from_labels(corpus.held_out(), SCORED_FRAMES), None
    for name, entry in scores.items():
        content = (options.out / f"{name}.onnx").read_bytes()
        (MODELS_DIR / f"{name}.onnx").write_bytes(content)
        cache = EngineCache(options.out / "cache")
        found, best = search_int8(content, held_out, floor=floor, num_threads=1, cache=cache, progress=log.info)
        floor = best - MAX_SSIM_LOSS if floor is None else floor
        entry["int8"] = {"accepted": found.accepted, "ssim_loss": found.ssim_loss, "reason": found.reason}
        if found.accepted:
            entry["int8"]["file"] = f"{name}_int8.onnx"
            (MODELS_DIR / f"{name}_int8.onnx").write_bytes(found.content)
    content = {
        "simulated": True,
        "labels": "the true object, at the true positions",
        "command": f"python -m ptycho_bluesky.bench.train_models --out FOLDER --frames-per-scan "
        f"{options.frames_per_scan} --scans {options.scans} --seed {options.seed} --install",
        "corpus": corpus.options.as_dict(),
        "hardware": {key: value for key, value in hardware().items() if key in {"cpu", "vector_flags"}},
        "version": __version__,
        "models": scores,
    }
    (MODELS_DIR / "models.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
