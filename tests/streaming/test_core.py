"""Whole runs through the core: what the stream does, what the file holds, and the account that comes out."""

from __future__ import annotations

import time

import numpy as np
import pytest

from ptycho_bluesky.geometry import ObjectFrame
from ptycho_bluesky.inference import LoadedModel, ModelSlot
from ptycho_bluesky.records import FrameOrigin, FrameState, PositionSource
from ptycho_bluesky.stitching import disc_weight
from ptycho_bluesky.streaming.closing import ClosingOptions, read_file
from ptycho_bluesky.streaming.core import EdgeCore

from .conftest import GEOMETRY, SIZE

QUICK = ClosingOptions(settle_s=0.02, drain_s=0.3, wait_s=0.4, grace_s=0.05, poll_s=0.01)


class MeanEngine:
    """Answers the index that the frame holds in its first pixel, so that a mosaic shows who lies where."""

    name = "mean"
    image_shape = patch_shape = (SIZE, SIZE)

    def __init__(self, scale: float = 1e-3, **manifest):
        self.scale = scale
        self.manifest = {"image_shape": [SIZE, SIZE], **manifest}
        self.seen: list[int] = []

    def infer(self, counts, count_scale=None):
        self.seen += counts[:, 0, 0].astype(int).tolist()
        return np.broadcast_to(self.scale * counts[:, :1, :1], (len(counts), SIZE, SIZE)).astype(np.float32)


def model(name="m", **kwargs):
    return LoadedModel(name, MeanEngine(**kwargs), disc_weight((SIZE, SIZE)))


class Bench:
    """A core with its results, driven as the pipeline would."""

    def __init__(self, slot=None, options=QUICK, **kwargs):
        self.results = []
        self.batches = []
        self.unknown = []
        self.core = EdgeCore(
            slot or ModelSlot(model()),
            closing=options,
            wall_clock=False,
            max_batch=8,
            on_batch=lambda run, batch: self.batches.append((run.uid, batch)),
            on_closed=self.results.append,
            on_unknown=lambda name, doc: self.unknown.append(name),
            **kwargs,
        )

    def documents(self, docs, live=True):
        for name, doc in docs:
            self.core.document(name, doc, live)

    def stream(self, frames, size=8):
        frames = list(frames)
        for i in range(0, len(frames), size):
            self.core.frames(frames[i : i + size])
            self.turn()

    def turn(self):
        self.core.tick()
        while self.core.requests:
            self.core.file_reply(read_file(self.core.requests.popleft()))

    def finish(self, count=1, timeout_s=5.0):
        deadline = time.monotonic() + timeout_s
        while len(self.results) < count and time.monotonic() < deadline:
            self.turn()
            time.sleep(0.002)
        assert len(self.results) == count
        return self.results[-1]

    def play(self, run, frames=None, datums=True):
        """A run as it usually goes: documents and frames in their order."""
        chosen = set(map(id, run.frames if frames is None else frames))
        self.documents(run.head)
        for part in run.parts:
            self.documents([part["begun"]])
            self.stream(frame for frame in part["frames"] if id(frame) in chosen)
            self.documents([part["ended"]])
        self.documents(run.resources)
        if datums:
            self.documents(run.datums(run.num_points))
        self.documents([run.stop])
        return self.finish()


def assert_all_there(result, run, **counts):
    """Every frame inferred once, at its own position, with its own image."""
    expected = {"generated": run.num_points, "inferred": run.num_points, "lost": 0, "unaccounted": 0} | counts
    actual = result.counts.as_dict()
    assert {name: actual[name] for name in expected} == expected
    log = result.mosaic.frame_log
    np.testing.assert_array_equal(log["frame_index"], np.arange(run.num_points))
    assert (log["state"] == FrameState.INFERRED).all()
    measured = np.stack([log["position_y_m"], log["position_x_m"]], axis=1)
    np.testing.assert_allclose(measured, run.position_m, atol=1e-15)


