"""Passes that a reconstruction saves when it starts from the image that the edge has stitched while the scan ran."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ptycho_bluesky.bench.corpus import CorpusOptions, SimulatedCorpus
from ptycho_bluesky.bench.reconstruct_scan import BenchScan
from ptycho_bluesky.bench.reconstruct_truth import phase_error_rad
from ptycho_bluesky.bench.rows import Row
from ptycho_bluesky.bench.shipped import shipped_model, shipped_models
from ptycho_bluesky.reconstruction import EpieOptions
from ptycho_bluesky.reconstruction.gauge import fix_gauge
from ptycho_bluesky.reconstruction.prepare import torch_threads
from ptycho_bluesky.reconstruction.warm_start import warm_start
from ptycho_bluesky.records import LabelSet, Measurement
from ptycho_bluesky.simulation import Experiment
from ptycho_bluesky.streaming.replay import replay_run

__all__ = ["passes_to", "scan_of_labels", "warm_rows"]

MODEL = "lean24"
OTHER_SAMPLE_SEED = 1000
COLD_PASSES = 12
SAVED = 0.5
"""Part of the cold start's passes that is asked for."""


def warm_rows(points: int, scans: int = 2) -> list[Row]:
    """Passes of the default engine from the edge's mosaic to the error that a cold start has after `COLD_PASSES`.

    The scans are simulated, of samples that the model (one of those that come with the package) has not seen, with
    photon noise. Both starts have the same probe, that of the model's labels. The error is that of the object's phase;
    beside it, without a target, that of the diffraction, most of which is noise.

    Parameters
    ----------
    points : int
        Frames of a scan.
    scans : int

    Returns
    -------
    list of Row
    """
    corpus = CorpusOptions(**shipped_models()["corpus"])
    sample = SimulatedCorpus(replace(corpus, seed=corpus.seed + OTHER_SAMPLE_SEED, num_scans=scans))
    areas = [area for area in sample.experiment.sample_map.areas if area.name.startswith("shapes")]
    used = []
    for area in areas[:scans]:
        labels = sample.labels(area, seed=1, num_frames=points)
        used.append(_passes(scan_of_labels(labels), sample.experiment, labels))
    name = f"cold start to the same error, {scans} scans of {points} frames"
    mean = np.mean(used, axis=0).tolist()
    return [
        Row("warm_start_iterations", "passes", "lower", mean[0], COLD_PASSES, name, SAVED * COLD_PASSES),
        Row("warm_start_iterations_diffraction", "passes", "lower", mean[1], COLD_PASSES, name),
    ]


def _passes(measurement: Measurement, experiment: Experiment, labels: LabelSet) -> tuple[int, int]:
    """Passes from the mosaic to the phase error, and to the diffraction error, of the cold start."""
    mosaic, _ = replay_run(measurement, shipped_model(MODEL), batch_size=8)
    cold = BenchScan.of(measurement, labels.probe, check_probe=False)
    obj = warm_start(measurement, mosaic, EpieOptions(holdout_fraction=0.0)).object
    warm = replace(cold, obj=torch.from_numpy(obj).to(cold.obj))
    enough = _errors(cold, measurement, experiment)[:, -1]
    phase, diffraction = _errors(warm, measurement, experiment)
    return passes_to(phase, enough[0]), passes_to(diffraction, enough[1])


def _errors(bench: BenchScan, measurement: Measurement, experiment: Experiment) -> np.ndarray:
    """Error of the phase in rad, and of the diffraction, after each pass of the default engine, (2, passes)."""
    found = []
    with torch_threads(1):
        engine = bench.ours(EpieOptions(iterations=COLD_PASSES, settle_fraction=0.0))
        for iteration in range(COLD_PASSES):
            engine.run_pass(iteration)
            obj, _, frame = fix_gauge(engine.obj.numpy(), engine.probe.numpy(), bench.frame, measurement.position_m)
            found.append((phase_error_rad(obj, frame, measurement, experiment), bench.error(engine)))
    return np.array(found).T


def scan_of_labels(labels: LabelSet) -> Measurement:
    """The frames of a label set as a scan whose object nobody knows."""
    n = len(labels)
    unknown = np.full(n, np.nan)
    return Measurement(
        image=labels.image, position_m=labels.position_m, frame_index=labels.frame_index,
        unique_id=labels.frame_index, timestamp_s=unknown, i0=unknown, geometry=labels.geometry,
        pixel_size_m=labels.pixel_size_m, run_uid=labels.run_uid,
        metadata={"light": labels.provenance.get("light", {})},
    )  # fmt: skip


def passes_to(errors: np.ndarray, enough: float) -> int:
    """Passes after which an error is first reached; one more than there are where it is not."""
    below = np.flatnonzero(errors <= enough)
    return int(below[0]) + 1 if len(below) else len(errors) + 1
