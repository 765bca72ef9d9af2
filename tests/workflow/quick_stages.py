"""Stages of the worker that compute nothing, for tests of its bookkeeping."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from workflow_scans import GEOMETRY

from ptycho_bluesky.geometry import ObjectFrame
from ptycho_bluesky.io.products import write_reconstruction
from ptycho_bluesky.records import LabelSet, ModelRecord, ModelStage, Reconstruction
from ptycho_bluesky.training.corpus import Corpus, read_label_set, write_label_set
from ptycho_bluesky.workflow.files import write_bytes, write_json
from ptycho_bluesky.workflow.measurement_file import read_measurement_file
from ptycho_bluesky.workflow.stages import Job


class QuickStages:
    """Stages that leave products of the right kind and compute nothing; each call is noted."""

    def __init__(self, log: Path, fail: dict[str, int] | None = None, scores: Sequence[float] = ()) -> None:
        self.log, self.fail, self.scores = log, dict(fail or {}), list(scores)
        self.serving_scores: list[float] = []
        self.glance_scores: list[float] = []
        self.rival_scores: list[float] = []
        self.gains: list[float] = []
        self.probes: dict[str, float] = {}
        """Curvature of the probe of some runs; a plane wave for the others."""

    def _called(self, stage: str, job: Job) -> None:
        with self.log.open("a") as file:
            file.write(f"{stage} {Path(job.folder).name}\n")
        if self.fail.get(stage, 0):
            self.fail[stage] -= 1
            raise RuntimeError(f"{stage} trips")

    def calls(self, uid: str = "") -> list[str]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line.split()[0] for line in lines if line.endswith(uid)]

    def reconstruct(self, job: Job) -> dict[str, Any]:
        self._called("reconstruct", job)
        measurement = read_measurement_file(job.files.measurement)
        write_reconstruction(
            job.files.reconstruction,
            Reconstruction(
                object=np.ones((40, 40), dtype=np.complex64),
                probe=np.ones((1, 32, 32), dtype=np.complex64),
                position_m=measurement.position_m,
                frame=ObjectFrame((0.0, 0.0), GEOMETRY.object_pixel_m, (40, 40)),
                error=np.array([0.5, 0.1]),
                geometry=GEOMETRY,
                engine="epie",
                options={},
                run_uid=measurement.run_uid,
            ),
        )
        return {"figures": {"epie_error_last": 0.1}}

    def label(self, job: Job, purpose: str, reserved: bool) -> dict[str, Any]:
        self._called("label", job)
        measurement = read_measurement_file(job.files.measurement)
        n = len(measurement)
        labels = LabelSet(
            image=measurement.image,
            phase_rad=np.zeros((n, 32, 32), dtype=np.float32),
            amplitude=np.ones((n, 32, 32), dtype=np.float32),
            position_m=measurement.position_m,
            frame_index=measurement.frame_index,
            probe=curved_probe(self.probes.get(measurement.run_uid, 0.0)),
            weight=np.ones((32, 32), dtype=np.float32),
            pixel_size_m=GEOMETRY.object_pixel_m,
            geometry=GEOMETRY,
            run_uid=measurement.run_uid,
        )
        write_label_set(job.files.labels, labels)
        if purpose == "train":
            Corpus(job.corpus_dir).add(labels)
        return {"accepted": True, "reason": "", "figures": {"reserved": reserved}}

    def validate(self, job: Job, model: str | None) -> dict[str, Any]:
        self._called("validate", job)
        assert len(read_label_set(job.files.labels))
        score = None if model is None else self.serving_scores.pop(0) if self.serving_scores else 0.4
        return {"figures": {"ssim_serving": score, "score_serving": score, "ssim_constant": 0.1}}

    def train(self, job: Job, runs: Sequence[str], parent: str | None, regime: Any) -> dict[str, Any]:
        self._called("train", job)
        content = f"model of {sorted(runs)}".encode()
        record = ModelRecord(
            model_id=hashlib.sha256(content).hexdigest(),
            parent_id="" if parent is None else hashlib.sha256(Path(parent).read_bytes()).hexdigest(),
            stage=ModelStage.CANDIDATE,
            architecture="none",
            image_shape=(32, 32),
            patch_shape=(32, 32),
            pixel_size_m=GEOMETRY.object_pixel_m,
            count_scale=1.0,
            training_runs=tuple(runs),
            recipe={},
            validation={"score": 0.8},
            geometry=None,
            regime=regime,
            created_s=time.time(),
        )
        write_bytes(job.files.model, content)
        write_json(job.files.record, record.as_dict())
        return {"model_id": record.model_id, "figures": {"train_runs": len(runs)}}

    def glance(self, job: Job, model: str) -> dict[str, Any]:
        self._called("glance", job)
        return {"figures": {"glance_score": self.glance_scores.pop(0), "glance_frames": 64}}

    def score(self, job: Job, model: str) -> dict[str, Any]:
        self._called("score", job)
        return {"score": self.rival_scores.pop(0)}

    def gate(
        self, job: Job, reserved: str | None, serving: str | None, older: Mapping[str, str], foreign: Mapping[str, str]
    ) -> dict[str, Any]:
        self._called("gate", job)
        score = self.scores.pop(0) if self.scores else 1.0
        figures = {"candidate_score": score, "validated_on": reserved, "older": list(older), "foreign": list(foreign)}
        gain = self.gains.pop(0) if self.gains else 0.001
        return {"promote": score >= 0.5, "reason": f"scores {score}", "gain": gain, "figures": figures}


def curved_probe(curvature: float) -> np.ndarray:
    y, x = np.indices((32, 32)) - 16
    return np.exp(1j * curvature * (y**2 + x**2))[None].astype(np.complex64)