def images_joined(bench, run):
    for _, batch in bench.batches:
        np.testing.assert_array_equal(batch.frames.image[:, 0, 0], batch.frames.frame_index)


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("pauses", [(), (13,), (7, 20)])
def test_a_clean_scan(fake_run, reset, pauses):
    run = fake_run(pauses=pauses, reset=reset, first_id=1 if reset else 5000)
    run.write_file()
    bench = Bench()
    result = bench.play(run)
    assert_all_there(result, run, received=40, missed=0, recovered=0, rejected=0, duplicates=0)
    images_joined(bench, run)
    assert result.complete
    assert result.mosaic.model_ids == ("m",)
    assert (result.mosaic.frame_log["position_source"] == PositionSource.ATTRIBUTE).all()
    assert result.mosaic.coverage.max() > 5


@pytest.mark.parametrize("reset", [False, True])
def test_frames_that_the_stream_dropped_come_from_the_file(fake_run, reset):
    run = fake_run(pauses=(11, 9), reset=reset)
    run.write_file()
    bench = Bench()
    kept = [frame for i, frame in enumerate(run.frames) if i % 5]
    result = bench.play(run, kept)
    assert_all_there(result, run, received=32, missed=8, recovered=8)
    images_joined(bench, run)
    assert (result.mosaic.frame_log["origin"][::5] == FrameOrigin.FILE).all()


def test_frames_that_the_file_writer_dropped_are_there_from_the_stream(fake_run):
    run = fake_run(pauses=(20,), reset=True)
    keep = np.random.default_rng(0).random(40) > 0.2
    run.write_file(keep)
    bench = Bench()
    result = bench.play(run, [frame for i, frame in enumerate(run.frames) if keep[i] or i % 2], datums=False)
    assert result.counts.lost == sum(not k and i % 2 == 0 for i, k in enumerate(keep)) > 0
    assert result.counts.unaccounted == 0
    images_joined(bench, run)


def test_an_edge_that_starts_half_way_recovers_the_rest(fake_run):
    run = fake_run(pauses=(15,))
    run.write_file()
    bench = Bench()
    bench.stream(run.frames[20:25])  # frames ahead of every document
    bench.documents([run.parts[1]["ended"], *run.datums(20)])
    assert {"event", "stream_datum"} <= set(bench.unknown)
    assert len(bench.core.held) == 5
    docs = run.all_documents()  # the journal, found meanwhile
    bench.documents(docs[:-1])
    bench.stream(run.frames[25:])
    bench.documents(docs[-1:])
    result = bench.finish()
    assert_all_there(result, run, received=20, missed=20, recovered=20)


def test_every_document_twice_changes_nothing(fake_run):
    run = fake_run(pauses=(15,))
    run.write_file()
    bench = Bench()
    for doc in run.all_documents()[:-1]:
        bench.documents([doc, doc])
    bench.stream(run.frames)
    bench.documents([run.stop, run.stop])
    assert_all_there(bench.finish(), run, received=40)
    bench.documents(run.all_documents())  # and again after it was closed
    bench.turn()
    assert len(bench.results) == 1
    assert bench.core.bad_documents == 0


def test_duplicates_are_counted_and_used_once(fake_run):
    run = fake_run()
    run.write_file()
    bench = Bench()
    twice = [frame for frame in run.frames for _ in range(2)]
    bench.documents([*run.head, run.parts[0]["begun"]])
    bench.stream(twice)
    bench.documents([run.parts[0]["ended"], *run.resources, *run.datums(40), run.stop])
    assert_all_there(bench.finish(), run, received=40, duplicates=40)


