"""The live bench: its arithmetic, and its processes once, small and slow."""

from __future__ import annotations

import numpy as np
import pytest

from ptycho_bluesky.bench.live import LiveBench, live_rows, run
from ptycho_bluesky.bench.live_models import BenchModel, register, untrained
from ptycho_bluesky.bench.live_run import Outcome, ids_of_ranges
from ptycho_bluesky.bench.live_scene import LiveScene, RunOfFrames
from ptycho_bluesky.bench.live_soak import folder_bytes, memory_drift, soak_rows
from ptycho_bluesky.bench.live_swaps import swap_pauses_s
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.streaming.run_documents import RunDocuments
from ptycho_bluesky.streaming.run_state import RunState
from ptycho_bluesky.streaming.sinks_pva import id_ranges
from ptycho_bluesky.training.registry import LocalModelStore

SIZE = 64


def outcome(**changes):
    counts = dict.fromkeys(("generated", "missed", "recovered", "lost", "unaccounted"), 0)
    content = {
        "rate": 100.0,
        "offered": 100.0,
        "sustained": 99.5,
        "counts": counts,
        "unlisted": 0,
        "latency_ms": (20.0, 50.0),
        "images_per_s": 20.0,
        "canvas": (10, 10),
        "cpu_us": {"detector": 1.0, "edge": 2.0, "receiver": 3.0},
        "detector_latest_ms": 1.0,
    }
    return Outcome(**{**content, **changes})


def test_lists_of_ids_are_read_as_they_are_written():
    ids = np.array([3, 4, 5, 9, 11, 12])
    assert ids_of_ranges(id_ranges(ids)) == ids.tolist()
    assert ids_of_ranges("") == []


def test_a_scan_keeps_up_only_with_every_frame_and_98_percent():
    assert outcome().kept_up
    assert not outcome(unlisted=1).kept_up
    assert not outcome(sustained=97.0).kept_up
    assert not outcome(offered=97.0).kept_up
    assert not outcome(counts={**outcome().counts, "missed": 1}).kept_up


def test_rows_fail_under_98_percent_of_the_offered_rate():
    rows = {row.metric: row for row in live_rows(LiveBench(rate=100.0), outcome(sustained=97.0), 0.0, 10.0)}
    assert rows["live_frames_per_s"].passed is False
    assert rows["live_frames_per_s"].ratio == pytest.approx(9.7)
    assert rows["latency_p50_ms"].passed


def test_the_pause_of_a_swap_is_what_it_took_longer_than_usual():
    done = [0.0, 1.0, 2.0, 3.5, 4.5, 5.4]
    batches = [[time_s, 8, model] for time_s, model in zip(done, "aaabbc", strict=True)]
    pauses_s, ordinary_s = swap_pauses_s(batches)
    assert pauses_s == pytest.approx([0.5, 0.0])
    assert ordinary_s == pytest.approx([0.0, 0.0, 0.0])
    assert swap_pauses_s([]) == ([], [])


def test_a_soak_fails_on_one_frame_too_few_or_memory_that_grows(tmp_path):
    options = LiveBench(rate=100.0, seconds=1.0)
    counts = {**outcome().counts, "generated": 100, "inferred": 100}
    good = {**outcome(counts=counts).as_dict(), "rss_bytes": 1e8, "disk_bytes": 10}
    rows = soak_rows([good, {**good, "rss_bytes": 1.04e8}], options)
    assert all(row.passed is not False for row in rows)
    bad = {**good, "rss_bytes": 1.06e8, "counts": {**counts, "inferred": 99, "lost": 1}}
    failed = {row.metric for row in soak_rows([good, bad], options) if row.passed is False}
    assert failed == {"soak_frames_inferred", "soak_frames_miscounted", "soak_memory_drift"}
    assert memory_drift([100.0, 97.0]) == pytest.approx(0.03)
    (tmp_path / "file").write_bytes(b"1234")
    assert folder_bytes(tmp_path) == 4


@pytest.fixture(scope="module")
def scene():
    return LiveScene.render(SIZE, 20)


def test_documents_of_a_run_make_an_account(scene):
    content = RunOfFrames(scene, "run", "channel", 5, 50)
    documents = list(content.opening())
    state = RunState(RunDocuments(documents[0][1]))
    for name, doc in [*documents[1:], *content.closing()]:
        if name == "descriptor":
            state.documents.add_descriptor(doc)
        elif name == "event":
            state.take_event(doc)
    assert state.ledger.counts().generated == 50
    assert state.documents.frame_shape == (SIZE, SIZE)
    np.testing.assert_allclose(state.documents.position_at(3), scene.position_m[3])


def test_a_model_of_another_size_is_refused(tmp_path):
    path = untrained("lean8", SIZE).write(tmp_path)
    assert BenchModel.read(path, SIZE).model_id == untrained("lean8", SIZE).model_id
    with pytest.raises(InputError, match="not of 128"):
        BenchModel.read(path, 128)
    store = LocalModelStore(tmp_path / "models")
    register(BenchModel.read(path, SIZE), store)
    assert store.serving().image_shape == (SIZE, SIZE)


@pytest.mark.slow
def test_the_whole_bench_small():
    options = LiveBench(
        size=SIZE, rate=100.0, seconds=1.0, num_frames=40, short_s=1.0, steps=(1.2,), float_rates=(50.0,),
        overload_rate=200.0, threads=1,
    )  # fmt: skip
    report = run(options)
    rows = {row.metric: row for row in report.rows}
    for name in ("frames_missed", "frames_lost", "frames_unaccounted", "frames_never_shown", "transport_missed"):
        assert rows[name].ours == 0
    assert rows["live_frames_per_s"].ours > 0
    assert rows["live_frames_per_s"].baseline > 0
    assert rows["live_frames_per_s_same_model"].baseline > 0
    assert np.isfinite(rows["latency_p99_ms"].ours)
    assert report.extra["scans"]["main"]["counts"]["inferred"] == 100
