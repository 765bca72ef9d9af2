"""`bench loader` on a tiny corpus: counts are exact, times are only there."""

from __future__ import annotations

import numpy as np
import pytest

from ptycho_bluesky.bench.loader import LoaderBench, ordering_row, run
from ptycho_bluesky.errors import InputError


@pytest.mark.slow
def test_rows_of_a_tiny_corpus():
    rows = {
        row.metric: row for row in run(LoaderBench(num_frames=256, size_px=16, rounds=1, num_epochs=2, index_runs=3))
    }
    assert rows["reads_over_bound"].ours <= 1.02
    assert rows["reads_buffer_0.5"].ours == 128
    assert rows["reads_buffer_0.5"].ours < rows["reads_buffer_0.5"].baseline
    assert rows["weights_difference"].passed
    assert rows["weights_difference_float64"].passed
    assert rows["corpus_start"].passed
    assert rows["corpus_start"].baseline_name == "2889 frames"
    for name in (
        "epoch_time_buffer_0.8",
        "epoch_time_buffer_0.5",
        "nopfs_policy",
        "range_reads",
        "range_reads_over_sorted",
    ):
        assert np.isfinite(rows[name].ours)
        assert rows[name].baseline == 1.0


def test_ordering_the_epochs_changes_little():
    row = ordering_row(LoaderBench(num_frames=400, global_batch=20))
    assert row.baseline is not None
    assert abs(row.ours / row.baseline - 1.0) < 0.05


@pytest.mark.parametrize("values", [{"num_epochs": 1}, {"num_frames": 100}])
def test_benches_that_measure_nothing_are_refused(values):
    with pytest.raises(InputError, match=next(iter(values))):
        LoaderBench(**values)
