"""The serving model changes between batches, comes from a store, and never from a damaged one."""

from __future__ import annotations

import hashlib
import threading
import time

import numpy as np
import pytest

from ptycho_bluesky.errors import InputError, UnreachableError
from ptycho_bluesky.inference import ModelSlot, check_model, load_model
from ptycho_bluesky.inference.watch import ModelWatcher
from ptycho_bluesky.records import ModelRecord, ModelStage


def record(blob: bytes, model_id: str | None = None, promoted_s: float = 0.0) -> ModelRecord:
    return ModelRecord(
        model_id or hashlib.sha256(blob).hexdigest(),
        "",
        ModelStage.PROMOTED,
        "ptychonn2",
        (16, 16),
        (16, 16),
        float("nan"),
        1.0,
        (),
        {},
        {},
        None,
        {},
        0.0,
        promoted_s,
    )


class Store:
    """A store in memory that can be away, damaged, or notify."""

    def __init__(self):
        self.blob: bytes | None = None
        self.claimed: str | None = None
        self.away = False
        self.gets = 0
        self.questions = 0
        self.promoted_s = 0.0

    def serving(self):
        self.questions += 1
        if self.away:
            raise UnreachableError("store", "away")
        return None if self.blob is None else record(self.blob, self.claimed, self.promoted_s)

    def content(self, model_id):
        self.gets += 1
        return self.blob


def load(content, model_id):
    return load_model(content, "onnxruntime", expected_id=model_id, num_threads=1)


def test_swap_and_rollback(make_model_file):
    first, second = (load_model(make_model_file(seed=s), "onnxruntime") for s in (1, 2))
    slot = ModelSlot()
    assert slot.model_id == ""
    with pytest.raises(InputError):
        slot.rollback()
    slot.swap(first)
    slot.swap(first)
    assert slot.swaps == 1
    slot.swap(second)
    assert (slot.model_id, slot.previous) == (second.model_id, first)
    slot.rollback()
    assert slot.model_id == first.model_id


def test_every_frame_has_one_model_while_models_are_exchanged(make_model_file, counts):
    """A reader that takes the model once a batch gets phases of that model alone."""
    models = [load_model(make_model_file(seed=s), "onnxruntime", num_threads=1) for s in (1, 2)]
    expected = {model.model_id: model.engine.infer(counts) for model in models}
    slot = ModelSlot(models[0])
    done = threading.Event()

    def exchange():
        while not done.is_set():
            slot.rollback() if slot.previous else slot.swap(models[1])
            time.sleep(0.0005)

    thread = threading.Thread(target=exchange)
    thread.start()
    seen = set()
    try:
        for _ in range(100):
            model = slot.current
            np.testing.assert_array_equal(model.engine.infer(counts), expected[model.model_id])
            seen.add(model.model_id)
    finally:
        done.set()
        thread.join()
    assert len(seen) == 2


def test_watcher_follows_the_store(make_model_file):
    store, slot = Store(), ModelSlot()
    watcher = ModelWatcher(store, slot, load)
    assert not watcher.check()
    store.blob = make_model_file(seed=1)
    assert watcher.check()
    assert not watcher.check()
    assert store.gets == 1
    store.blob = make_model_file(seed=2)
    assert watcher.check()
    assert slot.model_id == hashlib.sha256(store.blob).hexdigest()


def test_a_damaged_model_is_refused_once_and_the_old_one_stays(make_model_file):
    store, slot = Store(), ModelSlot()
    watcher = ModelWatcher(store, slot, load)
    store.blob = make_model_file(seed=1)
    watcher.check()
    before = slot.model_id
    store.blob, store.claimed = make_model_file(seed=2), "f" * 64
    with pytest.raises(InputError, match="damaged"):
        watcher.check()
    assert not watcher.check()
    assert slot.model_id == before
    assert store.gets == 2


