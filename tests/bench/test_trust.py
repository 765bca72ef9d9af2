"""The trust bench on a few frames: usual ones pass, and what cannot be read is told."""

from __future__ import annotations

from ptycho_bluesky.bench.corpus import CorpusOptions
from ptycho_bluesky.bench.shipped import shipped_model, shipped_models
from ptycho_bluesky.bench.trust import TrustBench, run


def test_rows_of_the_bench():
    bench = TrustBench(
        CorpusOptions(**shipped_models()["corpus"]), test_frames=40, window_frames=40, reference_frames=300
    )
    seen = []
    rows = {row.metric: row for row in run(bench, shipped_model("lean16").read_bytes(), lambda *a: seen.append(a[2]))}
    assert seen[0] == "usual"
    assert rows["residual_floor"].ours < rows["residual_model"].ours < rows["residual_flat"].ours
    assert 0.9 < rows["residual_floor"].ours < 1.5
    assert rows["ood_false_alarm_rate"].ours <= 0.1
    for case in ("probe", "centre", "counts_x40", "no_sample"):
        assert rows[f"ood_detection_rate_{case}"].passed, case
    assert rows["ood_detection_rate_letters"].target is None
