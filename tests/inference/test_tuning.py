from __future__ import annotations

import hashlib
import json
import threading

import numpy as np
import pytest
import torch

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.inference import LoadedModel, ModelSlot, load_engine, load_model
from ptycho_bluesky.inference import tuning as tuning_module
from ptycho_bluesky.inference.cache import EngineCache, cache_directory, cache_key
from ptycho_bluesky.inference.onnx_engine import OnnxEngine, providers
from ptycho_bluesky.inference.parity import PARITY_RMS_RAD, Parity, compare, typical_frames
from ptycho_bluesky.inference.tuning import EngineTuner, choose_engine, remembered_engine
from ptycho_bluesky.models import build
from ptycho_bluesky.models.export import to_onnx

pytest.importorskip("openvino")
CPU = (("onnxruntime", "float32"), ("torch", "float32"), ("openvino", "float32"))


@pytest.fixture(scope="module")
def blob():
    torch.manual_seed(0)
    return to_onnx(build("lean8", crop=1), (64, 64), 1.0, {"sqrt": True, "scale": 0.1}, {"mean_counts": 20.0})


@pytest.fixture
def cache(tmp_path):
    return EngineCache(tmp_path / "cache")


class Wrong:
    """An engine that reads something else."""

    name = "wrong"

    def __init__(self, content, shift):
        self._engine, self._shift = OnnxEngine(content), shift
        self.manifest, self.image_shape, self.patch_shape = (
            self._engine.manifest,
            self._engine.image_shape,
            self._engine.patch_shape,
        )

    def infer(self, counts, count_scale=None):
        return self._engine.infer(counts, count_scale) + np.float32(self._shift)


def test_the_choice_is_remembered_and_used(blob, cache):
    choice = choose_engine(blob, cache=cache, candidates=CPU)
    assert set(choice.frames_per_s) == {"/".join(each) for each in CPU}
    assert choice.frames_per_s[f"{choice.name}/{choice.precision}"] == max(choice.frames_per_s.values())
    assert choice.parity.passed
    again = remembered_engine(blob, cache=cache)
    assert again is not None
    assert again.name == choice.engine.name
    assert load_engine(blob, "auto", cache=cache).name == choice.engine.name
    # other weights of the same graph run as fast; another number of threads does not
    torch.manual_seed(1)
    sister = to_onnx(build("lean8", crop=1), (64, 64), 1.0, {"sqrt": True, "scale": 0.1}, {"mean_counts": 20.0})
    assert remembered_engine(sister, cache=cache) is not None
    assert remembered_engine(blob, cache=cache, num_threads=1) is None


def test_an_engine_that_reads_something_else_is_not_chosen(blob, cache, monkeypatch):
    import ptycho_bluesky.inference.load as load

    make = load.make_engine

    def make_wrong(content, engine, num_threads, precision, cache=None):
        if engine == "openvino":
            return Wrong(content, 2 * PARITY_RMS_RAD)
        return make(content, engine, num_threads, precision, cache)

    monkeypatch.setattr(load, "make_engine", make_wrong)
    choice = choose_engine(blob, cache=cache, candidates=CPU)
    assert choice.name != "openvino"
    assert "openvino/float32" not in choice.frames_per_s
    with pytest.raises(InputError, match="no engine"):
        choose_engine(blob, cache=cache, candidates=[("openvino", "float32")])


def test_a_remembered_engine_is_tested_on_each_model(blob, cache, monkeypatch):
    choose_engine(blob, cache=cache, candidates=[("openvino", "float32")])
    assert remembered_engine(blob, cache=cache) is not None
    monkeypatch.setattr(tuning_module, "_candidate", lambda content, *_: Wrong(content, 1.0))
    assert remembered_engine(blob, cache=cache) is None


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"engine": "rm", "precision": "-rf"}', "\x00\xff"])
def test_a_damaged_cache_is_ignored(blob, cache, damage):
    choose_engine(blob, cache=cache, candidates=[("onnxruntime", "float32")])
    (entry,) = cache.directory.glob("*.json")
    entry.write_text(damage)
    assert remembered_engine(blob, cache=cache) is None
    assert load_engine(blob, "auto", cache=cache).infer(np.ones((1, 64, 64))).shape == (1, 32, 32)


