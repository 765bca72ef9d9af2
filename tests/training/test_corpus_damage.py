"""What a corpus does with files of others, full disks, writers that died, and a folder that cannot be written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptycho_bluesky.errors import InputError, StorageError
from ptycho_bluesky.training import label_files
from ptycho_bluesky.training.catalog import CatalogEntry, FileCatalog
from ptycho_bluesky.training.corpus import Corpus, read_label_set, write_label_set
from ptycho_bluesky.training.known_frames import KnownFrames, _is_known
from ptycho_bluesky.training.label_files import frame_hashes, stored_hashes
from ptycho_bluesky.training.loading.chunks import row_table

WRITE_TOO_MUCH = """
import resource, sys
import numpy as np
from ptycho_bluesky.errors import StorageError
from ptycho_bluesky.training.label_files import read_label_set, write_label_set

labels = read_label_set(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
try:
    write_label_set(sys.argv[2], labels)
except StorageError as error:
    print(error)
"""


def _indexed(corpus: Corpus) -> list[int]:
    return sorted(np.fromfile(corpus.directory / "frames.u64", "<u8").tolist())


def _in_files(corpus: Corpus) -> list[int]:
    return sorted(np.concatenate([stored_hashes(path) for path in corpus.files()]).tolist())


@pytest.mark.parametrize("uids", [("a/1", "a_1"), ("a_1", "a/1"), ("a/1", "a:1"), ("x" * 300, "x" * 299 + "y")])
def test_runs_whose_uids_read_alike_do_not_share_a_file(tmp_path, labels_a, labels_b, uids):
    corpus = Corpus(tmp_path)
    for uid, labels in zip(uids, (labels_a, labels_b), strict=True):
        assert corpus.add(replace(labels, run_uid=uid))
    for uid, labels in zip(uids, (labels_a, labels_b), strict=True):
        np.testing.assert_array_equal(Corpus(tmp_path).read(uid).image, labels.image)


def test_a_run_does_not_overwrite_anothers_file(tmp_path, labels_a, labels_b):
    write_label_set(tmp_path / "a_1.h5", replace(labels_a, run_uid="a/1"))  # as earlier versions named it
    corpus = Corpus(tmp_path)
    with pytest.raises(StorageError, match=r"another run's labels.*another name"):
        corpus.add(replace(labels_b, run_uid="a_1"))
    np.testing.assert_array_equal(corpus.read("a/1").image, labels_a.image)
    (tmp_path / "a_1.h5").rename(tmp_path / "renamed.h5")
    assert corpus.add(replace(labels_b, run_uid="a_1"))
    np.testing.assert_array_equal(corpus.read("a/1").image, labels_a.image)
    np.testing.assert_array_equal(corpus.read("a_1").image, labels_b.image)


def test_a_run_whose_file_was_overwritten_counts_as_absent(tmp_path, labels_a, labels_b):
    corpus = Corpus(tmp_path)
    corpus.add(replace(labels_b, run_uid="a_1"))
    (entry,) = corpus.entries()
    catalog = FileCatalog(tmp_path)
    catalog.path.unlink()
    catalog.append(replace(entry, run_uid="a/1"))
    catalog.append(entry)
    assert corpus.runs() == ("a_1",)
    assert corpus.add(replace(labels_a, run_uid="a/1"))
    np.testing.assert_array_equal(corpus.read("a/1").image, labels_a.image)


def test_two_files_of_one_run_are_catalogued_once(tmp_path, labels_a):
    corpus = Corpus(tmp_path)
    corpus.add(labels_a)
    (tmp_path / "copy.h5").write_bytes((tmp_path / "run-1.h5").read_bytes())
    assert corpus.runs() == ("run-1",)
    content = (tmp_path / "catalog.jsonl").read_bytes()
    assert corpus.runs() == ("run-1",)
    assert (tmp_path / "catalog.jsonl").read_bytes() == content


def test_a_frame_and_its_phase_lie_side_by_side(tmp_path, labels_a):
    write_label_set(tmp_path / "run-1.h5", labels_a)
    with h5py.File(tmp_path / "run-1.h5") as file:
        image, phase, amplitude = (row_table(file[name]) for name in ("image", "phase_rad", "amplitude"))
    both = np.stack([image.first, phase.first], axis=1).ravel()
    assert (np.diff(both) > 0).all()
    gap = both[1:] - (both + np.stack([image.size, phase.size], axis=1).ravel())[:-1]
    assert (gap >= 0).all()
    assert np.median(gap) == 0  # HDF5 puts its own tables between some
    assert amplitude.first[0] > both[-1]
    assert (np.diff(amplitude.first) > 0).all()


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, labels_a):
    write_label_set(tmp_path / "whole.h5", labels_a)
    full = tmp_path / "full"
    full.mkdir()
    command = [sys.executable, "-c", WRITE_TOO_MUCH, str(tmp_path / "whole.h5"), str(full / "run-1.h5")]
    # the largest size of a file stands for the space of a disk: HDF5 fails in the same way
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "label set" in done.stdout
    assert "Remedy: free space" in done.stdout
    assert not list(full.iterdir())


def test_errors_of_hdf5_are_storage_errors(tmp_path, labels_a, monkeypatch):
    def fail(*_arguments):
        raise RuntimeError("Disable slist on flush dest failure failed")

    monkeypatch.setattr("ptycho_bluesky.training.label_files.write_frames", fail)
    with pytest.raises(StorageError, match="slist"):
        Corpus(tmp_path).add(labels_a)
    assert not list(tmp_path.glob("*.h5"))


def test_what_killed_writers_left_is_swept(tmp_path, labels_a):
    names = [".run-9.h5.1700000000000000000", ".frames.u64.1700000000000000000", ".run-8.h5.17", ".note", ".y.h5.1.h5"]
    old_s = time.time() - 7200
    corpus = Corpus(tmp_path)
    write_label_set(tmp_path / ".y.h5.1.h5", replace(labels_a, run_uid=".y.h5.1"))
    for name in names:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (old_s, old_s))
    os.utime(tmp_path / ".run-8.h5.17")
    corpus.add(labels_a)
    assert {name for name in names if (tmp_path / name).exists()} == {".run-8.h5.17", ".note", ".y.h5.1.h5"}


def test_an_index_cut_within_a_hash_still_knows_the_frames(tmp_path, labels_a, labels_b):
    corpus = Corpus(tmp_path)
    corpus.add(labels_a)
    with (tmp_path / "frames.u64").open("ab") as file:
        file.write(b"abc")
    corpus.add(labels_b)
    assert corpus.add(replace(labels_b, run_uid="again"))
    assert corpus.runs() == ("run-1", "run-2")
    assert _indexed(corpus) == _in_files(corpus)


def test_hashes_are_appended_behind_whole_ones(tmp_path):
    known = KnownFrames(tmp_path)
    known.append(np.array([1, 2], np.uint64))
    with known.path.open("ab") as file:
        file.write(b"abc")
    known.append(np.array([3], np.uint64))
    np.testing.assert_array_equal(np.fromfile(known.path, "<u8"), [1, 2, 3])


@pytest.mark.parametrize("damage", ["deleted", "empty", "short", "long"])
def test_a_damaged_index_is_made_anew(tmp_path, labels_a, damage):
    corpus = Corpus(tmp_path)
    corpus.add(labels_a)
    path = tmp_path / "frames.u64"
    content = path.read_bytes()
    if damage == "deleted":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "short": content[:-80], "long": content * 2}[damage])
    assert corpus.add(replace(labels_a, run_uid="again"))
    assert corpus.runs() == ("run-1",)
    assert _indexed(corpus) == _in_files(corpus)


def test_an_index_that_cannot_be_made_anew_is_told(tmp_path, labels_a, labels_b):
    corpus = Corpus(tmp_path)
    corpus.add(labels_a)
    (tmp_path / "frames.u64").unlink()
    (tmp_path / "run-1.h5").write_bytes(b"")
    with pytest.raises(InputError, match=r"run-1\.h5.*Remedy: remove the file"):
        corpus.add(labels_b)
    (tmp_path / "run-1.h5").unlink()
    assert corpus.add(labels_b)


def test_an_index_of_other_frames_is_told_and_its_remedy_helps(tmp_path, labels_a, labels_b):
    corpus = Corpus(tmp_path)
    corpus.add(labels_a)
    frame_hashes(labels_b).tofile(tmp_path / "frames.u64")
    with pytest.raises(InputError, match=r"delete frames\.u64"):
        corpus.add(labels_b)
    (tmp_path / "frames.u64").unlink()
    assert corpus.add(labels_b)
    assert len(corpus.read("run-2")) == len(labels_b)


def test_a_run_whose_file_was_removed_is_added_again(tmp_path, labels_a, labels_b):
    corpus = Corpus(tmp_path)
    corpus.add(labels_a)
    corpus.add(labels_b)
    (tmp_path / "run-1.h5").unlink()
    assert corpus.add(labels_a)
    assert corpus.runs() == ("run-2", "run-1")
    assert len(corpus.read("run-1")) == len(labels_a)
    assert not corpus.add(labels_a)


def test_a_duplicate_without_its_original_counts_as_absent(tmp_path, labels_a):
    corpus = Corpus(tmp_path)
    corpus.add(labels_a)
    again = replace(labels_a, run_uid="again")
    corpus.add(again)
    content = (tmp_path / "run-1.h5").read_bytes()
    (tmp_path / "run-1.h5").unlink()
    assert corpus.entries() == []
    with pytest.raises(InputError, match="run again"):
        corpus.read("again")
    assert corpus.add(again)
    np.testing.assert_array_equal(corpus.read("again").image, labels_a.image)
    assert corpus.add(labels_a)
    assert corpus.runs() == ("again",)
    np.testing.assert_array_equal(corpus.read("run-1").image, labels_a.image)
    (tmp_path / "run-1.h5").write_bytes(content)  # brought back: both have files now
    assert set(corpus.runs()) == {"run-1", "again"}


def test_an_unwritable_folder_is_read_as_it_is(tmp_path, labels_a, labels_b):
    Corpus(tmp_path).add(labels_a, regime={"key": "r"})
    write_label_set(tmp_path / "run-2.h5", labels_b)
    # a folder in its place refuses to be opened for writing, whoever asks
    (tmp_path / ".lock").unlink()
    (tmp_path / ".lock").mkdir()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    corpus = Corpus(tmp_path)
    for _ in range(2):
        assert corpus.runs() == ("run-1", "run-2")
        np.testing.assert_array_equal(corpus.read("run-2").image, labels_b.image)
    with pytest.raises(StorageError, match=r"adding run-3.*writable.*Remedy: "):
        corpus.add(replace(labels_a, run_uid="run-3"))
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    (tmp_path / ".lock").rmdir()
    assert corpus.runs() == ("run-1", "run-2")
    assert "run-2" in (tmp_path / "catalog.jsonl").read_text()


def test_an_unreadable_catalog_is_told(tmp_path):
    (tmp_path / "catalog.jsonl").mkdir()
    with pytest.raises(StorageError, match="readable"):
        Corpus(tmp_path).runs()


def test_a_run_is_sought_among_millions_in_a_moment(tmp_path):
    hashes = np.random.default_rng(0).integers(0, 2**64, 3_000_000, dtype=np.uint64)
    known = KnownFrames(tmp_path)
    known.append(hashes)
    entry = CatalogEntry("run-1", "run-1.h5", len(hashes), (64, 64), (64, 64), None)
    sought = np.concatenate([hashes[:500], hashes[:500] + np.uint64(1)])
    began = time.perf_counter()
    fresh = known.fresh(sought, [entry])
    assert time.perf_counter() - began < 1.0  # 0.03 s; numpy.isin alone took 3.4 s
    np.testing.assert_array_equal(fresh, np.arange(1000) >= 500)


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 50), max_size=40), st.data())
def test_known_hashes_are_found(known, data):
    sought = data.draw(st.lists(st.sampled_from([*known, 1, 2**20 + 1]), max_size=40))
    known, sought = np.array(known, np.uint64), np.array(sought, np.uint64)
    np.testing.assert_array_equal(_is_known(sought, known), np.isin(sought, known))


def test_the_catalog_names_the_file(tmp_path, labels_a):
    Corpus(tmp_path).add(replace(labels_a, run_uid="a/1"))
    entry = json.loads((tmp_path / "catalog.jsonl").read_text())
    assert entry["run_uid"] == "a/1"
    assert entry["file"].startswith("a_1-")
    assert (tmp_path / entry["file"]).is_file()


def test_threads_write_label_sets_at_once(tmp_path, labels_a):
    """Of two files of one name HDF5 refuses the second while the first is open."""
    together = threading.Barrier(4)
    real = label_files.write_frames

    def write_frames(*arguments):
        together.wait(30.0)  # all four are open now
        real(*arguments)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(4) as threads:
        patch.setattr(label_files, "write_frames", write_frames)
        paths = [tmp_path / f"{number}.h5" for number in range(4)]
        list(threads.map(lambda path: write_label_set(path, labels_a), paths))
    for path in paths:
        np.testing.assert_array_equal(read_label_set(path).image, labels_a.image)