@pytest.mark.parametrize("kind", ["shape", "nan", "negative", "fault"])
def test_a_corrupt_frame_is_recovered_from_the_file_or_rejected(fake_run, kind):
    run = fake_run(dtype=np.float32)
    file_image = run.image.copy()
    file_image[7] = np.nan  # frame 7 is corrupt everywhere
    run.write_file(image=file_image)
    frames = list(run.frames)
    bad = {
        "shape": np.zeros((SIZE, SIZE - 1), np.float32),
        "nan": np.full((SIZE, SIZE), np.nan, np.float32),
        "negative": np.full((SIZE, SIZE), -1, np.float32),
        "fault": np.zeros((0, 0), np.float32),
    }[kind]
    for i in (3, 7):
        frames[i] = frames[i]._replace(image=bad, fault="truncated" if kind == "fault" else "")
    bench = Bench()
    bench.documents([*run.head, run.parts[0]["begun"]])
    bench.stream(frames)
    bench.documents([run.parts[0]["ended"], *run.resources, *run.datums(40), run.stop])
    result = bench.finish()
    counts = result.counts
    assert (counts.received, counts.missed, counts.recovered, counts.rejected) == (38, 2, 1, 1)
    assert (counts.inferred, counts.lost, counts.unaccounted) == (39, 0, 0)
    assert list(result.metadata["rejected_by_reason"].values()) == [1]
    assert "file" in next(iter(result.metadata["rejected_by_reason"]))
    assert result.mosaic.frame_log["state"][7] == FrameState.REJECTED


def test_provisional_positions_are_put_right_by_the_file(fake_run):
    run = fake_run(positions_in_frames=False, offset_px=3.0)
    run.write_file()
    bench = Bench()
    result = bench.play(run)
    assert_all_there(result, run, received=40)
    assert (result.mosaic.frame_log["position_source"] == PositionSource.FILE).all()
    assert result.metadata["patches_moved"] == 40
    direct = fake_run(offset_px=3.0)
    direct.write_file()
    reference = Bench().play(direct)
    a, b = _on_one_canvas(result.mosaic, reference.mosaic)
    np.testing.assert_allclose(a, b, atol=1e-3)


def test_provisional_positions_are_put_right_while_the_scan_runs(fake_run):
    run = fake_run(positions_in_frames=False, offset_px=3.0)
    run.write_file()
    bench = Bench()
    bench.documents([*run.head, run.parts[0]["begun"]])
    bench.stream(run.frames[:30])
    bench.documents([*run.resources, *run.datums(20)])
    bench.turn()
    state = bench.core.runs[run.uid]
    assert state.image.moved >= 20
    assert state.ledger.position_source(np.arange(20)).min() == PositionSource.FILE


@pytest.mark.parametrize("in_frames", [True, False])
def test_solved_offsets_make_neighbours_agree_and_say_how_far_they_led(fake_run, in_frames):
    run = fake_run(positions_in_frames=in_frames, offset_px=3.0)
    run.write_file()
    plain = Bench().play(run)
    solved = Bench(solve_offsets=True).play(run)  # each patch of this model has a constant of its own
    assert_all_there(solved, run, received=40)
    covered = plain.mosaic.coverage > 1
    assert "offset_drift" not in plain.metadata
    assert solved.metadata["offset_drift"]["patches"] == 40
    assert solved.metadata["offset_drift"]["rms_rad"] > 0.01
    assert solved.mosaic.variance[covered].max() < 1e-5 < plain.mosaic.variance[covered].max()


def test_a_small_deviation_from_the_plan_moves_nothing(fake_run):
    run = fake_run(positions_in_frames=False, offset_px=0.3)
    run.write_file()
    result = Bench().play(run)
    assert_all_there(result, run)
    assert result.metadata["patches_moved"] == 0


def test_without_any_position_frames_wait_for_the_file(fake_run):
    run = fake_run(positions_in_frames=False)
    run.write_file()
    run.head = [entry for entry in run.head if not entry[1].get("uid", "").startswith(run.uid + "-trajectory")]
    result = Bench().play(run)
    assert_all_there(result, run, received=40)
    assert result.mosaic.coverage.max() > 5


def test_a_frame_without_position_anywhere_is_flagged_not_guessed(fake_run):
    run = fake_run(positions_in_frames=False)
    run.position_m = np.full((40, 2), np.nan)
    run.write_file()
    run.head = [entry for entry in run.head if not entry[1].get("uid", "").startswith(run.uid + "-trajectory")]
    result = Bench().play(run)
    assert (result.counts.inferred, result.counts.lost) == (40, 0)
    assert (result.mosaic.frame_log["position_source"] == PositionSource.NONE).all()
    assert result.mosaic.coverage.max() == 0


