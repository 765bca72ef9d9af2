from __future__ import annotations

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ptycho_bluesky.errors import InputError, StorageError
from ptycho_bluesky.training.corpus import Corpus, join_label_sets, read_label_set, write_label_set
from ptycho_bluesky.training.label_files import STEPS, rounded


def test_label_set_survives_the_disk(tmp_path, labels_a):
    corpus = Corpus(tmp_path / "corpus")
    assert corpus.add(labels_a)
    back = corpus.read(labels_a.run_uid)
    for name in ("image", "phase_rad", "amplitude", "position_m", "frame_index", "probe", "weight"):
        error = 0.5 * STEPS[name] if name in STEPS else 0.0
        np.testing.assert_allclose(getattr(back, name), getattr(labels_a, name), rtol=0, atol=error)
        assert getattr(back, name).dtype == getattr(labels_a, name).dtype
    assert (back.geometry, back.pixel_size_m, back.run_uid) == (labels_a.geometry, labels_a.pixel_size_m, "run-1")
    assert back.provenance == {"labels": "truth"}


@given(
    hnp.arrays(hnp.floating_dtypes(sizes=(32, 64), endianness="="), hnp.array_shapes(max_dims=3)),
    st.sampled_from(("phase_rad", "amplitude")),
)
def test_rounding_is_bounded_kept_by_itself_and_leaves_the_type(value, name):
    with np.errstate(all="ignore"):
        once = rounded(name, value)
        assert once.dtype == value.dtype
        np.testing.assert_array_equal(rounded(name, once), once)
        finite = np.isfinite(once)  # the largest numbers in double precision overflow
        np.testing.assert_array_less(np.abs(once[finite].astype(float) - value[finite]), 0.51 * STEPS[name])
    np.testing.assert_array_equal(rounded("image", value), value)
    np.testing.assert_array_equal(np.isnan(once), np.isnan(value))


def test_a_regime_is_entered_later_and_changes_nothing_else(tmp_path, labels_a, labels_b):
    corpus = Corpus(tmp_path)
    for labels in (labels_a, labels_b):
        corpus.add(labels, acceptance={"accepted": True})
    regime = {"image_shape": [64, 64], "probe": "run-1"}
    assert corpus.set_regime(["run-2", "elsewhere"], regime) == 1
    assert corpus.set_regime(["run-2"], regime) == 0
    found = {entry.run_uid: entry for entry in Corpus(tmp_path).entries()}
    assert list(found) == ["run-1", "run-2"]
    assert (found["run-1"].regime, found["run-2"].regime) == ({}, regime)
    assert found["run-2"].acceptance == {"accepted": True}
    assert not corpus.add(labels_b)
    assert corpus.add(replace(labels_b, run_uid="run-2 again"))
    assert corpus.runs() == ("run-1", "run-2")


def test_what_is_small_in_its_unit_keeps_its_digits():
    small = np.random.default_rng(0).normal(0.0, 1e-4, (3, 8, 8)).astype(np.float32)
    assert rounded("amplitude", small) is small
    assert rounded("phase_rad", np.full((1, 2, 2), 9.0, np.float16)).tolist() == [[[9.0, 9.0], [9.0, 9.0]]]


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
    before = corpus.read("run-2").phase_rad
    assert not corpus.add(replace(labels_b, phase_rad=labels_b.phase_rad * 0))
    assert corpus.runs() == ("run-2", "run-1")
    assert before.any()
    np.testing.assert_array_equal(corpus.read("run-2").phase_rad, before)
    assert Corpus(tmp_path).runs() == corpus.runs()


def test_runs_are_joined_in_order_and_told_apart(tmp_path, labels_a, labels_b):
    corpus = Corpus(tmp_path)
    corpus.add(labels_a)
    corpus.add(labels_b)
    arrays = corpus.load()
    assert arrays.run_uids == ("run-1", "run-2")
    np.testing.assert_array_equal(arrays.image[arrays.run == 1], labels_b.image)
    np.testing.assert_array_equal(corpus.load(["run-2"]).phase_rad, rounded("phase_rad", labels_b.phase_rad))


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


