"""What the worker computes for a run, stage by stage: plain functions of plain values, with files as products.

Each stage may be run again after a crash: it reads what the stages before it left, writes its product whole or not at
all, and returns a small JSON-able result. They know neither Tiled nor bluesky, so they run wherever the files are.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import h5py
import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.config import LabelSettings
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.io.products import read_reconstruction, write_reconstruction
from ptycho_bluesky.records import LabelSet
from ptycho_bluesky.workflow.client import jsonable
from ptycho_bluesky.workflow.files import write_bytes, write_json
from ptycho_bluesky.workflow.measurement_file import read_measurement_file
from ptycho_bluesky.workflow.run_state import RunFolder

if TYPE_CHECKING:
    from ptycho_bluesky.reconstruction import EngineOptions
    from ptycho_bluesky.training.corpus import Corpus, TrainingArrays
    from ptycho_bluesky.training.gate import Compared
    from ptycho_bluesky.training.trainer import TrainResult

__all__ = ["Job", "LearningStages", "Stages"]

logger = logging.getLogger(__name__)

REPORT_PERIOD_S = 0.5
MAX_VALIDATION_FRAMES = 1000
REFERENCE_SETS = 3
"""Held-out areas, of this run and of the last ones before, whose mean score a later run is measured against."""
MAX_OLD_FRAMES = 300
"""Frames of each older label set that are compared for what was forgotten."""


@dataclass(frozen=True)
class Job:
    """What every stage of a run needs, in plain values.

    Attributes
    ----------
    folder : str
        Folder of the run.
    corpus_dir : str
        Folder of the label sets that are trained on.
    reconstruct, train : dict
        Sections of the settings.
    stop_file : str
        A training that sees this file keeps a checkpoint and ends.
    gate : dict
        Thresholds of the gate; see `ptycho_bluesky.training.gate.Thresholds`.
    one_budget : bool
        A training costs the budget of one scan, however many are new to the parent.
    look_fraction : float
        Part of a run, about its middle, that a glance reconstructs.
    replaced : str, optional
        File of the model that a candidate would replace, where another one serves: the gate tests against both.
    """

    folder: str
    corpus_dir: str
    reconstruct: Mapping[str, Any]
    train: Mapping[str, Any]
    stop_file: str
    gate: Mapping[str, float] = field(default_factory=dict)
    one_budget: bool = False
    look_fraction: float = 1.0
    replaced: str | None = None

    @property
    def files(self) -> RunFolder:
        """Files of the run."""
        return RunFolder(Path(self.folder))

    @property
    def num_threads(self) -> int:
        """Threads that a stage may use."""
        return int(self.train.get("num_threads", 1))


class Stages(Protocol):
    """The stages that a worker submits; others than `LearningStages` serve tests and other techniques."""

    def reconstruct(self, job: Job) -> dict[str, Any]:
        """Measurement to reconstruction."""
        ...

    def label(self, job: Job, purpose: str, reserved: bool) -> dict[str, Any]:
        """Reconstruction to labels."""
        ...

    def validate(self, job: Job, model: str | None) -> dict[str, Any]:
        """Figures of the serving model on this run."""
        ...

    def glance(self, job: Job, model: str) -> dict[str, Any]:
        """Figures of the serving model on the middle of this run."""
        ...

    def train(self, job: Job, runs: Sequence[str], parent: str | None, regime: Mapping[str, Any]) -> dict[str, Any]:
        """Corpus and parent to a candidate."""
        ...

    def score(self, job: Job, model: str) -> dict[str, Any]:
        """Score of another model on the labels of this run."""
        ...

    def gate(
        self, job: Job, reserved: str | None, serving: str | None, older: Mapping[str, str], foreign: Mapping[str, str]
    ) -> dict[str, Any]:
        """Candidate against the serving model, and the one that it would replace."""
        ...


class _Reporter:
    """Writes progress a few times a second."""

    def __init__(self, files: RunFolder, stage: str, value_format: str) -> None:
        self._files, self._stage, self._format, self._next_s = files, stage, value_format, 0.0

    def __call__(self, done: int, total: int, value: float) -> None:
        if time.monotonic() >= self._next_s:
            self._files.report(self._stage, done / max(total, 1), self._format.format(value))
            self._next_s = time.monotonic() + REPORT_PERIOD_S


class LearningStages:
    """The stages of continual learning; without state, so that it travels to any process."""

    def reconstruct(self, job: Job) -> dict[str, Any]:
        """Reconstruct the measurement.

        Raises
        ------
        InputError
            The measurement cannot be reconstructed.
        """
        from ptycho_bluesky.reconstruction import reconstruct
        from ptycho_bluesky.reconstruction.evidence import gather_evidence

        _set_threads(job.num_threads)
        options = _engine_options(job)
        measurement = read_measurement_file(job.files.measurement)
        result = reconstruct(measurement, options, progress=_Reporter(job.files, "reconstruct", "error {:.4f}"))
        reporter = _Reporter(job.files, "half-scans", "error {:.4f}")
        evidence = gather_evidence(measurement, result, options, _label_limits(job).half_passes, progress=reporter)
        result = replace(result, provenance={**result.provenance, **evidence})
        write_reconstruction(job.files.reconstruction, result)
        return {
            "figures": {
                "epie_error_first": float(result.error[0]),
                "epie_error_last": float(result.error[-1]),
                "epie_iterations": len(result.error),
                "frames": len(measurement),
            }
        }

    def label(self, job: Job, purpose: str, reserved: bool) -> dict[str, Any]:
        """Cut labels, check them, and add those of training runs to the corpus.

        Parameters
        ----------
        job : Job
        purpose : str
            Only labels of ``train`` runs enter the corpus.
        reserved : bool
            Whether a reserved run is there to validate on; else an area of this run is kept out of the corpus for it.
        """
        from ptycho_bluesky.reconstruction.evidence import stored_evidence
        from ptycho_bluesky.training.corpus import Corpus, write_label_set
        from ptycho_bluesky.training.label_check import check_labels
        from ptycho_bluesky.training.labels import make_labels
        from ptycho_bluesky.workflow.validation import split_labels

        _set_threads(job.num_threads)
        measurement = read_measurement_file(job.files.measurement)
        reconstruction = read_reconstruction(job.files.reconstruction)
        shape = np.shape(measurement.image)
        labels = make_labels(reconstruction, measurement, (int(shape[1]), int(shape[2])))
        # By frames that the reconstruction never saw, half-scans and pixel: a bad one must not teach.
        check = check_labels(labels, reconstruction, measurement, stored_evidence(reconstruction), _label_limits(job))
        labels = replace(labels, provenance={**labels.provenance, "check": check.as_dict()})
        result: dict[str, Any] = {
            "accepted": bool(check.accepted),
            "reason": check.reason,
            "figures": {f"label_{name}": value for name, value in check.figures.items()} | {"labels": len(labels)},
        }
        write_label_set(job.files.labels, labels)
        if not check.accepted or purpose != "train":
            return result
        train, held_out = labels, None
        if not reserved:
            parts = split_labels(labels)
            if parts is not None:
                train, held_out = parts
                write_label_set(job.files.held_out, held_out)
        verdict = {"accepted": True, "reason": check.reason, "figures": dict(check.figures)}
        Corpus(job.corpus_dir).add(train, acceptance=verdict)
        result["trained_frames"] = len(train)
        result["held_out_frames"] = 0 if held_out is None else len(held_out)
        return result

    def validate(self, job: Job, model: str | None) -> dict[str, Any]:
        """Compare the serving model's image of this run with the reconstruction, before the run is learned from."""
        from ptycho_bluesky.workflow.validation import live_figures

        _set_threads(job.num_threads)
        measurement = read_measurement_file(job.files.measurement)
        reconstruction = read_reconstruction(job.files.reconstruction)
        content = None if model is None else Path(model).read_bytes()
        figures = live_figures(measurement, reconstruction, content, job.num_threads)
        return {"figures": figures | {"score_serving": _score(job, content)}}

    def glance(self, job: Job, model: str) -> dict[str, Any]:
        """Reconstruct the middle of the run only and compare the serving model with it; nothing of it is kept."""
        from ptycho_bluesky.workflow.glance import glance

        _set_threads(job.num_threads)
        return glance(
            read_measurement_file(job.files.measurement),
            _engine_options(job),
            Path(model).read_bytes(),
            job.look_fraction,
            _Reporter(job.files, "glance", "error {:.4f}"),
        )

    def score(self, job: Job, model: str) -> dict[str, Any]:
        """Score of a model on the labels of this run, by the figure that it had at its promotion."""
        _set_threads(job.num_threads)
        return {"score": _score(job, Path(model).read_bytes())}

    def corpus(self, job: Job, runs: Sequence[str]) -> Corpus | TrainingArrays:
        """What is trained on: a corpus, of which the training reads these runs, or what was made of them in memory."""
        from ptycho_bluesky.training.corpus import Corpus

        return Corpus(job.corpus_dir)

    def train(self, job: Job, runs: Sequence[str], parent: str | None, regime: Mapping[str, Any]) -> dict[str, Any]:
        """Train a candidate on the corpus, from the parent where there is one.

        Of old runs as many frames are read as ``train.rehearsal_frames`` allows; with ``train.buffer_frames`` the
        corpus is read from disk while it is trained on.

        Raises
        ------
        TrainingStoppedError
            `Job.stop_file` appeared, or the run was cancelled; the next call goes on from the checkpoint.
        """
        from ptycho_bluesky.training.corpus import Corpus
        from ptycho_bluesky.training.options import TrainOptions
        from ptycho_bluesky.training.trainer import train

        content = _parent(parent, str(job.train.get("architecture", "")))
        options = TrainOptions.create(**job.train)
        if job.one_budget:
            new = set(runs) - set(_trained_runs(content))
            budget = max(1, round(options.frames_per_scan / max(1, len(new))))
            options = TrainOptions.create(**{**job.train, "frames_per_scan": budget})
        stop_files = (Path(job.stop_file), job.files.cancel)
        corpus = self.corpus(job, runs)
        if isinstance(corpus, Corpus):
            corpus.set_regime(runs, jsonable(regime))

        def write(result: TrainResult) -> None:
            write_bytes(job.files.model, result.content)
            write_json(job.files.record, jsonable(result.record.as_dict()))

        result = train(
            corpus,
            options,
            runs=list(runs) if isinstance(corpus, Corpus) else None,
            parent=content,
            progress=_Reporter(job.files, "train", "loss {:.3f} rad"),
            checkpoint_dir=job.files.training,
            should_stop=lambda: any(path.exists() for path in stop_files),
            regime=regime,
            reference=_held_out(job),
            write=write,
        )
        loss = result.curve["loss_rad"]
        return {
            "model_id": result.record.model_id,
            "figures": {
                "train_frame_updates": result.frame_updates,
                "train_loss_rad": float(loss[-1]) if len(loss) else None,
                "train_runs": len(runs),
            },
        }

    def gate(
        self, job: Job, reserved: str | None, serving: str | None, older: Mapping[str, str], foreign: Mapping[str, str]
    ) -> dict[str, Any]:
        """Decide on the candidate, on frames that neither it nor the serving model has trained on.

        With `Job.replaced` that model is compared on the same frames.

        Parameters
        ----------
        job : Job
        reserved : str, optional
            Label set of a reserved run; by default the area of this run that was kept out of the corpus.
        serving : str, optional
            Model file of the serving model.
        older, foreign : mapping of str to str
            Older runs of the same regime and of others, with the file of each one's held-out area; "" where there is
            none: then what the corpus holds of the run is read.
        """
        from ptycho_bluesky.training.evaluate import evaluate
        from ptycho_bluesky.training.gate import Thresholds, decide

        _set_threads(job.num_threads)
        labels, source = _validation_labels(job, reserved)
        if labels is None:
            return {"promote": False, "reason": NOTHING_TO_VALIDATE, "gain": 0.0, "figures": {"validation": "none"}}
        ours = job.files.model.read_bytes()
        candidate = evaluate(ours, labels, num_frames=MAX_VALIDATION_FRAMES)
        models = [None if path is None else Path(path).read_bytes() for path in (serving, job.replaced)]
        theirs, replaced = (
            None if model is None else evaluate(model, labels, num_frames=MAX_VALIDATION_FRAMES) for model in models
        )
        old, other_regimes = (
            [] if models == [None, None] else _compare(job, ours, models, sets) for sets in (older, foreign)
        )
        thresholds = Thresholds(**job.gate)
        decision = decide(
            candidate, theirs, replaced=replaced, old=old, other_regimes=other_regimes, thresholds=thresholds
        )
        record = json.loads(job.files.record.read_text())
        # One small area is noisy; the last ones together tell what a later run is measured against.
        recent = [each.candidate for each in old[1 - REFERENCE_SETS :]] if reserved is None else []
        reference = float(np.mean([candidate["score"], *recent]))
        record["validation"] = {
            **record.get("validation", {}),
            **candidate,
            "validation": source,
            "reference": reference,
        }
        write_json(job.files.record, jsonable(record))
        gain = decision.figures["gain"]
        gains = [candidate["score"] - candidate["constant"] if gain is None else gain]
        gains += [-each.loss for each in old[1 - REFERENCE_SETS :]] if reserved is None else []
        gain = float(np.mean(gains))
        figures = {
            "validation": source,
            "candidate_score": candidate["score"],
            "candidate_pearson": candidate["pearson"],
            "candidate_l1_rad": candidate["l1_rad"],
            "constant_score": candidate["constant"],
            "reference_score": reference,
            "gain": gain,
            "serving_score": decision.figures["serving"],
            "replaced_score": decision.figures["replaced"],
            "forgotten": decision.figures["forgotten"],
            "old_scores": decision.figures["old"],
            "other_regimes_scores": decision.figures["other_regimes"],
            "thresholds": dict(job.gate),
        }
        # To the policy a candidate that was rejected has gained nothing, whatever its score.
        counted = gain if decision.promote else min(gain, 0.0)
        return {"promote": decision.promote, "reason": decision.reason, "gain": counted, "figures": figures}