def test_an_unwritable_cache_costs_only_time(blob, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    cache = EngineCache(tmp_path / "file" / "cache")
    assert choose_engine(blob, cache=cache, candidates=[("onnxruntime", "float32")]).name == "onnxruntime"
    assert "cannot be written" in caplog.text
    assert cache.get("any") is None
    assert cache.get_file("any") is None


def test_the_cache_lies_where_the_desktop_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "ptycho_bluesky"
    assert cache_key(a=1) == cache_key(a=1) != cache_key(a=2)


def test_parity_is_taken_on_the_circle_and_over_stitched_pixels(blob):
    engine = OnnxEngine(blob)
    frames = typical_frames(engine.manifest, 4)
    assert frames.shape == (4, 64, 64)
    assert 10 < frames.mean() < 30
    reference = engine.infer(frames)
    assert compare(engine, reference, frames) == Parity(0.0, 0.0)
    assert compare(engine, reference + np.float32(2 * np.pi), frames).rms_rad < 1e-5
    corner = reference.copy()
    corner[:, 0, 0] += 1.0
    assert compare(engine, corner, frames).max_rad == 0
    assert compare(Wrong(blob, 0.1), reference, frames).rms_rad == pytest.approx(0.1, abs=1e-5)
    assert not compare(Wrong(blob, np.nan), reference, frames).passed


def test_the_engine_of_a_serving_model_is_exchanged_in_the_background(blob, cache):
    slot = ModelSlot(load_model(blob, "onnxruntime"))
    before, swaps = slot.current, slot.swaps
    asked, go = threading.Event(), threading.Event()

    def choose(content, **options):
        asked.set()
        go.wait(10)
        return choose_engine(content, **options, candidates=[("openvino", "float32")])

    tuner = EngineTuner(slot, cache=cache, choose=choose)
    tuner.consider(blob)
    assert asked.wait(10)
    assert slot.current is before, "the ready engine serves while another is built"
    go.set()
    deadline = threading.Event()
    for _ in range(500):
        if slot.current is not before:
            break
        deadline.wait(0.02)
    tuner.stop()
    assert slot.current.engine.name == "openvino-float32"
    assert slot.model_id == hashlib.sha256(blob).hexdigest()
    assert slot.current.weight is before.weight
    assert (slot.swaps, slot.previous) == (swaps, None)


def test_a_failing_search_leaves_the_engine(blob, cache, caplog):
    slot = ModelSlot(load_model(blob, "onnxruntime"))
    failed = threading.Event()

    def choose(content, **options):
        failed.set()
        raise RuntimeError("driver")

    tuner = EngineTuner(slot, cache=cache, choose=choose)
    tuner.consider(blob)
    assert failed.wait(10)
    tuner.stop()
    assert slot.current.engine.name == "onnxruntime"
    assert "driver" in caplog.text


def test_engines_of_models_that_left_the_slot_are_dropped(blob):
    model = load_model(blob, "onnxruntime")
    slot = ModelSlot(model)
    assert not slot.exchange_engine("f" * 64, model.engine)
    other = LoadedModel("a" * 64, model.engine, model.weight)
    slot.swap(other)
    engine = Wrong(blob, 0.0)
    assert slot.exchange_engine(model.model_id, engine)
    assert slot.current is other
    assert slot.rollback().engine is engine


def test_a_remembered_choice_needs_no_search(blob, cache):
    choose_engine(blob, cache=cache, candidates=[("onnxruntime", "float32")])
    tuner = EngineTuner(ModelSlot(), cache=cache, choose=lambda *_, **__: pytest.fail("searched again"))
    tuner.consider(blob)
    tuner.stop()
    (entry,) = cache.directory.glob("*.json")
    assert json.loads(entry.read_text())["engine"] == "onnxruntime"


@pytest.mark.parametrize(("provider", "match"), [("cuda", "CUDA"), ("tensorrt", "Tensorrt"), ("abacus", "known ones")])
def test_providers_that_are_missing_are_named(provider, match):
    import onnxruntime

    if f"{match}ExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("it is there")
    with pytest.raises(InputError, match=match):
        providers(provider, "auto", None)


def test_precisions_that_an_engine_lacks_are_refused(blob):
    for engine, precision in (("onnxruntime", "bfloat16"), ("torch", "float16"), ("onnxruntime", "float16")):
        with pytest.raises(InputError, match=precision):
            load_engine(blob, engine, precision=precision)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no CUDA device"):
            load_engine(blob, "torch-cuda")
