"""`bench train` and `bench learning`: their figures follow from their curves, and a stopped experiment goes on."""

from __future__ import annotations

import numpy as np
import pytest

from ptycho_bluesky.bench.learning import LearningBench, read_scores, rows_of, run
from ptycho_bluesky.bench.learning_pictures import draw_curve, draw_pictures
from ptycho_bluesky.bench.train import Contender, TrainBench, time_rows, time_to_reach
from ptycho_bluesky.bench.train import run as run_train
from ptycho_bluesky.errors import InputError


def test_the_time_to_a_loss_is_that_of_the_first_point_as_low():
    curve = [(1.0, 0.5), (2.0, 0.3), (3.0, 0.4), (4.0, 0.1)]
    assert time_to_reach(curve, 0.35) == 2.0
    assert time_to_reach(curve, 0.05) is None


def test_validation_is_not_counted_as_training():
    now = [0.0]

    def pass_time(seconds, value):
        now[0] += seconds
        return value

    steps = (pass_time(0.5, 8) for _ in range(100))
    contender = Contender(steps, lambda: pass_time(100.0, 0.25), clock=lambda: now[0])
    contender.advance(1.2)
    contender.advance(1.0)
    assert contender.curve == [(1.5, 0.25), (2.5, 0.25)]
    assert contender.rates == [16.0, 16.0]
    assert contender.frames == 40


def test_a_target_needs_a_released_loop_that_has_left_the_constant():
    ours = [(1.0, 0.35), (2.0, 0.27), (3.0, 0.2)]
    learned = [(3.0, 0.35), (6.0, 0.28), (9.0, 0.25)]
    rows = {row.metric: row for row in time_rows(ours, learned, 0.3)}
    assert (rows["time_to_loss"].ours, rows["time_to_loss"].passed) == (3.0, True)
    assert (rows["seconds_to_loss"].ours, rows["seconds_to_loss"].baseline) == (3.0, 9.0)
    assert (rows["seconds_to_leave_constant"].ours, rows["seconds_to_leave_constant"].baseline) == (2.0, 6.0)
    stuck = [(3.0, 0.35), (6.0, 0.29)]
    rows = {row.metric: row for row in time_rows(ours, stuck, 0.3)}
    assert rows["time_to_loss"].passed is None
    assert rows["seconds_to_leave_constant"].baseline == 6.0
    assert "not reached" in rows["seconds_to_leave_constant"].baseline_name
    rows = {row.metric: row for row in time_rows(ours[:1], learned, 0.3)}
    assert (rows["time_to_loss"].ours, rows["time_to_loss"].passed) == (0.0, False)
    assert rows.keys() == {"loss_of_a_constant", "time_to_loss"}


@pytest.mark.slow
def test_rows_of_a_tiny_training(monkeypatch):
    monkeypatch.setattr("ptycho_bluesky.bench.train.WARM_UP_S", 0.05)
    bench = TrainBench(
        num_scans=1, num_points=70, seconds=0.2, slice_s=0.1, rate_size_px=64, rate_seconds=0.1, validation_frames=20
    )
    rows, found = run_train(bench)
    named = {row.metric: row for row in rows}
    assert {"train_frames_per_s", "frames_per_s_64px", "time_to_loss"} <= named.keys()
    assert named["train_frames_per_s"].target == 2.0
    assert np.isfinite([row.ours for row in rows]).all()
    assert [len(found["curves"][name]) for name in ("ours", "released")] == [2, 2]
    assert found["frames"]["released"] > 0


def test_benches_without_a_turn_or_a_trend_are_refused():
    with pytest.raises(InputError, match="turn"):
        TrainBench(seconds=1.0, slice_s=2.0)
    with pytest.raises(InputError, match="above 0"):
        TrainBench(our_share=0.0)
    with pytest.raises(InputError, match="speeds"):
        TrainBench(rate_seconds=0.0)
    with pytest.raises(InputError, match="trend"):
        LearningBench(num_letters=1)


def test_trends_are_ranked_over_the_scans_that_show_the_features():
    bench = LearningBench(num_shapes=3, num_letters=2)
    familiar, unfamiliar = [0.1, 0.3, 0.5, 0.4, 0.4], [0.2, 0.1, 0.1, 0.3, 0.4]
    base = {"familiar_constant": 0.01, "unfamiliar_constant": 0.02, "seconds": 60.0}
    base |= {"familiar_blurred": 0.1, "unfamiliar_blurred": 0.05}
    scores = [{"scan": k + 1, "familiar": familiar[k], "unfamiliar": unfamiliar[k], **base} for k in range(5)]
    rows = {row.metric: row for row in rows_of(bench, scores)}
    assert rows["spearman_familiar"].ours == pytest.approx(1.0)
    assert rows["spearman_unfamiliar"].ours == pytest.approx(1.0)
    assert rows["ssim_familiar"].ours == 0.5
    assert rows["ssim_constant"].ours == 0.02
    assert rows["ssim_unfamiliar_blurred"].ours == 0.05
    assert rows["minutes"].ours == 5.0


@pytest.mark.slow
def test_an_experiment_goes_on_where_it_was_stopped(tmp_path):
    bench = LearningBench(
        num_shapes=2, num_letters=2, num_points=60, architecture="lean8", frames_per_scan=32, num_threads=1
    )
    assert not run(bench, tmp_path, stop_after_s=0.0)
    calls = []
    assert run(bench, tmp_path, lambda done, total, name: calls.append(done))
    scores = read_scores(tmp_path)
    assert [line["scan"] for line in scores] == [1, 2, 3, 4]
    assert calls == [0, 1, 2, 3, 4]
    (tmp_path / "scores.jsonl").write_text("\n".join((tmp_path / "scores.jsonl").read_text().splitlines()[:3]) + "\n")
    assert run(bench, tmp_path)
    for name in ("familiar", "unfamiliar"):
        assert read_scores(tmp_path)[3][name] == scores[3][name]
    draw_curve(tmp_path / "curve.png", bench, {0: scores})
    draw_pictures(tmp_path / "pictures.png", bench, tmp_path, (1, 4))
    assert (tmp_path / "curve.png").stat().st_size > 1000
    assert (tmp_path / "pictures.png").stat().st_size > 1000
    with pytest.raises(InputError, match="another experiment"):
        run(LearningBench(num_shapes=3, num_letters=2), tmp_path)