def test_before_any_model_there_are_maps_and_nothing_is_lost(fake_run):
    run = fake_run()
    run.write_file()
    result = Bench(ModelSlot()).play(run)
    assert_all_there(result, run, received=40)
    assert result.mosaic.model_ids == ()
    assert (result.mosaic.frame_log["model"] == -1).all()
    assert result.mosaic.coverage.max() == 0
    bright = result.mosaic.maps["bright_field"]
    assert bright.max() == pytest.approx(run.image.sum(axis=(1, 2)).mean(), rel=0.2)


def test_a_model_is_exchanged_in_the_middle_of_a_scan(fake_run):
    run = fake_run()
    run.write_file()
    slot = ModelSlot()
    bench = Bench(slot)
    bench.documents([*run.head, run.parts[0]["begun"]])
    bench.stream(run.frames[:8])
    slot.swap(model("first"))
    bench.stream(run.frames[8:24])
    slot.swap(model("second"))
    bench.stream(run.frames[24:])
    bench.documents([run.parts[0]["ended"], *run.resources, *run.datums(40), run.stop])
    result = bench.finish()
    assert_all_there(result, run)
    assert result.mosaic.model_ids == ("first", "second")
    assert result.mosaic.frame_log["model"].tolist() == [-1] * 8 + [0] * 16 + [1] * 16


@pytest.mark.parametrize("manifest", [{"image_shape": [32, 32]}, {"pixel_size_m": 2 * GEOMETRY.object_pixel_m}])
def test_a_model_of_another_geometry_is_not_used(fake_run, manifest):
    run = fake_run()
    run.write_file()
    result = Bench(ModelSlot(model(**manifest))).play(run)
    assert_all_there(result, run)
    assert result.mosaic.model_ids == ()
    assert "geometry" in result.metadata["model_errors"]["m"]


def test_a_model_that_fails_does_not_stop_the_scan(fake_run):
    run = fake_run()
    run.write_file()
    failing = model()
    failing.engine.infer = lambda counts, count_scale=None: (_ for _ in ()).throw(RuntimeError("out of memory"))
    result = Bench(ModelSlot(failing)).play(run)
    assert_all_there(result, run)
    assert "out of memory" in result.metadata["model_errors"]["m"]


def test_an_aborted_scan_then_another_one(fake_run):
    first = fake_run(num_points=40, pauses=(12,))
    first.parts = first.parts[:1]
    first.frames = first.frames[:12]
    first.num_points = 12
    first.image, first.position_m = first.image[:12], first.position_m[:12]
    first.write_file()
    bench = Bench()
    assert_all_there(bench.play(first), first)
    second = fake_run(start_s=first.start_s + 100, first_id=13)
    second.write_file()
    bench.documents(second.head)
    bench.documents([second.parts[0]["begun"]])
    bench.stream(second.frames)
    bench.documents([second.parts[0]["ended"], *second.resources, second.stop])
    assert_all_there(bench.finish(2), second)


def test_a_session_that_died_without_a_stop_document(fake_run):
    """The next run closes the one before; what its file holds is counted and inferred."""
    died = fake_run(num_points=20)
    died.write_file()
    bench = Bench()
    bench.documents([*died.head, died.parts[0]["begun"], *died.resources])
    bench.stream(died.frames[:10])
    alive = fake_run(start_s=died.start_s + 100)
    alive.write_file()
    bench.documents([*alive.head, alive.parts[0]["begun"]])
    assert_all_there(bench.finish(1), died, received=10, recovered=10)
    bench.stream(alive.frames)
    bench.documents([alive.parts[0]["ended"], *alive.resources, *alive.datums(40), alive.stop])
    assert_all_there(bench.finish(2), alive, received=40)


def test_the_tail_of_one_run_and_the_head_of_the_next_do_not_mix(fake_run):
    """Counter reset at arm: both runs have ids 1…40; the first one's tail arrives after the second has begun."""
    first = fake_run(reset=True)
    second = fake_run(reset=True, start_s=first.start_s + 100)
    first.write_file()
    second.write_file()
    bench = Bench(options=ClosingOptions(settle_s=5.0, drain_s=5.0, wait_s=1.0, grace_s=0.05, poll_s=0.01))
    bench.documents([*first.head, first.parts[0]["begun"]])
    bench.stream(first.frames[:30])
    bench.documents([first.parts[0]["ended"], *first.resources, first.stop])
    bench.documents([*second.head, second.parts[0]["begun"]])
    bench.stream([frame for pair in zip(first.frames[30:], second.frames[:10], strict=True) for frame in pair])
    bench.stream(second.frames[10:])
    bench.documents([second.parts[0]["ended"], *second.resources, second.stop])
    bench.finish(2)
    assert_all_there(bench.results[0], first, received=40)
    assert_all_there(bench.results[1], second, received=40)
    images_joined(bench, first)


