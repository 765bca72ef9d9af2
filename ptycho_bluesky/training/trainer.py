"""The trainer: from a corpus and, where there is one, a parent model to a model file."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ptycho_bluesky._version import __version__
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import crop_centre
from ptycho_bluesky.models import build, network_options
from ptycho_bluesky.models.export import from_onnx, to_onnx
from ptycho_bluesky.models.network import AMPLITUDE, PHASE, Network
from ptycho_bluesky.models.ptychonn import PtychoNN2
from ptycho_bluesky.models.reader import PhaseReader
from ptycho_bluesky.records import LabelSet, ModelRecord, ModelStage
from ptycho_bluesky.training.area_split import split_off_area
from ptycho_bluesky.training.averaging import WeightAverage
from ptycho_bluesky.training.checkpoint import Checkpoint
from ptycho_bluesky.training.corpus import Corpus, TrainingArrays, join_label_sets
from ptycho_bluesky.training.evaluate import evaluate, label_weight, predict
from ptycho_bluesky.training.loader import BatchLoader
from ptycho_bluesky.training.options import TrainOptions
from ptycho_bluesky.training.physics import attach_physics
from ptycho_bluesky.training.recipes import Plan, learning_rate, make_plan, start_preprocessing
from ptycho_bluesky.training.registry import content_id
from ptycho_bluesky.training.symmetry import symmetric_operations
from ptycho_bluesky.trust.light import Light
from ptycho_bluesky.trust.physics import PHYSICS_KEY

__all__ = ["TrainResult", "TrainingStoppedError", "train"]

log = logging.getLogger(__name__)

Progress = Callable[[int, int, float], None]
"""Called with frame-updates done, frame-updates in all, and the running loss in rad."""

MIN_PATCH_WEIGHT = 0.05
"""Relative illumination under which a pixel of a patch does not enter mosaics."""
LOG_STEPS = 20
"""Steps averaged into one point of the loss curve."""


class TrainingStoppedError(RuntimeError):
    """The training was asked to stop; its checkpoint, if it keeps one, lets the next call go on."""


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
        ``frames`` (frame-updates so far), ``loss_rad``, ``learning_rate``.
    frame_updates : int
        Spent by this training, over all its resumptions.
    seconds : float
        Of this call.
    """

    content: bytes
    record: ModelRecord
    figures: Mapping[str, Any]
    curve: Mapping[str, NDArray[Any]]
    frame_updates: int
    seconds: float


@dataclass(frozen=True)
class _Start:
    """Where a training starts from."""

    reader: PhaseReader
    parent_id: str
    trained_runs: tuple[str, ...]
    frame_updates: int


