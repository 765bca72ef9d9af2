from __future__ import annotations

import time

import pytest

from ptycho_bluesky.errors import InputError, StorageError
from ptycho_bluesky.records import ModelRecord, ModelStage
from ptycho_bluesky.training.registry import (
    LocalModelStore,
    ModelStore,
    collect_garbage,
    content_id,
    promote,
    register,
    reject,
    rollback,
    superfluous,
)


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


def put_all(store, *names: bytes, **changes) -> list[str]:
    for name in names:
        store.put(record(name, time.time(), **changes), name)
    return [content_id(name) for name in names]


def test_one_model_a_regime_stays_promoted_and_rollback_brings_back_the_one_before(store):
    one, two = put_all(store, b"one", b"two", regime={"probe": "a"})
    (other,) = put_all(store, b"other", regime={"probe": "b"})
    for model_id in (one, other, two):
        promote(store, model_id, "better")
        time.sleep(0.002)
    stages = {each.model_id: each.stage for each in store.records()}
    assert stages == {one: ModelStage.RETIRED, two: ModelStage.PROMOTED, other: ModelStage.PROMOTED}
    assert store.serving().model_id == two
    assert store.serving({"probe": "b"}).model_id == other
    retired, serving = rollback(store, {"probe": "a"}, "stripes")
    assert (retired.model_id, serving.model_id) == (two, one)
    assert store.history(two)[-1] == {
        "stage": "retired",
        "reason": "stripes",
        "time_s": pytest.approx(time.time(), abs=60),
    }
    with pytest.raises(InputError, match=f"model {one}. no model is left that it succeeded.*--force"):
        rollback(store, {"probe": "a"})
    assert store.serving({"probe": "a"}).model_id == one
    assert rollback(store, {"probe": "a"}, force=True)[1] is None
    with pytest.raises(InputError, match="no model serves"):
        rollback(store, {"probe": "a"})
    assert store.serving().model_id == other


def test_a_rollback_of_one_of_several_serving_models_names_it(store):
    one, two = put_all(store, b"one", b"two", regime={"probe": "a"})
    other, newer = put_all(store, b"other", b"newer", regime={"probe": "b"})
    for model_id in (one, two, other, newer):
        promote(store, model_id)
        time.sleep(0.002)
    with pytest.raises(InputError, match=f"2 models serve.*{two[:12]} for .*{newer[:12]} for"):
        rollback(store)
    with pytest.raises(InputError, match=f"model {one}. only a model that serves.*{two[:12]}"):
        rollback(store, model_id=one)
    retired, serving = rollback(store, model_id=two)
    assert (retired.model_id, serving.model_id) == (two, one)
    assert store.serving({"probe": "b"}).model_id == newer


def test_what_a_crash_left_promoted_in_one_regime_is_gone_back_to(store):
    old, new = put_all(store, b"old", b"new")
    for model_id in (old, new):
        store.set_stage(model_id, ModelStage.PROMOTED)
        time.sleep(0.002)
    retired, serving = rollback(store)
    assert (retired.model_id, serving.model_id) == (new, old)


def test_the_model_before_a_rejected_one_serves_again(store):
    one, two, three = put_all(store, b"one", b"two", b"three", regime={"probe": "a"})
    (other,) = put_all(store, b"other", regime={"probe": "b"})
    for model_id in (one, two, other, three):
        promote(store, model_id)
        time.sleep(0.002)
    assert reject(store, two, "stripes, but it serves no more")[1].model_id == three
    rejected, serving = reject(store, three, "stripes")
    # the second was rejected
    assert (rejected.stage, serving) == (ModelStage.REJECTED, None)
    promote(store, two, "by hand")
    time.sleep(0.002)
    promote(store, three, "by hand")
    rejected, serving = reject(store, three, "stripes")
    assert (rejected.model_id, rejected.stage, serving.model_id) == (three, ModelStage.REJECTED, two)
    assert store.history(two)[-1]["reason"].endswith("stripes")
    assert reject(store, two)[1].model_id == one
    assert reject(store, one)[1] is None
    assert store.serving().model_id == other


def test_a_registered_candidate_gets_its_stage_once(store):
    old, new, worse = (record(name, time.time()) for name in (b"old", b"new", b"worse"))
    assert register(store, old, b"old", ModelStage.PROMOTED, "first").stage is ModelStage.PROMOTED
    time.sleep(0.002)
    register(store, new, b"new", ModelStage.PROMOTED, "better")
    assert register(store, worse, b"worse", ModelStage.REJECTED, "worse").stage is ModelStage.REJECTED
    assert [each.model_id for each in store.promoted()] == [new.model_id]
    assert store.content(new.model_id) == b"new"
    assert [entry["stage"] for entry in store.history(old.model_id)] == ["candidate", "promoted", "retired"]
    # again, as after a crash: what was moved meanwhile stays where it is
    assert register(store, old, b"old", ModelStage.PROMOTED, "first").stage is ModelStage.RETIRED
    assert register(store, worse, b"worse", ModelStage.PROMOTED, "again").stage is ModelStage.REJECTED
    assert store.serving().model_id == new.model_id


def test_a_registration_that_died_before_the_former_model_was_retired_is_completed(store):
    old, new = (record(name, time.time()) for name in (b"old", b"new"))
    register(store, old, b"old", ModelStage.PROMOTED)
    time.sleep(0.002)
    store.put(new, b"new", ModelStage.PROMOTED)
    assert len(store.promoted()) == 2
    register(store, new, b"new", ModelStage.PROMOTED)
    assert [each.model_id for each in store.promoted()] == [new.model_id]
    time.sleep(0.002)
    store.set_stage(old.model_id, ModelStage.PROMOTED, "by hand, later")
    register(store, new, b"new", ModelStage.PROMOTED)
    assert store.serving().model_id == old.model_id


def test_garbage_is_what_nobody_will_ask_for_again(store):
    retired = put_all(store, *(f"retired {k}".encode() for k in range(5)))
    rejected = put_all(store, *(f"rejected {k}".encode() for k in range(4)))
    (candidate,) = put_all(store, b"candidate")
    (serving,) = put_all(store, b"serving", parent_id=retired[0])
    for model_id in retired:
        promote(store, model_id)
        time.sleep(0.002)
    for model_id in rejected:
        store.set_stage(model_id, ModelStage.REJECTED, "worse")
    promote(store, serving)
    assert superfluous(store, keep=2) == []  # all are too young
    found = collect_garbage(store, keep=2, min_age_s=0.0)
    assert {each.model_id for each in found} == {*retired[1:3], *rejected[:2]}
    assert collect_garbage(store, keep=2, min_age_s=0.0) == []
    assert len(store.records()) == 11
    for model_id in (candidate, serving, *retired[3:], retired[0]):
        store.get(model_id)
    with pytest.raises(InputError, match="collected as garbage"):
        store.get(retired[1])
    with pytest.raises(InputError, match="collected as garbage"):
        promote(store, retired[1])
    assert "collected" in store.history(retired[1])[-1]["reason"]
    store.put(record(b"retired 1"), b"retired 1")
    assert store.get(retired[1])[0].stage is ModelStage.RETIRED
    with pytest.raises(InputError, match="keep"):
        superfluous(store, keep=-1)


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
