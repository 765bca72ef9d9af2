"""The loader gives what is in the files, in the planned order, with and without buffer, resumed or not."""

from __future__ import annotations

import subprocess
import sys
import threading

import h5py
import hdf5plugin
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.training.loading import DiskLoader, FrameStore, Schedule, merge_ranges
from ptycho_bluesky.training.loading.torch_data import as_data_loader

SIZES = (37, 5, 60)
TOTAL = sum(SIZES)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Frames whose pixels and labels are their number."""
    folder, first, paths = tmp_path_factory.mktemp("corpus"), 0, []
    for number, size in enumerate(SIZES):
        value = np.arange(first, first + size)
        paths.append(folder / f"{number}.h5")
        with h5py.File(paths[-1], "w") as file:
            image = np.broadcast_to(value[:, None, None], (size, 4, 4)).astype(np.uint16)
            file.create_dataset("image", data=image, chunks=(1, 4, 4), compression="gzip")
            file["phase_rad"] = np.broadcast_to(value[:, None, None], (size, 2, 2)).astype(np.float32)
        first += size
    return paths


@pytest.fixture
def store(files):
    opened = FrameStore(files)
    yield opened
    opened.close()


@given(st.lists(st.integers(0, 200), unique=True).map(sorted), st.integers(0, 5))
def test_ranges_hold_every_row_and_no_long_gap(rows, max_gap):
    rows = np.array(rows, dtype=np.int64)
    ranges = merge_ranges(rows, max_gap)
    covered = np.concatenate([np.arange(a, b) for a, b in ranges]) if len(ranges) else rows
    assert set(rows.tolist()) <= set(covered.tolist())
    assert len(covered) == len(set(covered.tolist()))
    assert (ranges[1:, 0] - ranges[:-1, 1] > max_gap).all()
    if max_gap == 0:
        np.testing.assert_array_equal(covered, rows)


def test_rows_out_of_order_are_refused():
    with pytest.raises(InputError, match="rise"):
        merge_ranges(np.array([3, 3, 4]))


@pytest.mark.parametrize("max_gap", [0, 3])
def test_the_store_reads_across_files(files, max_gap):
    store = FrameStore(files, max_gap=max_gap)
    rows = np.array([0, 1, 2, 35, 36, 37, 41, 42, 44, 101])
    arrays = store.read(rows)
    np.testing.assert_array_equal(arrays["image"][:, 1, 2], rows)
    np.testing.assert_array_equal(arrays["phase_rad"][:, 0, 1], rows)
    assert store.frames_read == len(rows)
    store.close()


LAYOUTS = {
    "contiguous": {},
    "chunks": {"chunks": (1, 24, 24)},
    "blosc": {"chunks": (1, 24, 24), **hdf5plugin.Blosc(cname="lz4", shuffle=hdf5plugin.Blosc.BITSHUFFLE)},
    "zstd": {"chunks": (1, 24, 24), **hdf5plugin.Blosc(cname="zstd")},
    "gzip": {"chunks": (1, 24, 24), "compression": "gzip"},
    "several rows a chunk": {"chunks": (4, 24, 24), **hdf5plugin.Blosc()},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_reads_as_hdf5_reads_it(tmp_path, layout):
    rng = np.random.default_rng(3)
    image = rng.poisson(2.0, (30, 24, 24)).astype(np.uint16)
    image[7] = rng.integers(0, 65536, (24, 24))  # does not shrink: stored as it is
    phase = rng.normal(size=(30, 24, 24)).astype(np.float32)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, value in (("image", image), ("phase_rad", phase)):
            dataset = file.create_dataset(name, value.shape, value.dtype, **LAYOUTS[layout])
            dataset[: 20 if layout == "blosc" else 30] = value[: 20 if layout == "blosc" else 30]
    store = FrameStore([tmp_path / "a.h5"])
    rows = np.array([0, 1, 5, 6, 7, 8, 20, 29])
    arrays = store.read(rows)
    store.close()
    if layout == "blosc":  # rows that were never written are zeros
        image[20:], phase[20:] = 0, 0
    np.testing.assert_array_equal(arrays["image"], image[rows])
    np.testing.assert_array_equal(arrays["phase_rad"], phase[rows])


def test_neighbours_are_read_at_once_and_a_cut_file_is_named(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name in ("image", "phase_rad"):
            file.create_dataset(name, data=np.ones((64, 16, 16), np.float32), chunks=(1, 16, 16), **hdf5plugin.Blosc())
    store = FrameStore([tmp_path / "a.h5"])
    store.read(np.arange(0, 64, 2))
    assert store.calls == 1
    content = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "a.h5").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"a\.h5"):
        store.read(np.arange(64))
    store.close()


@pytest.mark.parametrize("limit", [1, 500, 5000])
def test_blocks_smaller_than_rows_and_larger(tmp_path, monkeypatch, limit):
    monkeypatch.setattr("ptycho_bluesky.training.loading.chunks.BLOCK_BYTES", limit)
    value = np.random.default_rng(0).integers(0, 60000, (20, 16, 16)).astype(np.uint16)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name in ("image", "phase_rad"):
            file.create_dataset(name, data=value, chunks=(1, 16, 16), **hdf5plugin.Blosc())
    store = FrameStore([tmp_path / "a.h5"])
    rows = np.array([0, 1, 2, 9, 10, 19])
    np.testing.assert_array_equal(store.read(rows)["phase_rad"], value[rows])
    store.close()


def test_more_files_than_may_be_open(tmp_path, monkeypatch):
    monkeypatch.setattr("ptycho_bluesky.training.loading.ranges.MAX_OPEN_FILES", 2)
    paths = [tmp_path / f"{number}.h5" for number in range(7)]
    for number, path in enumerate(paths):
        with h5py.File(path, "w") as file:
            file["image"] = np.full((3, 2, 2), number, np.uint16)
            file["phase_rad"] = np.full((3, 2, 2), number, np.float32)
    store = FrameStore(paths, rows=np.array([0, 4, 5, 12, 20]))
    assert len(store) == 5
    for _ in range(2):
        np.testing.assert_array_equal(store.read(np.arange(5))["image"][:, 0, 0], [0, 1, 1, 4, 6])
        assert len(store._open) <= 2
    np.testing.assert_array_equal(store.file_of(np.array([1, 4])), [1, 6])
    store.close()


def test_rows_outside_the_store_are_refused(store):
    with pytest.raises(InputError, match="102"):
        store.read(np.array([TOTAL]))


def test_files_that_differ_are_refused(files, tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["image"], file["phase_rad"] = np.zeros((3, 8, 8), np.uint16), np.zeros((3, 2, 2), np.float32)
    with pytest.raises(InputError, match="geometry by itself"):
        FrameStore([*files, tmp_path / "other.h5"])


@pytest.mark.parametrize("policy", ["pin", "clairvoyant"])
@pytest.mark.parametrize("buffer_frames", [0, 20, TOTAL])
@pytest.mark.parametrize("world_size", [1, 2])
def test_batches_are_the_planned_frames(files, policy, buffer_frames, world_size):
    schedule = Schedule(TOTAL, 16, world_size, buffer_frames, policy=policy)
    batches = list(zip(*(_numbers(files, schedule, rank) for rank in range(world_size)), strict=True))
    assert len(batches) == 3 * schedule.steps_per_epoch
    for number, ranks in enumerate(batches):
        epoch, index = divmod(number, schedule.steps_per_epoch)
        expected = list(schedule.global_batches(epoch))[index]
        np.testing.assert_array_equal(np.sort(np.concatenate(ranks)), np.sort(expected))


def _numbers(files, schedule, rank):
    store = FrameStore(files)
    loader = DiskLoader(store, schedule, rank, 3, read_ahead=3)
    for batch in loader:
        np.testing.assert_array_equal(batch.arrays["image"][:, 0, 0], batch.step.rows)
        np.testing.assert_array_equal(batch.arrays["phase_rad"][:, 0, 0], batch.step.rows)
        yield batch.step.rows
    assert loader.counts.frames == loader.counts.held + loader.counts.read
    assert store.frames_read == loader.counts.read
    store.close()


def test_reads_from_disk_are_as_few_as_can_be(store):
    schedule = Schedule(TOTAL, 10, 1, 80)
    loader = DiskLoader(store, schedule, 0, 4)
    assert sum(len(batch.step.rows) for batch in loader) == 4 * TOTAL
    assert store.frames_read == TOTAL + 3 * (TOTAL - 80)


@pytest.mark.parametrize("policy", ["pin", "clairvoyant"])
def test_a_resumed_loader_goes_on_with_the_same_batches(files, policy):
    schedule = Schedule(TOTAL, 16, 1, 30, policy=policy)
    stores = FrameStore(files), FrameStore(files)
    whole = [batch.arrays["image"][:, 0, 0] for batch in DiskLoader(stores[0], schedule, 0, 3)]
    resumed = [batch.arrays["image"][:, 0, 0] for batch in DiskLoader(stores[1], schedule, 0, 3, first_step=9)]
    assert len(resumed) == len(whole) - 9
    for ours, theirs in zip(resumed, whole[9:], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for store in stores:
        store.close()


def test_a_loop_that_ends_early_leaves_no_thread(store):
    before = threading.active_count()
    iterator = iter(DiskLoader(store, Schedule(TOTAL, 4), 0, 3, read_ahead=2))
    next(iterator)
    iterator.close()
    assert threading.active_count() == before


def test_an_error_of_reading_reaches_the_loop(store):
    store.close()
    with pytest.raises(InputError, match="closed"):
        list(DiskLoader(store, Schedule(TOTAL, 4), 0, 1))


def test_a_schedule_of_another_corpus_is_refused(store):
    with pytest.raises(InputError, match=f"{TOTAL}"):
        DiskLoader(store, Schedule(7, 4))


def test_torch_loops_take_it(store):
    loader = DiskLoader(store, Schedule(TOTAL, 25), 0, 1)
    batches = list(as_data_loader(loader))
    assert len(batches) == len(loader)
    np.testing.assert_array_equal(batches[0]["image"][:, 0, 0], batches[0]["rows"])
    assert batches[0]["gradient_weight"] == 1.0
    assert batches[0]["phase_rad"].dtype == torch.float32


def test_weighted_gradients_of_unequal_ranks_are_those_of_the_global_batch(files):
    """Two ranks, one after the other, against a plain sampler: the same weights after three epochs."""
    schedule = Schedule(TOTAL, 16, 2, 30, seed=3)
    plain = torch.nn.Linear(16, 4, dtype=torch.float64)
    ours = torch.nn.Linear(16, 4, dtype=torch.float64)
    ours.load_state_dict(plain.state_dict())
    stores = [FrameStore(files) for _ in range(3)]
    ranks = zip(*(DiskLoader(stores[rank], schedule, rank, 3) for rank in (0, 1)), strict=True)
    everything = stores[2].read(np.arange(TOTAL))
    optimisers = [torch.optim.SGD(model.parameters(), lr=1e-3) for model in (plain, ours)]
    for number, pair in enumerate(ranks):
        epoch, index = divmod(number, schedule.steps_per_epoch)
        rows = list(schedule.global_batches(epoch))[index]
        _loss(plain, {name: array[rows] for name, array in everything.items()}).backward()
        for batch in pair:
            if len(batch.step.rows):
                # An average over the two ranks is what DistributedDataParallel makes of their gradients.
                (_loss(ours, batch.arrays) * batch.gradient_weight(2) / 2).backward()
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
    torch.testing.assert_close(ours.weight, plain.weight, rtol=1e-12, atol=1e-12)
    assert not torch.equal(ours.weight, torch.zeros_like(ours.weight))
    for store in stores:
        store.close()


def _loss(model, arrays):
    image = torch.from_numpy(arrays["image"].astype(np.float64) / TOTAL).flatten(1)
    label = torch.from_numpy(arrays["phase_rad"].astype(np.float64) / TOTAL).flatten(1)
    return (model(image) - label).square().mean()


WORKERS = """
import sys
import numpy as np, torch
from ptycho_bluesky.training.loading import DiskLoader, FrameStore, Schedule, chunks
from ptycho_bluesky.training.loading.torch_data import PlannedBatches

