"""Streams past the page cache give what HDF5 gives, on every file system, and name what is damaged."""

from __future__ import annotations

import errno
import gc
import os
import threading
import time
import traceback
import weakref

import h5py
import hdf5plugin
import numpy as np
import pytest

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.training.label_files import rounded, write_frames
from ptycho_bluesky.training.loading import FrameStore, chunks
from ptycho_bluesky.training.loading.blocks import BlockFile

ROWS = np.arange(1, 200, 2)
BLOSC = {
    "bits": hdf5plugin.Blosc(cname="lz4", shuffle=hdf5plugin.Blosc.BITSHUFFLE),
    "bytes": hdf5plugin.Blosc(cname="zstd", shuffle=hdf5plugin.Blosc.SHUFFLE),
}


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """A file of 200 frames that takes many blocks, and its content."""
    monkeypatch.setattr("ptycho_bluesky.training.loading.chunks.BLOCK_BYTES", 20_000)
    rng = np.random.default_rng(1)
    content = {
        "image": rng.poisson(3.0, (200, 32, 32)).astype(np.uint16),
        "phase_rad": rng.normal(size=(200, 32, 32)).astype(np.float32),
    }
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for (name, value), options in zip(content.items(), BLOSC.values(), strict=True):
            dataset = file.create_dataset(name, value.shape, value.dtype, chunks=(1, 32, 32), **options)
            for row, each in enumerate(value):
                dataset[row] = each
    return tmp_path / "a.h5", content


def _read(path):
    store = FrameStore([path])
    try:
        return store.read(ROWS), store.calls
    finally:
        store.close()


def _refuse_opening(monkeypatch):
    real = os.open

    def refusing(path, flags, *more):
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no such requests here")
        return real(path, flags, *more)

    monkeypatch.setattr(os, "open", refusing)


def _refuse_reading(monkeypatch):
    real, direct = os.preadv, set()
    really_open = os.open

    def opening(path, flags, *more):
        found = really_open(path, flags, *more)
        if flags & os.O_DIRECT:
            direct.add(found)
        return found

    def refusing(descriptor, buffers, offset):
        if descriptor in direct:
            raise OSError(errno.EINVAL, "not of this size")
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(os, "open", opening)
    monkeypatch.setattr(os, "preadv", refusing)


def _without_compiled(monkeypatch):
    monkeypatch.setattr("ptycho_bluesky.training.loading.unpacking._BOUND", False)


@pytest.mark.parametrize("change", [None, _refuse_opening, _refuse_reading, _without_compiled])
def test_streams_give_what_hdf5_gives(corpus, monkeypatch, change):
    path, content = corpus
    streams = []
    real = BlockFile.streamed
    monkeypatch.setattr(
        BlockFile, "streamed", lambda self, spans, *more: streams.append(spans) or real(self, spans, *more)
    )
    if change is not None:
        change(monkeypatch)
    before = threading.active_count()
    arrays, calls = _read(path)
    assert [len(spans) for spans in streams] == [calls]
    assert calls > 10
    for name, value in content.items():
        np.testing.assert_array_equal(arrays[name], value[ROWS])
    assert threading.active_count() == before


@pytest.mark.parametrize("rewritten", [False, True])
def test_a_table_in_the_file_is_taken_while_it_is_right(tmp_path, monkeypatch, rewritten):
    rng = np.random.default_rng(2)
    phase = rng.normal(size=(60, 32, 32)).astype(np.float32)
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", rdcc_nbytes=0) as file:
        write_frames(file, {"image": rng.poisson(3.0, (60, 32, 32)).astype(np.uint16), "phase_rad": phase})
    phase = rounded("phase_rad", phase)
    if rewritten:  # as a tool does that copies what it finds: the rows lie elsewhere then
        with h5py.File(path) as old, h5py.File(tmp_path / "b.h5", "w") as new:
            new["more"] = np.zeros(5000)
            for name in old:
                old.copy(name, new)
        path = tmp_path / "b.h5"
    real, taken = chunks._stored_table, []
    monkeypatch.setattr(chunks, "_stored_table", lambda dataset: taken.append(real(dataset)) or taken[-1])
    store = FrameStore([path])
    np.testing.assert_array_equal(store.read(np.arange(60))["phase_rad"], phase)
    store.close()
    assert [table is None for table in taken] == [rewritten] * 2
    with h5py.File(path) as file:
        stored, found = file["row_table/phase_rad"][()], chunks.row_table(file["phase_rad"])
    assert np.array_equal(stored[:, 0], found.first) is not rewritten


def test_rows_far_apart_are_announced(corpus, monkeypatch):
    path, content = corpus
    monkeypatch.setattr(BlockFile, "streamed", None)
    store = FrameStore([path])
    np.testing.assert_array_equal(store.read(np.array([0, 199]))["image"], content["image"][[0, 199]])
    store.close()


def _tables(store):
    store.read(ROWS[:1])
    return store._tables[0].values()


def test_memory_outlives_the_threads_that_write_to_it(corpus, monkeypatch):
    """Whoever waits may be interrupted twice; what still runs must not write to memory that was given back."""
    path, _ = corpus
    store, alive = FrameStore([path]), []
    real = BlockFile._read_direct

    def interrupted(futures, *_):
        raise KeyboardInterrupt

    def slow(self, descriptor, span, readers):
        if span[0] == first:
            raise OSError("the wait for the others begins")
        found = real(self, descriptor, span, readers)
        time.sleep(0.1)
        alive.append(watched() is not None)
        return found

    monkeypatch.setattr(BlockFile, "_read_direct", slow)
    monkeypatch.setattr("ptycho_bluesky.training.loading.blocks.wait", interrupted)
    first = int(min(table.first[ROWS].min() for table in _tables(store)))
    memory = store.empty(len(ROWS))
    watched = weakref.ref(memory["image"])
    try:
        store.read(ROWS, memory)
    except KeyboardInterrupt as error:
        traceback.clear_frames(error.__traceback__)
    else:
        pytest.fail("it was not interrupted")
    del memory
    gc.collect()
    store.close()
    assert len(alive) > 0
    assert all(alive)


def test_a_file_that_is_cut_is_named(corpus):
    path, _ = corpus
    store = FrameStore([path])
    store.read(ROWS)
    os.truncate(path, path.stat().st_size // 2 + 1)
    with pytest.raises(InputError, match=r"a\.h5.*ends"):
        store.read(ROWS)
    store.close()


@pytest.mark.parametrize("change", [None, _without_compiled])
@pytest.mark.parametrize(("at", "value"), [(4, 1 << 20), (12, 1 << 20), (16, 1 << 30)])
def test_a_chunk_that_lies_about_its_size_is_named(corpus, monkeypatch, change, at, value):
    path, _ = corpus
    with h5py.File(path, "r") as file:
        first = file["phase_rad"].id.get_chunk_info_by_coord((101, 0, 0)).byte_offset
    with path.open("r+b") as file:
        file.seek(first + at)
        file.write(value.to_bytes(4, "little"))
    if change is not None:
        change(monkeypatch)
    store = FrameStore([path])
    with pytest.raises(InputError, match=f"byte {first} cannot be unpacked"):
        store.read(ROWS)
    store.close()
