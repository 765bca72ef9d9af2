"""Parts without a control layer: clock, file writer, dice, scene."""

from __future__ import annotations

import json
import os
import threading
import time

import h5py
import numpy as np
import pytest

from ptycho_bluesky.errors import InputError, StorageError
from ptycho_bluesky.io.area_detector import read_rows
from ptycho_bluesky.simulation import Experiment, demo_map
from simulated_iocs.clock import FrameClock
from simulated_iocs.faults import CORRUPTIONS, Dice, Faults, corrupt
from simulated_iocs.frames import Exposure, Frame
from simulated_iocs.hdf_writer import FrameFile, HdfWriter
from simulated_iocs.options import BeamlineOptions
from simulated_iocs.plugins import full_file_name
from simulated_iocs.scene import Scene


def frame(number: int) -> Frame:
    return Frame(np.full((16, 16), number, dtype=np.uint16), number, 1e9 + number, 1.0, 2.0, 3.0)


def make_writer(errors: list[str], queue_frames: int = 100, faults: Faults | None = None) -> HdfWriter:
    return HdfWriter(
        (16, 16),
        "uint16",
        faults or Faults(),
        queue_frames=queue_frames,
        on_change=lambda: None,
        on_error=errors.append,
    )


def test_clock_keeps_absolute_time():
    ticks: list[float] = []
    ended = threading.Event()

    def tick(row: int) -> bool:
        ticks.append(time.perf_counter())
        if row == 10:
            time.sleep(0.05)  # ten periods: made up for afterwards
        return True

    started = time.perf_counter()
    clock = FrameClock(tick, range(100), 0.005, ended.set, print)
    clock.start()
    assert ended.wait(5.0)
    assert len(ticks) == clock.next_row == 100
    # Never early; at the end no later than a busy machine delays a wake-up.
    late = np.array(ticks) - started - 0.005 * np.arange(1, 101)
    assert late.min() > -1e-3
    assert np.median(late[50:]) < 0.02


def test_clock_can_be_stopped_in_a_long_exposure():
    ended = threading.Event()
    rows: list[int] = []
    clock = FrameClock(lambda row: rows.append(row) is None, range(5), 30.0, ended.set, print)
    clock.start()
    time.sleep(0.05)
    clock.break_off()
    assert ended.wait(2.0)
    assert rows == []


def test_clock_tells_of_an_error():
    reasons: list[str] = []
    ended = threading.Event()

    def tick(row: int) -> bool:
        raise ValueError("broken")

    FrameClock(tick, range(5), 0.001, ended.set, reasons.append).start()
    assert ended.wait(2.0)
    assert "broken" in reasons[0]


def test_full_queue_drops_and_counts(tmp_path):
    errors: list[str] = []
    writer = make_writer(errors, queue_frames=5)
    writer.start(tmp_path / "a.h5", None, num_capture=0, swmr=True)
    for number in range(200):
        writer.put(frame(number))
    writer.stop()
    stored = read_rows(tmp_path / "a.h5")["unique_id"]
    assert not errors
    assert writer.dropped > 0
    assert writer.captured == len(stored) == 200 - writer.dropped
    assert (np.diff(stored) > 0).all()


def test_writer_stops_by_itself_at_num_capture(tmp_path):
    writer = make_writer([])
    writer.start(tmp_path / "a.h5", None, num_capture=10, swmr=True)
    with pytest.raises(InputError, match="a capture is on"):
        writer.start(tmp_path / "b.h5", None, num_capture=10, swmr=True)
    for number in range(20):
        writer.put(frame(number))
    deadline = time.monotonic() + 5.0
    while writer.open and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not writer.open
    np.testing.assert_array_equal(read_rows(tmp_path / "a.h5")["unique_id"], np.arange(10))
    writer.start(tmp_path / "b.h5", None, num_capture=0, swmr=False)
    writer.put(frame(3))
    writer.stop()
    np.testing.assert_array_equal(read_rows(tmp_path / "b.h5")["unique_id"], [3])