def train(
    corpus: Corpus | TrainingArrays | Sequence[LabelSet],
    options: TrainOptions | None = None,
    *,
    parent: bytes | None = None,
    validation: LabelSet | None = None,
    progress: Progress | None = None,
    checkpoint_dir: Path | str | None = None,
    should_stop: Callable[[], bool] | None = None,
    regime: Mapping[str, Any] | None = None,
    reference: LabelSet | None = None,
) -> TrainResult:
    """Train a network on a cumulative corpus, starting from a parent.

    Parameters
    ----------
    corpus : Corpus, TrainingArrays or sequence of LabelSet
        Every run to train on, those that the parent has seen included: they are rehearsed.
    options : TrainOptions
    parent : bytes, optional
        Model file to start from; its manifest says which runs are not new. The budget is
        ``frames_per_scan`` for each new run, and for one where none is new.
    validation : LabelSet, optional
        Labels of a run or an area that is in no training set; their figures go into the record. The published recipe
        keeps the weights that are best on them; without any it holds out a tenth of the newest run, by area.
    progress : callable, optional
        See `Progress`.
    checkpoint_dir : path, optional
        Keep a checkpoint there; a training of the same corpus, options and parent goes on from it, and gives the same
        weights as one that was never stopped.
    should_stop : callable, optional
        Asked between steps; when true, the state is saved and `TrainingStoppedError` raised.
    regime : mapping, optional
        Regime that the model is for, for its record.
    reference : LabelSet, optional
        Labels that no training has seen, of the newest run's probe and light: what is usual of the model's answers is
        measured on them (`training.physics`); by default on ``validation``, else on the newest frames of the corpus.

    Returns
    -------
    TrainResult

    Raises
    ------
    InputError
        The corpus is empty or mixed, the parent is of another geometry or recipe, or the loss became NaN.
    TrainingStoppedError
        `should_stop` asked for it.
    """
    began = time.monotonic()
    options = options or TrainOptions()
    arrays = _arrays(corpus)
    held_out = None
    if options.recipe == "published":
        arrays, held_out = _hold_out(arrays) if validation is None else (arrays, join_label_sets([validation]))
    torch.set_num_threads(options.num_threads)
    start = _start(options, arrays, parent)
    new_runs = tuple(uid for uid in arrays.run_uids if uid not in start.trained_runs)
    frame_shape = (int(arrays.image.shape[1]), int(arrays.image.shape[2]))
    weight = crop_centre(label_weight(arrays), start.reader.network.patch_shape(frame_shape))
    plan = make_plan(options, len(arrays), len(new_runs), weight, start.frame_updates)
    operations = _operations(options, arrays)
    log.info(
        "training on %d frames of %d runs (%d new): %d steps of %d, %d symmetry operations",
        *(len(arrays), len(arrays.run_uids), len(new_runs), plan.num_steps, plan.batch_size, len(operations)),
    )
    loader = BatchLoader(
        arrays,
        plan.batch_size,
        options.seed,
        new_runs=new_runs,
        new_fraction=options.new_fraction,
        operations=operations,
        with_amplitude=start.reader.network.reads_amplitude,
    )
    checkpoint = None
    if checkpoint_dir is not None:
        checkpoint = Checkpoint(checkpoint_dir, _fingerprint(arrays, options, start.parent_id))
    training = _Training(plan, options, start.reader, loader, checkpoint, held_out)
    training.run(progress, should_stop)

    runs = (*(uid for uid in start.trained_runs if uid not in arrays.run_uids), *arrays.run_uids)
    spent = plan.num_steps * plan.batch_size
    manifest = {
        "architecture": training.network.architecture,
        "parent_id": start.parent_id,
        "training_runs": list(runs),
        "frame_updates": start.frame_updates + spent,
        "recipe": options.model_dump(mode="json"),
        "symmetry": list(operations),
        "pixel_size_m": None if np.isnan(arrays.pixel_size_m) else arrays.pixel_size_m,
        "geometry": arrays.geometry.as_dict() if arrays.geometry else None,
        "mean_counts": float(np.mean(arrays.image, dtype=np.float64)),
        "patch_weight": _patch_weight(weight),
    }
    attach_physics(manifest, training.reader, arrays, Light.from_dict(arrays.light), reference or validation)
    content = to_onnx(training.network, frame_shape, 1.0, start.reader.preprocessing, manifest)
    figures = evaluate(content, validation) if validation is not None else {}
    if checkpoint is not None:
        checkpoint.remove()
    record = _record(content, manifest, arrays, weight.shape, figures, regime)
    return TrainResult(content, record, figures, training.curve(), spent, time.monotonic() - began)


def _arrays(corpus: Corpus | TrainingArrays | Sequence[LabelSet]) -> TrainingArrays:
    if isinstance(corpus, Corpus):
        return corpus.load()
    return corpus if isinstance(corpus, TrainingArrays) else join_label_sets(corpus)


def _hold_out(arrays: TrainingArrays) -> tuple[TrainingArrays, TrainingArrays]:
    """Hold a tenth of the newest run out, by area: neighbours overlap, and frame by frame a split would flatter."""
    newest = np.flatnonzero(arrays.run == len(arrays.run_uids) - 1)
    pixel = 1.0 if np.isnan(arrays.pixel_size_m) else arrays.pixel_size_m
    split = split_off_area(arrays.position_m[newest] / pixel, arrays.phase_rad.shape[-1] / 2)
    dropped = newest[~split.train]
    return arrays.select(np.delete(np.arange(len(arrays)), dropped)), arrays.select(newest[split.held_out])