def test_frames_are_chunks_and_the_catalog_tells_what_is_in_a_file(tmp_path, labels_a):
    corpus = Corpus(tmp_path)
    corpus.add(labels_a, regime={"key": "r"}, acceptance={"accepted": True})
    with h5py.File(tmp_path / "run-1.h5") as file:
        for name in ("image", "phase_rad", "amplitude"):
            assert file[name].chunks == (1, 64, 64)
        assert file["image"].id.get_storage_size() < 0.6 * labels_a.image.nbytes
        assert file["phase_rad"].id.get_storage_size() < 0.6 * labels_a.phase_rad.nbytes
        assert json.loads(file.attrs["header"])["rounded_to"] == {"phase_rad": 2.0**-13, "amplitude": 2.0**-13}
    (entry,) = Corpus(tmp_path).entries()
    assert (entry.run_uid, entry.num_frames, entry.image_shape, entry.patch_shape) == ("run-1", 96, (64, 64), (64, 64))
    assert (entry.regime, entry.acceptance) == ({"key": "r"}, {"accepted": True})
    assert entry.dose["mean_counts"] == pytest.approx(labels_a.image.sum(axis=(1, 2)).mean())
    assert 0 < entry.dose["counts_per_nm2"] < np.inf
    assert entry.area["y_m"] == pytest.approx([labels_a.position_m[:, 0].min(), labels_a.position_m[:, 0].max()])
    rows = np.array([3, 7])
    part = corpus.read("run-1", rows)
    np.testing.assert_array_equal(part.image, labels_a.image[rows])
    np.testing.assert_array_equal(part.position_m, labels_a.position_m[rows])
    assert part.probe.shape == labels_a.probe.shape


def test_a_lost_or_cut_catalog_is_made_anew(tmp_path, labels_a, labels_b):
    corpus = Corpus(tmp_path)
    corpus.add(labels_a, regime={"key": "r"})
    corpus.add(labels_b)
    catalog = tmp_path / "catalog.jsonl"
    entries = corpus.entries()
    content = catalog.read_bytes()
    for damaged in (b"", content[: len(content) // 3], content[:-20]):
        catalog.write_bytes(damaged)
        again = Corpus(tmp_path)
        assert again.runs() == ("run-1", "run-2")
        for one, other in zip(entries, again.entries(), strict=True):
            assert (one.num_frames, one.regime, one.area) == (other.num_frames, other.regime, other.area)
            assert one.dose["mean_counts"] == pytest.approx(other.dose["mean_counts"])


def test_frames_known_from_another_run_are_not_stored_twice(tmp_path, labels_a):
    corpus = Corpus(tmp_path)
    corpus.add(labels_a)
    assert corpus.add(replace(labels_a, run_uid="again"))
    assert not corpus.add(replace(labels_a, run_uid="again"))
    assert corpus.runs() == ("run-1",)
    assert len(corpus.load(["run-1", "again"])) == len(labels_a)
    np.testing.assert_array_equal(corpus.read("again").image, labels_a.image)
    more = {name: np.concatenate([getattr(labels_a, name)] * 2) for name in ("image", "phase_rad", "amplitude")}
    more |= {"position_m": np.concatenate([labels_a.position_m] * 2), "frame_index": np.arange(2 * len(labels_a))}
    corpus.add(replace(labels_a, run_uid="longer", **more))
    np.testing.assert_array_equal(corpus.read("longer").frame_index, np.arange(96, 192))
    twice = {**more, "image": more["image"] + 1, "frame_index": np.tile(np.arange(96), 2)}
    corpus.add(replace(labels_a, run_uid="twice", **twice))
    assert len(corpus.read("twice")) == 96


def test_a_file_of_the_first_format_is_read(tmp_path, labels_a):
    write_label_set(tmp_path / "new.h5", labels_a)
    with h5py.File(tmp_path / "new.h5") as new, h5py.File(tmp_path / "run-1.h5", "w") as old:
        header = json.loads(new.attrs["header"])
        del header["description"], header["rounded_to"]
        old.attrs["header"] = json.dumps({**header, "format_version": 1})
        for name in new:
            if name not in ("frame_hash", "row_table"):
                old[name] = labels_a.phase_rad if name == "phase_rad" else new[name][()]
    (tmp_path / "new.h5").unlink()
    corpus = Corpus(tmp_path)
    assert corpus.runs() == ("run-1",)
    np.testing.assert_array_equal(corpus.read("run-1").phase_rad, labels_a.phase_rad)
    assert corpus.add(replace(labels_a, run_uid="again"))
    assert corpus.runs() == ("run-1",)