def test_a_model_of_another_geometry_is_refused_until_the_geometry_changes(make_model_file):
    store, slot = Store(), ModelSlot()
    shape = [(32, 32)]
    watcher = ModelWatcher(store, slot, load, lambda model: check_model(model.engine.manifest, shape[0], None))
    store.blob = make_model_file(seed=1)
    with pytest.raises(InputError, match="geometry"):
        watcher.check()
    shape[0] = (16, 16)
    watcher.forget_refusals()
    assert watcher.check()


def test_a_store_that_goes_away_during_the_transfer_does_not_condemn_the_model(make_model_file):
    store, slot = Store(), ModelSlot()
    store.blob = make_model_file(seed=1)
    content, store.content = store.content, lambda model_id: (_ for _ in ()).throw(UnreachableError("store", "away"))
    watcher = ModelWatcher(store, slot, load)
    with pytest.raises(UnreachableError):
        watcher.check()
    store.content = content
    assert watcher.check()


def test_a_notice_of_a_promotion_saves_the_question_and_old_news_change_nothing(make_model_file):
    store, slot = Store(), ModelSlot()
    watcher = ModelWatcher(store, slot, load)
    first, second = make_model_file(seed=1), make_model_file(seed=2)
    store.blob, store.promoted_s = first, 10.0
    assert watcher.check()
    old, new = record(first, promoted_s=10.0), record(second, promoted_s=20.0)
    store.blob, store.promoted_s = second, 20.0
    watcher.notice(new.model_id, new.as_dict())
    watcher.notice(old.model_id, old.as_dict())
    assert watcher.check()
    assert (slot.model_id, store.questions) == (new.model_id, 1)
    # what the subscription repeats is older than the model that serves: the store is asked instead
    watcher.notice(old.model_id, old.as_dict())
    assert not watcher.check()
    assert (slot.model_id, store.questions, store.gets) == (new.model_id, 2, 2)


def test_a_model_that_is_noticed_is_verified_like_any_other(make_model_file):
    store, slot = Store(), ModelSlot()
    watcher = ModelWatcher(store, slot, load)
    store.blob = make_model_file(seed=1)
    claimed = record(store.blob, "f" * 64, promoted_s=10.0)
    watcher.notice(claimed.model_id, claimed.as_dict())
    with pytest.raises(InputError, match="damaged"):
        watcher.check()
    assert slot.model_id == ""
    assert set(watcher.refused) == {"f" * 64}


def test_a_notice_that_was_lost_to_an_outage_is_made_good_by_the_next_question(make_model_file):
    store, slot = Store(), ModelSlot()
    watcher = ModelWatcher(store, slot, load)
    store.blob, store.promoted_s = make_model_file(seed=1), 10.0
    noticed = record(store.blob, promoted_s=10.0)
    content, store.content = store.content, lambda model_id: (_ for _ in ()).throw(UnreachableError("store", "away"))
    watcher.notice(noticed.model_id, noticed.as_dict())
    with pytest.raises(UnreachableError):
        watcher.check()
    store.content = content
    assert watcher.check()
    assert slot.model_id == noticed.model_id


def test_a_model_that_is_retired_before_it_was_fetched_is_not_fetched(make_model_file):
    store, slot = Store(), ModelSlot()
    watcher = ModelWatcher(store, slot, load)
    noticed = record(make_model_file(seed=1), promoted_s=10.0)
    watcher.notice(noticed.model_id, noticed.as_dict())
    watcher.notice(noticed.model_id, noticed.as_dict() | {"stage": "retired"})
    assert not watcher.check()
    assert (store.questions, store.gets) == (1, 0)


def test_the_thread_survives_a_store_that_is_away(make_model_file):
    store, slot = Store(), ModelSlot()
    store.away = True
    watcher = ModelWatcher(store, slot, load, period_s=0.01)
    watcher.start()
    try:
        time.sleep(0.1)
        store.blob, store.away = make_model_file(seed=1), False
        watcher.wake()
        deadline = time.monotonic() + 20
        while not slot.model_id and time.monotonic() < deadline:
            time.sleep(0.01)
        assert slot.model_id
    finally:
        watcher.stop()