def _start(options: TrainOptions, arrays: TrainingArrays, parent: bytes | None) -> _Start:
    preprocessing = start_preprocessing(options.recipe, arrays)
    if parent is None:
        torch.manual_seed(options.seed)
        mean_frame = arrays.image.mean(axis=0, dtype=np.float64)
        network = build(options.architecture, **network_options(options.architecture, mean_frame))
        if options.recipe == "published" and options.architecture == "ptychonn2":
            network = PtychoNN2("torch")
        return _Start(PhaseReader(network, preprocessing), "", (), 0)
    reader, manifest = from_onnx(parent)
    if reader.network.architecture != options.architecture:
        raise InputError(
            f"parent model of architecture {reader.network.architecture}",
            f"{options.architecture} is asked for",
            "start from a model of this architecture, or from none",
        )
    if tuple(manifest["image_shape"]) != arrays.image.shape[1:]:
        raise InputError(
            f"parent model of frames {tuple(manifest['image_shape'])}",
            f"the corpus has frames {arrays.image.shape[1:]}",
            "start from a model of this geometry, or from none",
        )
    stated = manifest.get("pixel_size_m")
    if stated and not np.isnan(arrays.pixel_size_m) and not np.isclose(stated, arrays.pixel_size_m, rtol=1e-3):
        raise InputError(
            f"parent model of {stated:.4g} m a pixel",
            f"the corpus is at {arrays.pixel_size_m:.4g} m",
            "start from a model of this geometry, or from none",
        )
    if reader.preprocessing.sqrt != preprocessing.sqrt:
        raise InputError(
            f"parent model with preprocessing {reader.preprocessing.as_dict()}",
            f"recipe {options.recipe!r} feeds {'the root of the counts' if preprocessing.sqrt else 'raw counts'}",
            "continue with the recipe that the parent was trained with",
        )
    runs = tuple(manifest.get("training_runs", ()))
    return _Start(reader, content_id(parent), runs, int(manifest.get("frame_updates", 0)))


def _operations(options: TrainOptions, arrays: TrainingArrays) -> tuple[str, ...]:
    if options.recipe == "published" or options.augment == "off":
        return ("identity",)
    tolerance = 1.0 if options.augment == "on" else options.symmetry_tolerance
    return symmetric_operations(arrays.probe, tolerance)


