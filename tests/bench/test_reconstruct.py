"""The reconstruction bench, small: its rows, beside pty-chi where that is installed."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from ptycho_bluesky.bench.reconstruct import satisfy_torchvision
from ptycho_bluesky.bench.reconstruct_scan import BenchScan
from ptycho_bluesky.bench.reconstruct_speed import error_row, sequential_row, speed_rows
from ptycho_bluesky.bench.reconstruct_star import star_rows
from ptycho_bluesky.bench.reconstruct_truth import convergence_rows
from ptycho_bluesky.bench.reconstruct_warm import passes_to
from ptycho_bluesky.bench.reconstruct_workers import worker_rows
from ptycho_bluesky.simulation.scans import spiral_scan


@pytest.fixture
def ptychi():
    stands_in = satisfy_torchvision()
    yield pytest.importorskip("ptychi")
    for name in ("torchvision", "torchvision.transforms") if stands_in else ():
        del sys.modules[name]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("ptychi")
def test_rows_beside_ptychi(tmp_path):
    bench = BenchScan.of(spiral_scan(40, 64)[0])
    picture = tmp_path / "halves.png"
    rows = [*speed_rows("epie", bench, 1, 1, 2), sequential_row(bench, 1, 1), *star_rows(bench, 1, 1, picture)]
    assert [row.metric for row in rows] == [
        "epie_batch100", "epie_batch100_error", "epie_sequential", "star_resolution_px",
    ]  # fmt: skip
    assert all(row.baseline is not None and row.baseline > 0 and row.ours > 0 for row in rows)
    assert picture.stat().st_size > 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("ptychi")
def test_time_to_the_truth():
    likeness, seconds = convergence_rows(120, 64, 2, 20.0, 1)
    assert likeness.ours > 0.95
    assert seconds.baseline_name.startswith("pty-chi LSQML, ")
    assert seconds.target == seconds.baseline


def test_a_baseline_that_diverged_is_none():
    row = error_row("rpie", 8, 0.02, 7.0, 0.9)
    assert (row.ratio, row.passed) == (None, None)
    assert "diverged to 7, from 0.9" in row.baseline_name
    assert error_row("rpie", 8, 0.02, float("nan"), 0.9).ratio is None
    row = error_row("epie", 8, 0.02, 0.03, 0.9)
    assert row.ratio == pytest.approx(1.5)
    assert row.passed


def test_rows_of_two_workers():
    rows = {row.metric: row for row in worker_rows(60, 1)}
    assert rows["cg_two_workers_objective_difference"].passed
    assert rows["cg_two_workers_object_difference"].passed
    assert 0 < rows["cg_parallel_efficiency"].ours < 2
    assert rows["cg_exchange_bytes"].ours > 0


def test_passes_to_an_error():
    assert passes_to(np.array([3.0, 2.0, 1.0]), 2.0) == 2
    assert passes_to(np.array([3.0, 2.0, 1.0]), 0.5) == 4