NOTHING_TO_VALIDATE = "nothing to validate it on: record a scan with purpose 'reserved', or wider scans"


def _validation_labels(job: Job, reserved: str | None) -> tuple[LabelSet | None, str]:
    from ptycho_bluesky.training.corpus import read_label_set
    from ptycho_bluesky.workflow.validation import away_from

    if reserved is not None:
        labels = read_label_set(reserved)
        kept = away_from(labels, _trained_positions(job.corpus_dir))
        if kept is not None:
            return kept, f"reserved run {labels.run_uid}"
        logger.warning("the reserved run %s overlaps what was trained on", labels.run_uid)
    held_out = _held_out(job)
    return (None, "") if held_out is None else (held_out, "area kept out of this run")


def _compare(job: Job, candidate: bytes, others: Sequence[bytes | None], sets: Mapping[str, str]) -> list[Compared]:
    """Candidate, serving and replaced model on older label sets, those that can be read and are of the same shape."""
    from ptycho_bluesky.training.corpus import Corpus, read_label_set
    from ptycho_bluesky.training.evaluate import evaluate
    from ptycho_bluesky.training.gate import Compared

    found = []
    for uid, path in sets.items():
        try:
            labels = read_label_set(path) if path else Corpus(job.corpus_dir).read(uid)
            ours, theirs, replaced = (
                None if model is None else float(evaluate(model, labels, num_frames=MAX_OLD_FRAMES)["score"])
                for model in (candidate, *others)
            )
        except InputError as error:
            logger.warning("labels of run %s are not compared: %s", uid, error)
            continue
        found.append(Compared(uid, _number(ours), _number(theirs), replaced))
    return found


