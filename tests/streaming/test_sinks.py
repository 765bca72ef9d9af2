"""Results reach the store, whatever the store does meanwhile; the spool keeps them."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from ptycho_bluesky.errors import InputError, StorageError, UnreachableError
from ptycho_bluesky.geometry import Geometry, ObjectFrame
from ptycho_bluesky.records import FrameCounts, Mosaic
from ptycho_bluesky.streaming.core import RunResult
from ptycho_bluesky.streaming.sinks import EdgeStatus, EdgeUpdate, LatestSink
from ptycho_bluesky.streaming.sinks_store import StoreSink
from ptycho_bluesky.streaming.spool import Spool


def result(uid="run", complete=True, geometry=None):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(6, 8)).astype(np.float32)
    mosaic = Mosaic(
        phase_rad=image,
        weight=np.abs(image),
        coverage=(image > 0).astype(np.int32),
        variance=np.abs(image) / 9,
        frame=ObjectFrame((1e-6, 2e-6), 1e-8, (6, 8)),
        run_uid=uid,
        frame_log={"frame_index": np.arange(3), "residual": np.full(3, np.nan, np.float32)},
        model_ids=("a", "b"),
        maps={"bright_field": image * 2},
    )
    return RunResult(mosaic, FrameCounts(generated=3, inferred=3), geometry, complete, {"exit_status": "success"})


def update(uid="run"):
    content = result(uid)
    return EdgeUpdate(EdgeStatus(), content.counts, content.mosaic)


class Store:
    """A store that may be away, refuse, or be slow."""

    def __init__(self):
        self.written: list[tuple[str, bool]] = []
        self.away = self.refuses = False
        self.gate = threading.Event()
        self.gate.set()

    def connect(self):
        if self.away:
            raise UnreachableError("store", "away")
        return self

    def write_mosaic(self, mosaic, counts, *, complete, geometry=None, metadata=None):
        self.gate.wait(5)
        if self.away:
            raise UnreachableError("store", "went away")
        if self.refuses:
            raise InputError("mosaic", "not like this")
        self.written.append((mosaic.run_uid, complete))


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def sink(store, tmp_path, monkeypatch):
    monkeypatch.setattr("ptycho_bluesky.streaming.sinks_store.FIRST_RETRY_S", 0.02)
    made = StoreSink(tmp_path, store.connect, period_s=0.01)
    made._retry_s = 0.02
    yield made
    made.close()


def wait_for(condition, timeout_s=5.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("geometry", [None, Geometry(1e4, 1.0, 75e-6, 64, "rot90")])
def test_spool_round_trip(tmp_path, geometry):
    spool = Spool(tmp_path / "new")
    written = result(geometry=geometry)
    spool.write(written)
    read = spool.read("run")
    for name in ("phase_rad", "weight", "coverage", "variance"):
        np.testing.assert_array_equal(getattr(read.mosaic, name), getattr(written.mosaic, name))
    np.testing.assert_array_equal(read.mosaic.maps["bright_field"], written.mosaic.maps["bright_field"])
    np.testing.assert_array_equal(read.mosaic.frame_log["residual"], written.mosaic.frame_log["residual"])
    assert (read.mosaic.frame, read.mosaic.model_ids) == (written.mosaic.frame, ("a", "b"))
    assert (read.counts, read.geometry, read.complete) == (written.counts, geometry, True)
    assert read.metadata == written.metadata
    assert spool.uids() == ["run"]


def test_a_damaged_spool_file_is_told_and_set_aside(sink, store, tmp_path):
    (tmp_path / "bad.npz").write_bytes(b"PK nonsense")
    with pytest.raises(InputError, match="result of the edge"):
        sink.spool.read("bad")
    sink.finish(result())
    wait_for(lambda: store.written == [("run", True)])
    wait_for(lambda: (tmp_path / "bad.damaged").exists())


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="writable"):
        Spool(tmp_path / "file" / "below").write(result())


def test_a_result_is_stored_and_leaves_the_spool(sink, store):
    sink.update(update())
    wait_for(lambda: ("run", False) in store.written)
    sink.finish(result())
    assert sink.wait_stored(5)
    assert store.written[-1] == ("run", True)


def test_results_wait_while_the_store_is_away(sink, store):
    store.away = True
    sink.finish(result("one"))
    sink.finish(result("two"))
    wait_for(lambda: sorted(sink.spool.uids()) == ["one", "two"])
    time.sleep(0.1)
    store.away = False
    assert sink.wait_stored(10)
    assert sorted(store.written) == [("one", True), ("two", True)]


def test_results_survive_a_restart(store, tmp_path):
    store.away = True
    first = StoreSink(tmp_path, store.connect)
    first.finish(result())
    first.close()
    assert first.spool.uids() == ["run"]
    store.away = False
    second = StoreSink(tmp_path, store.connect)
    assert second.wait_stored(5)
    second.close()
    assert store.written == [("run", True)]


def test_a_slow_store_holds_nobody_up_and_sees_the_newest(sink, store):
    store.gate.clear()
    begun = time.monotonic()
    for _ in range(100):
        sink.update(update())
    sink.finish(result())
    assert time.monotonic() - begun < 1.0
    store.gate.set()
    assert sink.wait_stored(5)
    assert len(store.written) <= 3


def test_a_result_that_the_store_refuses_is_set_aside(sink, store, tmp_path):
    store.refuses = True
    sink.finish(result())
    wait_for(lambda: (tmp_path / "run.damaged").exists(), 20)
    store.refuses = False
    sink.finish(result("next"))
    wait_for(lambda: store.written == [("next", True)])


def test_without_store_results_stay_in_the_spool(tmp_path):
    sink = StoreSink(tmp_path)
    sink.update(update())
    sink.finish(result())
    sink.close()
    assert sink.spool.uids() == ["run"]
    assert not sink.remote


def test_an_image_that_waits_goes_out_with_newer_figures():
    from dataclasses import replace

    from ptycho_bluesky.streaming.sinks import Picture
    from ptycho_bluesky.streaming.sinks_pva import _with_waiting_image

    final = replace(update("old"), complete=True)
    figures = EdgeUpdate(EdgeStatus(state="ready"), final.counts)
    kept = _with_waiting_image(figures, final)
    assert (kept.mosaic, kept.complete, kept.status.state) == (final.mosaic, True, "ready")
    picture = Picture(final.mosaic.phase_rad, final.mosaic.frame, "new")
    newer = EdgeUpdate(EdgeStatus(), final.counts, picture=picture)
    assert _with_waiting_image(newer, final) is newer  # of another run
    same = replace(newer, picture=replace(picture, run_uid="old"))
    assert _with_waiting_image(same, update("old")).mosaic is not None
    assert not _with_waiting_image(same, final).complete
    assert _with_waiting_image(figures, None) is figures


def test_latest_sink_shows_phase_or_bright_field():
    sink = LatestSink()
    assert sink.image() is None
    content = update()
    sink.update(content)
    shown = sink.image()
    covered = content.mosaic.coverage > 0
    np.testing.assert_array_equal(shown[covered], content.mosaic.phase_rad[covered])
    assert np.isnan(shown[~covered]).all()
    assert sink.wait_for("run", 0.01) is None
    sink.finish(result())
    assert sink.wait_for("run", 0.01).complete


@pytest.mark.slow
def test_into_tiled_and_back(tmp_path):
    from ptycho_bluesky.config import Settings, TiledSettings
    from ptycho_bluesky.demo.processes import free_ports
    from ptycho_bluesky.workflow.server import start_server
    from ptycho_bluesky.workflow.tiled_store import TiledStore

    (port,) = free_ports(1)
    settings = Settings(data_dir=tmp_path, tiled=TiledSettings(uri=f"http://127.0.0.1:{port}"))
    sink = StoreSink(tmp_path / "spool", lambda: TiledStore.connect(settings.tiled), period_s=0.1)
    sink.finish(result("early"))  # the server is not there yet
    wait_for(lambda: sink.spool.uids() == ["early"])
    with start_server(settings):
        sink.update(update("late"))
        assert sink.wait_stored(60)
        with TiledStore.connect(settings.tiled) as store:
            stored = store.read_mosaic("early")
            assert store.has_final_mosaic("early")
        sink.close()
    assert stored.complete
    assert stored.counts == result().counts
    np.testing.assert_array_equal(stored.mosaic.phase_rad, result().mosaic.phase_rad)
    np.testing.assert_array_equal(stored.mosaic.frame_log["frame_index"], np.arange(3))