def test_a_long_queue_is_worked_off_before_the_file_is_read(fake_run):
    """Frames of a stopped run keep coming for longer than the drain time: none of them is read from the file."""
    run = fake_run()
    run.write_file()
    bench = Bench(options=ClosingOptions(settle_s=5.0, drain_s=0.1, wait_s=1.0, grace_s=0.05, poll_s=0.01))
    bench.documents([*run.head, run.parts[0]["begun"], run.parts[0]["ended"], *run.resources, run.stop])
    for i in range(0, 40, 4):
        bench.core.frames(run.frames[i : i + 4])
        bench.core.tick(stream_empty=False)
        time.sleep(0.04)
    assert_all_there(bench.finish(), run, received=40, recovered=0)


def test_the_last_frame_of_the_run_before_is_no_frame_of_this_one(fake_run):
    run = fake_run(reset=True)
    run.write_file()
    stale = run.frames[-1]._replace(timestamp_s=run.start_s - 60)
    bench = Bench()
    bench.documents([*run.head, run.parts[0]["begun"]])
    bench.stream([stale])
    bench.stream(run.frames)
    bench.documents([run.parts[0]["ended"], *run.resources, run.stop])
    assert_all_there(bench.finish(), run, received=40, duplicates=0)


@pytest.mark.parametrize("skew_s", [-300.0, 300.0])
def test_a_detector_whose_clock_is_minutes_off(fake_run, skew_s):
    run = fake_run(reset=True, pauses=(20,))
    run.frames = [f._replace(timestamp_s=f.timestamp_s + skew_s, arrival_s=f.timestamp_s + 0.005) for f in run.frames]
    run.parts[0]["frames"], run.parts[1]["frames"] = run.frames[:20], run.frames[20:]
    run.write_file()
    result = Bench().play(run)
    assert_all_there(result, run, received=40)


def test_a_file_that_is_not_there_costs_only_what_the_stream_missed(fake_run):
    run = fake_run()
    bench = Bench()
    result = bench.play(run, run.frames[:-3])
    assert (result.counts.inferred, result.counts.lost, result.counts.unaccounted) == (37, 3, 0)


def test_a_file_whose_rows_come_late_is_waited_for(fake_run):
    run = fake_run()
    run.write_file(np.arange(40) < 20)
    bench = Bench(options=ClosingOptions(settle_s=0.01, wait_s=5.0, grace_s=0.05, poll_s=0.01))
    bench.documents([*run.head, run.parts[0]["begun"], run.parts[0]["ended"]])
    bench.documents([*run.resources, *run.datums(40), run.stop])
    for _ in range(50):
        bench.turn()
        time.sleep(0.002)
    assert not bench.results
    run.write_file()
    assert_all_there(bench.finish(), run, received=0, recovered=40)


def test_catching_up_a_finished_run_takes_no_frame_of_the_stream(fake_run):
    old, new = fake_run(), fake_run(start_s=2_000_000_000.0)
    old.write_file()
    new.write_file()
    bench = Bench()
    bench.documents([*new.head, new.parts[0]["begun"]])
    bench.documents(old.all_documents(), live=False)
    bench.stream(new.frames)
    bench.documents([new.parts[0]["ended"], *new.resources, new.stop])
    bench.finish(2)
    by_uid = {result.mosaic.run_uid: result for result in bench.results}
    assert_all_there(by_uid[old.uid], old, received=0, recovered=40)
    assert_all_there(by_uid[new.uid], new, received=40)