def _fingerprint(arrays: TrainingArrays, options: TrainOptions, parent_id: str) -> str:
    frames = np.ascontiguousarray(arrays.image[:: max(1, len(arrays) // 50)])
    content = [arrays.run_uids, len(arrays), options.model_dump(mode="json"), parent_id, __version__]
    return hashlib.sha256(json.dumps(content).encode() + frames.tobytes()).hexdigest()


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


def _has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 natively; emulated it is slower than float32."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


class _Training:
    """State of a running training."""

    def __init__(
        self,
        plan: Plan,
        options: TrainOptions,
        reader: PhaseReader,
        loader: BatchLoader,
        checkpoint: Checkpoint | None,
        held_out: TrainingArrays | None,
    ) -> None:
        self.plan, self.options, self.loader, self.checkpoint = plan, options, loader, checkpoint
        self.held_out = held_out
        name = options.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(name)
        native = self.device.type == "cuda" or _has_bfloat16()
        self.bfloat16 = options.precision == "bfloat16" or (
            options.precision == "auto" and options.recipe == "default" and native
        )
        self.reader = reader.to(self.device)
        # channels last: 1.5 times as fast as the default layout on CPUs with AVX-512
        self.network: Network = reader.network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.optimiser = torch.optim.Adam(self.network.parameters(), plan.peak_rate, betas=plan.betas, fused=True)
        self.weight = torch.from_numpy(plan.loss_weight).to(self.device)
        self.average = WeightAverage(self.network, plan.average_steps) if plan.average_steps else None
        self.step = 0
        self.points: list[tuple[int, float, float]] = []
        self.running: list[float] = []
        self.best: tuple[float, dict[str, Tensor]] | None = None

    def run(self, progress: Progress | None, should_stop: Callable[[], bool] | None) -> None:
        """Train to the end of the plan."""
        self._resume()
        self.network.train()
        saved = time.monotonic()
        while self.step < self.plan.num_steps:
            if should_stop is not None and should_stop():
                self._save()
                raise TrainingStoppedError(f"training stopped after {self.step} of {self.plan.num_steps} steps")
            self._take_step()
            if self.step % self.plan.steps_per_epoch == 0 and self.plan.keep_best:
                self._keep_if_best()
            if self.step % LOG_STEPS == 0 or self.step == self.plan.num_steps:
                self._log_point(progress)
            if time.monotonic() - saved > self.options.checkpoint_period_s:
                self._save()
                saved = time.monotonic()
        if self.average is not None:
            self.average.swap()
        if self.best is not None:
            self.network.load_state_dict(self.best[1])
        self.network.eval()

    def curve(self) -> dict[str, NDArray[Any]]:
        """Loss and learning rate against frame-updates."""
        points = np.array(self.points, dtype=np.float64).reshape(-1, 3)
        return {"frames": points[:, 0].astype(np.int64), "loss_rad": points[:, 1], "learning_rate": points[:, 2]}

    def _take_step(self) -> None:
        rate = learning_rate(self.plan, self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        counts, labels = (torch.from_numpy(array).to(self.device) for array in self.loader.batch(self.step))
        prepared = self.reader.prepare(counts).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            values = self.network.values(prepared)
        loss = self._loss(values, crop_centre(labels, self.plan.loss_weight.shape))
        self.optimiser.zero_grad()
        loss.backward()
        if math.isfinite(self.plan.clip_norm):
            nn.utils.clip_grad_norm_(self.network.parameters(), self.plan.clip_norm)
        self.optimiser.step()
        self.running.append(float(loss.detach()))
        self.step += 1
        if self.average is not None:
            self.average.update(self.step)

    def _loss(self, values: Mapping[str, Tensor], labels: Tensor) -> Tensor:
        """Weighted L1 of the phase in rad, and of the amplitude where the network reads it."""
        loss = ((values[PHASE].float() - labels[:, :1]).abs() * self.weight).mean()
        if self.network.reads_amplitude:
            loss = loss + ((values[AMPLITUDE].float() - labels[:, 1:]).abs() * self.weight).mean()
        return loss

    def _log_point(self, progress: Progress | None) -> None:
        loss = float(np.mean(self.running))
        self.running.clear()
        if not np.isfinite(loss):
            raise InputError(
                f"training loss {loss} at step {self.step}",
                "frames and labels must be finite and the learning rate moderate",
                "check the labels, lower learning_rate",
            )
        frames = self.step * self.plan.batch_size
        self.points.append((frames, loss, learning_rate(self.plan, self.step - 1)))
        if progress is not None:
            progress(frames, self.plan.num_steps * self.plan.batch_size, loss)

    def _keep_if_best(self) -> None:
        if self.held_out is None:
            return
        guess = predict(self.reader, self.held_out.image)
        truth = crop_centre(self.held_out.phase_rad, self.plan.loss_weight.shape)
        error = float((np.abs(guess - truth) * self.plan.loss_weight).mean())
        self.network.train()
        if self.best is None or error < self.best[0]:
            self.best = (error, {key: value.detach().clone() for key, value in self.network.state_dict().items()})

    def _save(self) -> None:
        if self.checkpoint is not None:
            self.checkpoint.save(
                {
                    "step": self.step,
                    "network": self.network.state_dict(),
                    "optimiser": self.optimiser.state_dict(),
                    "points": self.points,
                    "running": self.running,
                    "best": self.best,
                    "average": None if self.average is None else self.average.mean,
                }
            )

    def _resume(self) -> None:
        state = self.checkpoint.load() if self.checkpoint is not None else None
        if state is None:
            return
        self.step, self.points, self.running = state["step"], state["points"], state["running"]
        self.best = state["best"]
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.average is not None:
            self.average.load(state["average"])
        log.info("training goes on from step %d of %d", self.step, self.plan.num_steps)