def test_writer_stops_before_the_disk_is_full(tmp_path):
    errors: list[str] = []
    room = [100_000_000]
    writer = HdfWriter(
        (16, 16),
        "uint16",
        Faults(),
        queue_frames=100,
        on_change=lambda: None,
        on_error=errors.append,
        free_bytes=lambda folder: room[0],
    )
    writer.start(tmp_path / "a.h5", None, num_capture=0, swmr=True)
    for number in range(10):
        writer.put(frame(number))
    while writer.captured < 10:
        time.sleep(0.01)
    room[0] = 500_000
    writer.put(frame(10))
    while writer.open:
        time.sleep(0.01)
    assert "MB free" in writer.error
    assert errors == [writer.error]
    with h5py.File(tmp_path / "a.h5") as file:  # closed whole
        assert len(file["/entry/data/data"]) == 10
    with pytest.raises(StorageError, match="MB free"):
        writer.start(tmp_path / "b.h5", None, num_capture=0, swmr=True)


def test_a_file_that_ended_early_is_mended(tmp_path):
    path = tmp_path / "a.h5"
    file = FrameFile(path, (16, 16), "uint16", None, swmr=True)
    file.append([frame(number) for number in range(5)])
    file.flush()
    file.close()
    whole = path.stat().st_size
    os.truncate(path, whole - 50)
    with pytest.raises(InputError, match="cut short"):
        read_rows(path)
    file.mend()
    assert path.stat().st_size == whole


def test_writer_refuses_a_missing_folder(tmp_path):
    with pytest.raises(StorageError, match="must exist"):
        make_writer([]).start(tmp_path / "no" / "a.h5", None, num_capture=0, swmr=True)


def test_dice_are_reproducible_and_fair():
    first, second = Dice(3, 1), Dice(3, 1)
    rolls = [first.roll(0.05) for _ in range(20_000)]
    assert rolls == [second.roll(0.05) for _ in range(20_000)]
    assert 800 < sum(rolls) < 1200
    assert not any(Dice(3, 1).roll(0.0) for _ in range(100))
    assert rolls != [Dice(4, 1).roll(0.05) for _ in range(20_000)]


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corruption_leaves_the_original_alone(kind):
    image = np.arange(256, dtype=np.uint16).reshape(16, 16)
    kept = image.copy()
    flat, shape = corrupt(image, kind)
    np.testing.assert_array_equal(image, kept)
    assert flat.ndim == 1
    spoilt = flat.size != 256 or shape != (16, 16) or not (flat >= 0).all()
    assert spoilt


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("%s%s_%6.6d.h5", "/data/scan_000007.h5"),
        ("%s%s.h5", "/data/scan.h5"),
        ("%s%s_%3.3d.nxs", "/data/scan_007.nxs"),
    ],
)
def test_file_templates(template, expected):
    assert str(full_file_name(template, "/data", "scan", 7)) == expected


def test_scene_takes_an_experiment_file(tmp_path):
    file = tmp_path / "experiment.json"
    sample = demo_map(1, pixel_size_m=Experiment.default(64).geometry.object_pixel_m, seed=4)
    experiment = Experiment.default(64, sample, flux_photons_per_s=1e7)
    file.write_text(json.dumps(experiment.as_dict()))
    scene = Scene(BeamlineOptions(sample=str(file)))
    frames = scene.render(np.zeros((2, 2)), Exposure(0.01, 0.5, 10e3), seed=1)
    expected = experiment.render(np.zeros((2, 2)), 0.01, 0.5, seed=1)
    np.testing.assert_array_equal(frames.image, expected.image)
    assert frames.dark.sum() == 0
    assert scene.monitor(0.01, 0.5) == pytest.approx(1e7 * 0.01 * 0.5)
    with pytest.raises(InputError, match="--size 64"):
        Scene(BeamlineOptions(sample=str(file), size_px=128))


def test_scene_keeps_its_sample_when_the_energy_changes():
    scene = Scene(BeamlineOptions(areas=1))
    before = scene.object_pixel_m
    scene.render(np.zeros((1, 2)), Exposure(0.01, 1.0, 12e3), seed=1)
    assert scene.object_pixel_m == pytest.approx(before * 10 / 12)
    assert scene.geometry is not None
    assert scene.geometry.energy_eV == 12e3


def test_a_test_pattern_has_no_sample_to_change():
    with pytest.raises(InputError, match="test pattern"):
        Scene(BeamlineOptions(sample="pattern")).set_sample("{}")
