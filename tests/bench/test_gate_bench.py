"""The experiment of `bench gate` and how its rows are made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ptycho_bluesky.bench.gate import (
    STRATEGIES,
    GateBench,
    _check_options,
    _detected_after,
    _false_alarms,
    _report,
    _rollback,
    counted_updates,
)
from ptycho_bluesky.bench.gate_scans import GateScans, ScanOptions
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.reconstruction import EpieOptions, reconstruct
from ptycho_bluesky.records import ModelRecord, ModelStage
from ptycho_bluesky.simulation.scans import spiral_scan
from ptycho_bluesky.training.regime import probe_similarity
from ptycho_bluesky.training.registry import LocalModelStore, content_id, register

SCANS = ScanOptions(num_points=12, num_before=0)


def test_every_change_changes_what_it_says():
    scans = GateScans(SCANS)
    before, after = scans.measurement(30), scans.measurement(31)
    assert np.mean(after.image) == pytest.approx(np.mean(before.image) / 16, rel=0.1)
    assert after.metadata["light"]["exposure_s"] == SCANS.exposure_s / 16
    probes = [scans._experiment(k).probe for k in (20, 21, 22, 23)]
    similarities = [probe_similarity(probes[0], probe) for probe in probes]
    assert similarities[0] == pytest.approx(1.0)
    assert similarities[0] > similarities[1] > similarities[2]
    assert similarities[2] == similarities[3]
    assert sample(scans, 11) == ("letters", -0.6)
    assert sample(scans, 12) == ("letters", -1.0)
    assert sample(GateScans(replace(SCANS, after="shapes")), 12) == ("shapes", -1.0)
    assert scans.uid(31) == after.run_uid


def sample(scans, number):
    found = scans._experiment(number).sample_map
    return found.areas[0].kind, found.max_phase_rad


def test_scans_before_the_experiment_change_nothing():
    scans = GateScans(replace(SCANS, num_before=5))
    assert [sample(scans, k)[1] for k in (0, 16, 17)] == [-0.6, -0.6, -1.0]


def test_every_frame_update_of_an_engine_is_counted():
    measurement, experiment = spiral_scan(40, 64)
    options = EpieOptions(iterations=3, holdout_fraction=0.0, check_probe=False)
    with counted_updates() as updates:
        reconstruct(measurement, options, probe=experiment.probe)
    assert sum(updates) == 3 * 40
    known = len(updates)
    reconstruct(measurement, options, probe=experiment.probe)
    assert len(updates) == known


def scan(ssim, looked=True, found=None, updates=100):
    return {
        "ssim": ssim,
        "mismatch": found,
        "looked": looked,
        "label_frame_updates": updates if looked else 0,
        "train_frame_updates": updates if looked else 0,
        "seconds": 1.0 if looked else 0.1,
    }


def test_rows():
    options = GateBench(replace(SCANS, num_scans=8, sample_change=2, probe_drift=4, dose_change=6), probe_scans=1)
    always = [scan(None), *[scan(0.8)] * 7]
    gated = [scan(None), scan(0.79, False), scan(0.79, False), scan(0.79, True, 0.2), scan(0.79, True, 0.3)]
    gated += [scan(0.79, False)] * 2 + [scan(0.79, True, 0.05)]
    results = [dict(zip(STRATEGIES, pair, strict=True)) for pair in zip(always, gated, strict=True)]
    poisoned = [{"outcome": "rejected"}, {"outcome": "promoted"}]
    rows = {row.metric: row for row in _report(options, results, poisoned, True).rows}
    assert rows["compute_fraction"].ours == 0.5
    assert rows["compute_fraction"].passed is False
    assert rows["ssim_loss"].ours == pytest.approx(0.01)
    # The sample after one scan, the probe at once, the dose never.
    assert rows["changes_detected"].ours == 2
    assert rows["poisoned_promoted"].passed is False
    assert rows["rollback_works"].passed


def test_detection_is_a_mismatch_that_was_seen():
    found = [scan(0.5, True, 0.05), scan(0.5, False), scan(0.5, True, 0.1)]
    assert _detected_after(found, 0, 0.1) == 2
    assert _detected_after(found, 2, 0.1) == 0
    assert _detected_after(found, 0, 0.2) is None


def test_alarms_without_a_change_are_counted():
    scans = replace(SCANS, num_before=5, num_scans=40)
    options = GateBench(scans, probe_scans=1)
    settling = 1 + options.settings(Path(), "on_mismatch").worker.patience
    quiet, looked = scan(0.8, False), {**scan(0.8, True, 0.05), "train_frame_updates": 0}
    gated = [quiet, looked] * 20
    assert _false_alarms(options, gated) == []
    for number in (
        4,  # before anything changed
        scans.sample_change,
        scans.sample_change + settling,
        scans.sample_change + settling + 1,  # the model should fit again
        scans.probe_drift + scans.drift_scans - 1 + settling,
        scans.dose_change - 1,
    ):
        gated[number] = scan(0.8, True, 0.2)
    gated[8] = scan(0.8, True, 0.05)  # it fitted, and was retrained
    expected = [4, 8, scans.sample_change + settling + 1, scans.dose_change - 1]
    assert _false_alarms(options, gated) == expected
    beginning = GateBench(replace(scans, num_before=0), probe_scans=1)
    assert _false_alarms(beginning, gated) == expected[1:]
    results = [dict.fromkeys(STRATEGIES, each) for each in gated]
    report = _report(options, results, [], True)
    assert {row.metric: row.ours for row in report.rows}["false_alarms"] == 4
    assert report.extra["false_alarms"] == expected


def test_a_folder_of_other_options_is_refused(tmp_path):
    _check_options(tmp_path, GateBench())
    _check_options(tmp_path, GateBench())
    with pytest.raises(InputError, match="other options"):
        _check_options(tmp_path, GateBench(frames_per_scan=1))


def test_going_back_is_of_the_model_that_serves(tmp_path):
    models = LocalModelStore(tmp_path)
    learner = SimpleNamespace(models=models)
    regimes = {b"other": "b", b"one": "a", b"two": "a"}
    for content, probe in regimes.items():
        record = ModelRecord(
            content_id(content), "", ModelStage.CANDIDATE, "lean8", (8, 8), (8, 8), 1e-8, 1.0, (), {}, {}, None,
            {"probe": probe}, 0.0,
        )  # fmt: skip
        register(models, record, content, ModelStage.PROMOTED)
        # without a model before it there is nothing to go back to
        assert _rollback(learner) is (content == b"two")
    assert models.serving().model_id == content_id(b"two")