@pytest.mark.parametrize(
    ("name", "doc"),
    [
        ("start", {}),
        ("start", {"uid": "x", "ptycho": {"geometry": {"energy_eV": -1, "distance_m": 1,
                                                       "detector_pixel_m": 1, "num_px": 8}}}),
        ("event", {"descriptor": "run-0-segments", "data": {"segment_index": 0}}),
        ("event", {"descriptor": "run-0-segments", "data": {"segment_index": 5, "first_unique_id": 1,
                                                             "first_frame_index": 0, "num_frames": -4}}),
        ("event", {"descriptor": "run-0-segment_ends", "data": {"segment_index": 9, "frames_generated": 1}}),
        ("event", {"descriptor": "run-0-trajectory", "data": {"planned_y_m": "a", "planned_x_m": 3}}),
        ("descriptor", {"run_start": "run-0"}),
        ("stream_resource", {"run_start": "run-0", "uid": "r", "data_key": "det_image", "uri": "http://elsewhere/x"}),
        ("stream_datum", {"stream_resource": "run-0-image", "descriptor": "run-0-primary"}),
        ("event_page", {"nonsense": 1}),
    ],
)  # fmt: skip
def test_a_bad_document_is_counted_and_skipped(fake_run, name, doc):
    run = fake_run()
    run.write_file()
    bench = Bench()
    bench.documents([*run.head, run.parts[0]["begun"], *run.resources])
    bench.core.document(name, doc)
    assert bench.core.bad_documents == 1
    bench.stream(run.frames)
    bench.documents([run.parts[0]["ended"], run.stop])
    assert_all_there(bench.finish(), run, received=40)


def test_runs_of_others_are_ignored(fake_run):
    bench = Bench()
    bench.documents([("start", {"uid": "other"}), ("stop", {"run_start": "other"})])
    assert not bench.unknown
    assert not bench.core.runs


def test_frames_inside_events(fake_run):
    """A slow step scan of a detector without file or pvAccess."""
    run = fake_run(num_points=6)
    bench = Bench()
    bench.documents([*run.head, run.parts[0]["begun"]])
    for i in range(6):
        data = {"det_image": run.image[i].tolist(), "det_position_y_m": run.position_m[i, 0],
                "det_position_x_m": run.position_m[i, 1], "det_unique_id": i + 1}  # fmt: skip
        bench.documents([("event", {"descriptor": f"{run.uid}-primary", "data": data, "time": run.start_s + 2 + i})])
    bench.documents([run.parts[0]["ended"], run.stop])
    result = bench.finish()
    assert_all_there(result, run, received=6)
    assert (result.mosaic.frame_log["origin"] == FrameOrigin.EVENT).all()


def test_unknown_geometry_goes_by_object_pixels(fake_run):
    run = fake_run()
    run.head[0][1]["ptycho"].update(geometry=None, pixel_size_m=None)
    scale = 1 / GEOMETRY.object_pixel_m
    run.position_m = run.position_m * scale
    run.parts[0]["frames"] = run.frames = [
        f._replace(position_m=tuple(p)) for f, p in zip(run.frames, run.position_m, strict=True)
    ]
    run.head = [entry for entry in run.head if not entry[1].get("uid", "").startswith(run.uid + "-trajectory")]
    run.write_file()
    result = Bench().play(run)
    assert_all_there(result, run)
    assert result.mosaic.frame.pixel_size_m == 1.0
    assert result.geometry is None


def _on_one_canvas(a, b):
    """Phases of two mosaics where both are covered."""
    frame = ObjectFrame.from_dict(b.frame.as_dict())
    shift = np.round(frame.to_px([a.frame.origin_m])[0]).astype(int)
    rows, cols = np.nonzero(a.coverage > 0)
    inside = (
        (rows + shift[0] >= 0)
        & (rows + shift[0] < b.frame.shape[0])
        & (cols + shift[1] >= 0)
        & (cols + shift[1] < b.frame.shape[1])
    )
    rows, cols = rows[inside], cols[inside]
    both = b.coverage[rows + shift[0], cols + shift[1]] > 0
    assert both.mean() > 0.95
    return a.phase_rad[rows, cols][both], b.phase_rad[rows + shift[0], cols + shift[1]][both]
