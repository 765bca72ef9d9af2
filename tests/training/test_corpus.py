from __future__ import annotations

from dataclasses import replace

import h5py
import numpy as np
import pytest

from ptycho_bluesky.errors import InputError, StorageError
from ptycho_bluesky.training.corpus import Corpus, join_label_sets, read_label_set


def test_label_set_survives_the_disk(tmp_path, labels_a):
    corpus = Corpus(tmp_path / "corpus")
    assert corpus.add(labels_a)
    back = corpus.read(labels_a.run_uid)
    for name in ("image", "phase_rad", "amplitude", "position_m", "frame_index", "probe", "weight"):
        np.testing.assert_array_equal(getattr(back, name), getattr(labels_a, name))
        assert getattr(back, name).dtype == getattr(labels_a, name).dtype
    assert (back.geometry, back.pixel_size_m, back.run_uid) == (labels_a.geometry, labels_a.pixel_size_m, "run-1")
    assert back.provenance == {"labels": "truth"}


def test_unknown_geometry_stays_unknown(tmp_path, labels_a):
    corpus = Corpus(tmp_path)
    corpus.add(replace(labels_a, geometry=None, pixel_size_m=float("nan")))
    back = corpus.read("run-1")
    assert back.geometry is None
    assert np.isnan(back.pixel_size_m)


def test_adding_a_run_twice_changes_nothing(tmp_path, labels_a, labels_b):
    corpus = Corpus(tmp_path)
    assert corpus.add(labels_b)
    assert corpus.add(labels_a)
    assert not corpus.add(replace(labels_b, phase_rad=labels_b.phase_rad * 0))
    assert corpus.runs() == ("run-2", "run-1")
    np.testing.assert_array_equal(corpus.read("run-2").phase_rad, labels_b.phase_rad)
    assert Corpus(tmp_path).runs() == corpus.runs()


def test_runs_are_joined_in_order_and_told_apart(tmp_path, labels_a, labels_b):
    corpus = Corpus(tmp_path)
    corpus.add(labels_a)
    corpus.add(labels_b)
    arrays = corpus.load()
    assert arrays.run_uids == ("run-1", "run-2")
    np.testing.assert_array_equal(arrays.image[arrays.run == 1], labels_b.image)
    np.testing.assert_array_equal(corpus.load(["run-2"]).phase_rad, labels_b.phase_rad)


def test_different_geometries_do_not_mix(labels_a, labels_b):
    with pytest.raises(InputError, match="each geometry by itself"):
        join_label_sets([labels_a, replace(labels_b, image=labels_b.image[:, 16:-16, 16:-16])])
    with pytest.raises(InputError, match="a pixel"):
        join_label_sets([labels_a, replace(labels_b, pixel_size_m=1e-8)])
    with pytest.raises(InputError, match="empty corpus"):
        join_label_sets([])


def test_what_cannot_be_kept_is_refused(tmp_path, labels_a):
    corpus = Corpus(tmp_path)
    with pytest.raises(InputError, match="run uid"):
        corpus.add(replace(labels_a, run_uid=""))
    with pytest.raises(InputError, match="no labels"):
        corpus.read("other")
    (tmp_path / "broken.h5").write_bytes(b"not HDF5")
    with pytest.raises(InputError, match="HDF5"):
        read_label_set(tmp_path / "broken.h5")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["data"] = 1
    with pytest.raises(InputError, match="written by this package"):
        read_label_set(tmp_path / "foreign.h5")


def test_unwritable_folder_is_named(tmp_path, labels_a):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="writable"):
        Corpus(tmp_path / "file" / "corpus")
    corpus = Corpus(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(StorageError, match="run-1"):
        corpus.add(labels_a)
