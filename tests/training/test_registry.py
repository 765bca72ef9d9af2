from __future__ import annotations

import time

import pytest

from ptycho_bluesky.errors import InputError, StorageError
from ptycho_bluesky.records import ModelRecord, ModelStage
from ptycho_bluesky.training.registry import LocalModelStore, ModelStore, content_id


def record(content: bytes, created_s: float = 0.0, **changes) -> ModelRecord:
    values = {
        "model_id": content_id(content),
        "parent_id": "",
        "stage": ModelStage.CANDIDATE,
        "architecture": "ptychonn2",
        "image_shape": (64, 64),
        "patch_shape": (64, 64),
        "pixel_size_m": float("nan"),
        "count_scale": 1.0,
        "training_runs": ("a",),
        "recipe": {},
        "validation": {"score": 0.5},
        "geometry": None,
        "regime": {},
        "created_s": created_s,
    }
    return ModelRecord(**{**values, **changes})


@pytest.fixture
def store(tmp_path):
    return LocalModelStore(tmp_path / "models")


def test_content_is_the_name(store):
    assert isinstance(store, ModelStore)
    store.put(record(b"one"), b"one")
    got, content = store.get(content_id(b"one"))
    assert content == b"one"
    assert (got.validation, got.training_runs, got.stage) == ({"score": 0.5}, ("a",), ModelStage.CANDIDATE)
    with pytest.raises(InputError, match="hashes to"):
        store.put(record(b"one"), b"two")
    with pytest.raises(InputError, match="not in"):
        store.get("0" * 64)


def test_damage_is_noticed(store):
    store.put(record(b"one"), b"one")
    (store.directory / f"{content_id(b'one')}.onnx").write_bytes(b"oops")
    with pytest.raises(InputError, match="no longer hashes"):
        store.get(content_id(b"one"))


def test_storing_again_does_not_demote(store):
    store.put(record(b"one"), b"one")
    store.set_stage(content_id(b"one"), ModelStage.PROMOTED, "better")
    store.put(record(b"one"), b"one")
    assert store.records()[0].stage is ModelStage.PROMOTED


def test_the_last_promoted_serves_and_rollback_brings_back_the_one_before(store):
    assert store.serving() is None
    for name in (b"one", b"two", b"three"):
        store.put(record(name, time.time()), name)
    assert store.serving() is None
    for name in (b"two", b"one"):
        store.set_stage(content_id(name), ModelStage.PROMOTED, "better")
        time.sleep(0.002)
    store.set_stage(content_id(b"three"), ModelStage.REJECTED, "worse")
    assert store.serving().model_id == content_id(b"one")
    store.set_stage(content_id(b"one"), ModelStage.RETIRED, "rolled back")
    assert store.serving().model_id == content_id(b"two")
    assert [h["stage"] for h in store.history(content_id(b"one"))] == ["candidate", "promoted", "retired"]
    assert [r.model_id for r in store.records()] == [content_id(n) for n in (b"one", b"two", b"three")]


def test_a_model_serves_its_regime_only(store):
    store.put(record(b"one", regime={"pixel_size_m": 1e-8}), b"one")
    store.set_stage(content_id(b"one"), ModelStage.PROMOTED)
    assert store.serving({"pixel_size_m": 2e-8}) is None
    assert store.serving({"pixel_size_m": 1e-8, "other": 1}) is not None


def test_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="writable"):
        LocalModelStore(tmp_path / "file" / "models")
    store = LocalModelStore(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(StorageError, match="free space"):
        store.put(record(b"one"), b"one")