def _number(score: float | None) -> float:
    return math.nan if score is None else score


def _score(job: Job, model: bytes | None) -> float | None:
    """Score of a model on the labels of this run, by the figure that it had at its promotion.

    Where that is measured on an area kept out of a run, areas of this run of the same shape and size are taken, cut off
    in eight directions: a small area at the edge of a scan scores otherwise than the whole, and one alone is noisy.
    """
    if model is None:
        return None
    from ptycho_bluesky.training.corpus import read_label_set
    from ptycho_bluesky.training.evaluate import evaluate
    from ptycho_bluesky.workflow.validation import score_of_areas

    labels, held_out = read_label_set(job.files.labels), _held_out(job)
    if held_out is None:
        return float(evaluate(model, labels, num_frames=MAX_VALIDATION_FRAMES)["score"])
    return score_of_areas(model, labels, len(held_out))


def _parent(path: str | None, architecture: str) -> bytes | None:
    """Model file to start from; one of another architecture than is asked for is not continued but replaced."""
    if path is None:
        return None
    from ptycho_bluesky.models.onnx_file import read_manifest

    content = Path(path).read_bytes()
    found = read_manifest(content).get("architecture")
    if architecture and found != architecture:
        logger.warning("the serving model is a %s: a %s is trained from the beginning", found, architecture)
        return None
    return content