chunks.BLOCK_BYTES = 4000
store = FrameStore([sys.argv[1]])
whole = store.read(np.arange(64))["image"].copy()
batches = PlannedBatches(DiskLoader(store, Schedule(64, 16)))
loader = torch.utils.data.DataLoader(
    batches, batch_size=None, num_workers=int(sys.argv[2]), multiprocessing_context="fork", timeout=30
)
seen = {int(row): image for batch in loader for row, image in zip(batch["rows"], batch["image"])}
assert sorted(seen) == list(range(64))
assert all(np.array_equal(image, whole[row]) for row, image in seen.items())
"""
"""In a process of its own: a copy of one that has spoken with EPICS may crash."""


@pytest.mark.parametrize(("workers", "refusal"), [(1, ""), (2, "num_workers = 2")])
def test_a_store_that_was_read_serves_one_forked_worker_and_no_more(tmp_path, workers, refusal):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name in ("image", "phase_rad"):
            value = np.random.default_rng(0).integers(0, 60000, (64, 16, 16)).astype(np.uint16)
            file.create_dataset(name, data=value, chunks=(1, 16, 16), **hdf5plugin.Blosc())
    done = subprocess.run(
        [sys.executable, "-c", WORKERS, str(tmp_path / "a.h5"), str(workers)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode != 0) == bool(refusal), done.stderr
    assert refusal in done.stderr
