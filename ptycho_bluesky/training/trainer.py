"""The trainer: from a corpus and, where there is one, a parent model to a model file."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ptycho_bluesky._version import __version__
from ptycho_bluesky.geometry import crop_centre
from ptycho_bluesky.models.export import read_manifest, to_onnx
from ptycho_bluesky.reconstruction.prepare import torch_device
from ptycho_bluesky.records import LabelSet, ModelRecord, ModelStage
from ptycho_bluesky.training.checkpoint import Checkpoint
from ptycho_bluesky.training.corpus import Corpus, TrainingArrays
from ptycho_bluesky.training.distributed import Ranks
from ptycho_bluesky.training.evaluate import evaluate, label_weight
from ptycho_bluesky.training.loop import Progress, TrainingLoop, TrainingStoppedError
from ptycho_bluesky.training.options import TrainOptions
from ptycho_bluesky.training.physics import attach_physics
from ptycho_bluesky.training.recipes import make_plan
from ptycho_bluesky.training.registry import content_id
from ptycho_bluesky.training.start import refuse_other_geometry, start_from
from ptycho_bluesky.training.symmetry import symmetric_operations
from ptycho_bluesky.training.training_data import TrainingData, gather
from ptycho_bluesky.trust.light import Light
from ptycho_bluesky.trust.physics import PHYSICS_KEY

__all__ = ["Prepared", "Progress", "TrainResult", "TrainingStoppedError", "prepare", "train"]

log = logging.getLogger(__name__)

MIN_PATCH_WEIGHT = 0.05
"""Relative illumination under which a pixel of a patch does not enter mosaics."""
FINGERPRINT_FRAMES = 50
"""About how many frames, evenly taken, tell one training from another."""


@dataclass(frozen=True)
class TrainResult:
    """What a training gave.

    Attributes
    ----------
    content : bytes
        The model file.
    record : ModelRecord
        Its record, stage candidate; ``validation`` holds ``figures``.
    figures : dict
        From `training.evaluate.evaluate` on the validation labels; empty without any.
    curve : dict of str to ndarray
        The columns of `ptycho_bluesky.training.curves.COLUMNS`.
    frame_updates : int
        Spent by this training, over all its resumptions.
    seconds : float
        Of this call.
    weights : dict of str to ndarray
        Of the network, in the precision of the training; the model file has them in single precision.
    """

    content: bytes
    record: ModelRecord
    figures: Mapping[str, Any]
    curve: Mapping[str, NDArray[Any]]
    frame_updates: int
    seconds: float
    weights: Mapping[str, NDArray[Any]]


def train(
    corpus: Corpus | TrainingArrays | Sequence[LabelSet],
    options: TrainOptions | None = None,
    *,
    runs: Sequence[str] | None = None,
    parent: bytes | None = None,
    validation: LabelSet | None = None,
    progress: Progress | None = None,
    checkpoint_dir: Path | str | None = None,
    log_dir: Path | str | None = None,
    should_stop: Callable[[], bool] | None = None,
    regime: Mapping[str, Any] | None = None,
    reference: LabelSet | None = None,
    ranks: Ranks | None = None,
    write: Callable[[TrainResult], None] | None = None,
) -> TrainResult:
    """Train a network on a cumulative corpus, starting from a parent.

    Parameters
    ----------
    corpus : Corpus, TrainingArrays or sequence of LabelSet
        Every run to train on, those that the parent has seen included: they are rehearsed, as far as
        ``options.rehearsal_frames`` allows.
    options : TrainOptions
        With ``buffer_frames``, a `Corpus` is read from disk while it is trained on.
    runs : sequence of str, optional
        Of a `Corpus` only these, oldest first.
    parent : bytes, optional
        Model file to start from; its manifest says which runs are not new. The budget is
        ``frames_per_scan`` for each new run, and for one where none is new.
    validation : LabelSet, optional
        Labels of a run or an area that is in no training set, of the corpus' geometry; their figures go into the
        record. The published recipe keeps the weights that are best on them; without any it holds out a tenth of the
        newest run, by area.
    progress : callable, optional
        See `Progress`.
    checkpoint_dir : path, optional
        Keep a checkpoint there; a training of the same corpus, options and parent goes on from it, and gives the same
        weights as one that was never stopped.
    log_dir : path, optional
        Folder of the curve: ``curve.csv``, and event files where TensorBoard is installed. One that holds the curve
        of another training is refused.
    should_stop : callable, optional
        Asked between steps; when true, the state is saved and `TrainingStoppedError` raised.
    regime : mapping, optional
        Regime that the model is for, for its record.
    reference : LabelSet, optional
        Labels that no training has seen, of the newest run's probe and light: what is usual of the model's answers is
        measured on them (`training.physics`); by default on ``validation``, else on the newest frames of the corpus.
    ranks : Ranks, optional
        The processes that train together; each calls this function with the same arguments and gets the same result.
        Files are written by the first.
    write : callable, optional
        Called with the result, by the first process, before the checkpoint is removed: where the model cannot be
        written, the next call has nothing to train and writes it.

    Returns
    -------
    TrainResult

    Raises
    ------
    InputError
        The corpus is empty or mixed, parent or validation are of another geometry, the parent is of another recipe,
        the device is not there, or the loss became NaN.
    TrainingStoppedError
        `should_stop` asked for it.
    """
    began = time.monotonic()
    options, ranks = options or TrainOptions(), ranks or Ranks()
    prepared = prepare(
        corpus,
        options,
        runs=runs,
        parent=parent,
        validation=validation,
        checkpoint_dir=checkpoint_dir,
        log_dir=log_dir,
        ranks=ranks,
    )
    loop = prepared.loop
    with closing(loop.source):
        loop.run(progress, should_stop)
    weights = {name: value.detach().cpu().numpy().copy() for name, value in loop.network.state_dict().items()}
    loop.reader.float()
    arrays, manifest = prepared.data.arrays, prepared.manifest
    attach_physics(manifest, loop.reader, arrays, Light.from_dict(arrays.light), reference or validation)
    frame_shape = (int(arrays.image.shape[1]), int(arrays.image.shape[2]))
    content = to_onnx(loop.network, frame_shape, 1.0, loop.reader.preprocessing, manifest)
    figures = evaluate(content, validation) if validation is not None else {}
    record = _record(content, manifest, arrays, loop.plan.loss_weight.shape, figures, regime)
    spent = loop.plan.num_steps * loop.plan.batch_size
    result = TrainResult(content, record, figures, loop.curve(), spent, time.monotonic() - began, weights)
    if ranks.first:
        if write is not None:
            write(result)
        if loop.checkpoint is not None:
            loop.checkpoint.remove()
    return result


@dataclass(frozen=True)
class Prepared:
    """A training that has not begun.

    Attributes
    ----------
    loop : TrainingLoop
    data : TrainingData
    manifest : dict
        Of the model that it will give, without physics.
    """

    loop: TrainingLoop
    data: TrainingData
    manifest: dict[str, Any]


def prepare(
    corpus: Corpus | TrainingArrays | Sequence[LabelSet],
    options: TrainOptions,
    *,
    runs: Sequence[str] | None = None,
    parent: bytes | None = None,
    validation: LabelSet | None = None,
    checkpoint_dir: Path | str | None = None,
    log_dir: Path | str | None = None,
    ranks: Ranks | None = None,
) -> Prepared:
    """Make a training ready, step by step to be taken; parameters and errors as of `train`."""
    ranks = ranks or Ranks()
    torch.set_num_threads(options.num_threads)
    torch_device(options.device)  # one that is not there is told before a large corpus is read
    trained_runs = _trained_runs(parent)
    data = gather(corpus, options, trained_runs, runs, validation)
    arrays = data.arrays
    if validation is not None:
        refuse_other_geometry(validation, arrays)
    start = start_from(options, arrays, parent)
    new_runs = tuple(uid for uid in arrays.run_uids if uid not in trained_runs)
    frame_shape = (int(arrays.image.shape[1]), int(arrays.image.shape[2]))
    weight = crop_centre(label_weight(arrays), start.reader.network.patch_shape(frame_shape))
    plan = make_plan(options, data.num_frames, len(new_runs), weight, start.frame_updates)
    operations = _operations(options, arrays)
    log.info(
        "training on %d frames of %d runs (%d new): %d steps of %d, %d symmetry operations",
        *(data.num_frames, len(arrays.run_uids), len(new_runs), plan.num_steps, plan.batch_size, len(operations)),
    )
    with_amplitude = start.reader.network.reads_amplitude
    source = data.source(plan, options, new_runs, operations, with_amplitude=with_amplitude, ranks=ranks)
    checkpoint = None
    if checkpoint_dir is not None:
        checkpoint = Checkpoint(checkpoint_dir, _fingerprint(data, options, start.parent_id))
    loop = TrainingLoop(
        plan,
        options,
        start.reader,
        source,
        held_out=data.held_out,
        checkpoint=checkpoint,
        log_dir=log_dir,
        ranks=ranks,
    )
    manifest = {
        "architecture": loop.network.architecture,
        "parent_id": start.parent_id,
        "training_runs": [*(uid for uid in trained_runs if uid not in arrays.run_uids), *arrays.run_uids],
        "frame_updates": start.frame_updates + plan.num_steps * plan.batch_size,
        "recipe": options.model_dump(mode="json"),
        "symmetry": list(operations),
        "pixel_size_m": None if np.isnan(arrays.pixel_size_m) else arrays.pixel_size_m,
        "geometry": arrays.geometry.as_dict() if arrays.geometry else None,
        "mean_counts": float(np.mean(arrays.image, dtype=np.float64)),
        "patch_weight": _patch_weight(weight),
    }
    return Prepared(loop, data, manifest)


def _trained_runs(parent: bytes | None) -> tuple[str, ...]:
    return () if parent is None else tuple(read_manifest(parent).get("training_runs", ()))


def _operations(options: TrainOptions, arrays: TrainingArrays) -> tuple[str, ...]:
    if options.recipe == "published" or options.augment == "off":
        return ("identity",)
    tolerance = 1.0 if options.augment == "on" else options.symmetry_tolerance
    return symmetric_operations(arrays.probe, tolerance)


def _fingerprint(data: TrainingData, options: TrainOptions, parent_id: str) -> str:
    """What the weights follow from: runs, options, parent, and of frames and labels a part."""
    content = [data.arrays.run_uids, data.num_frames, options.model_dump(mode="json"), parent_id, __version__]
    digest = hashlib.sha256(json.dumps(content).encode())
    # what is held out chooses the weights, where the recipe has it so
    for arrays in (data.arrays, *([] if data.held_out is None else [data.held_out])):
        rows = slice(None, None, max(1, len(arrays) // FINGERPRINT_FRAMES))
        for part in (arrays.image[rows], arrays.phase_rad[rows], arrays.amplitude[rows], arrays.probe):
            digest.update(f"{part.dtype.str}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


def _patch_weight(weight: NDArray[np.float32]) -> list[list[float]]:
    kept = np.where(weight >= MIN_PATCH_WEIGHT, weight, 0.0)
    return np.round(kept.astype(np.float64), 3).tolist()


def _record(
    content: bytes,
    manifest: Mapping[str, Any],
    arrays: TrainingArrays,
    patch_shape: tuple[int, ...],
    figures: Mapping[str, Any],
    regime: Mapping[str, Any] | None,
) -> ModelRecord:
    return ModelRecord(
        model_id=content_id(content),
        parent_id=manifest["parent_id"],
        stage=ModelStage.CANDIDATE,
        architecture=manifest["architecture"],
        image_shape=(int(arrays.image.shape[1]), int(arrays.image.shape[2])),
        patch_shape=(patch_shape[0], patch_shape[1]),
        pixel_size_m=float(arrays.pixel_size_m),
        count_scale=1.0,
        training_runs=tuple(manifest["training_runs"]),
        recipe=manifest["recipe"],
        validation={**figures, PHYSICS_KEY: dict(manifest.get(PHYSICS_KEY, {}).get("figures", {}))},
        geometry=manifest["geometry"],
        regime=dict(regime or {}),
        created_s=time.time(),
        provenance={"ptycho_bluesky": __version__, "torch": torch.__version__, "numpy": np.__version__},
    )