def _trained_runs(parent: bytes | None) -> list[str]:
    """Runs that a model was trained on."""
    from ptycho_bluesky.models.onnx_file import read_manifest

    return [] if parent is None else list(read_manifest(parent).get("training_runs", ()))


def _held_out(job: Job) -> LabelSet | None:
    """Labels of the area of this run that was kept out of the corpus, if one was."""
    from ptycho_bluesky.training.corpus import read_label_set

    return read_label_set(job.files.held_out) if job.files.held_out.exists() else None


def _trained_positions(corpus_dir: str) -> list[NDArray[np.float64]]:
    """Positions of every label set of the corpus; the arrays beside them, which are large, are not read."""
    positions = []
    for path in sorted(Path(corpus_dir).glob("*.h5")):
        with h5py.File(path, "r") as file:
            positions.append(np.asarray(file["position_m"]))
    return positions


def _engine_options(job: Job) -> EngineOptions:
    from ptycho_bluesky.reconstruction import engine_options

    kind = engine_options(job.reconstruct.get("engine", "epie"))
    return kind.of(**{k: v for k, v in job.reconstruct.items() if k not in ("engine", "labels")})


def _label_limits(job: Job) -> LabelSettings:
    return LabelSettings(**job.reconstruct.get("labels", {}))


def _set_threads(num_threads: int) -> None:
    import torch

    torch.set_num_threads(num_threads)
