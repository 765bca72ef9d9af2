from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ptycho_bluesky.config import TrainSettings
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import D4_OPERATIONS
from ptycho_bluesky.models.export import from_onnx, read_manifest
from ptycho_bluesky.simulation.forward import diffract
from ptycho_bluesky.training.averaging import WeightAverage
from ptycho_bluesky.training.corpus import Corpus, join_label_sets
from ptycho_bluesky.training.distributed import Ranks
from ptycho_bluesky.training.evaluate import evaluate, stitch_patches
from ptycho_bluesky.training.loader import BatchLoader
from ptycho_bluesky.training.options import TrainOptions
from ptycho_bluesky.training.recipes import learning_rate, make_plan
from ptycho_bluesky.training.registry import content_id
from ptycho_bluesky.training.symmetry import probe_asymmetry, symmetric_operations
from ptycho_bluesky.training.trainer import TrainingStoppedError, prepare, train
from ptycho_bluesky.training.training_data import gather

QUICK = TrainOptions(frames_per_scan=160, batch_size=16, num_threads=1, precision="float32")


def weights(content):
    return from_onnx(content)[0].network.state_dict()


def test_training_learns_and_records_what_it_did(tmp_path, labels_a, reserved):
    corpus = Corpus(tmp_path)
    corpus.add(labels_a)
    calls = []
    options = QUICK.model_copy(update={"frames_per_scan": 800})
    result = train(corpus, options, validation=reserved, progress=lambda *a: calls.append(a), regime={"size": 64})
    assert result.frame_updates == 800
    assert calls[-1][:2] == (800, 800)
    loss = result.curve["loss_rad"]
    assert loss[-1] < 0.7 * loss[0]
    assert result.record.model_id == content_id(result.content)
    assert result.record.training_runs == ("run-1",)
    assert result.record.regime == {"size": 64}
    assert result.figures == evaluate(result.content, reserved)
    assert result.figures.keys() == {"score", "constant", "l1_rad", "pearson", "frames"}
    manifest = read_manifest(result.content)
    assert manifest["frame_updates"] == 800
    assert manifest["pixel_size_m"] == labels_a.pixel_size_m
    assert np.shape(manifest["patch_weight"]) == (64, 64)
    assert manifest["symmetry"] == list(D4_OPERATIONS)


def test_budget_is_per_new_scan_and_the_parent_is_the_start(labels_a, labels_b):
    first = train([labels_a], QUICK)
    second = train([labels_a, labels_b], QUICK, parent=first.content)
    assert second.frame_updates == 160
    assert second.record.parent_id == first.record.model_id
    assert second.record.training_runs == ("run-1", "run-2")
    assert read_manifest(second.content)["frame_updates"] == 320
    assert train([labels_a, labels_b], QUICK).frame_updates == 320
    # nothing moves at a vanishing rate: the start is the parent
    still = train([labels_b], QUICK.model_copy(update={"learning_rate": 1e-12}), parent=first.content)
    for key, value in weights(first.content).items():
        torch.testing.assert_close(weights(still.content)[key], value, atol=1e-6, rtol=0)
    assert still.record.training_runs == ("run-1", "run-2")


def test_a_stopped_training_goes_on_where_it_was(tmp_path, labels_a):
    whole = train([labels_a], QUICK)
    steps = iter(range(100))
    with pytest.raises(TrainingStoppedError):
        train([labels_a], QUICK, checkpoint_dir=tmp_path, should_stop=lambda: next(steps) >= 4)
    assert (tmp_path / "training.pt").exists()
    calls = []
    resumed = train([labels_a], QUICK, checkpoint_dir=tmp_path, should_stop=lambda: bool(calls.append(1)))
    assert len(calls) == 6
    assert resumed.content == whole.content
    np.testing.assert_array_equal(resumed.curve["loss_rad"], whole.curve["loss_rad"])
    assert not (tmp_path / "training.pt").exists()


def test_a_checkpoint_of_another_training_or_a_damaged_one_is_not_used(tmp_path, labels_a, labels_b):
    with pytest.raises(TrainingStoppedError):
        train([labels_a], QUICK, checkpoint_dir=tmp_path, should_stop=lambda: True)
    other = train([labels_b], QUICK, checkpoint_dir=tmp_path)
    assert other.content == train([labels_b], QUICK).content
    (tmp_path / "training.pt").write_bytes(b"rubbish")
    assert train([labels_b], QUICK, checkpoint_dir=tmp_path).content == other.content


def test_published_recipe_is_what_was_published(labels_a, reserved):
    options = QUICK.model_copy(update={"recipe": "published", "epochs": 2})
    result = train([labels_a], options, validation=reserved)
    reader, manifest = from_onnx(result.content)
    assert reader.preprocessing.as_dict() == {"sqrt": False, "scale": 1.0, "offset": False}
    assert manifest["symmetry"] == ["identity"]
    assert result.frame_updates == 2 * 64
    plan = make_plan(options.model_copy(update={"epochs": 50}), 6400, 1, labels_a.weight)
    assert (plan.num_steps, plan.batch_size, plan.initialisation) == (5000, 64, "torch")
    rates = np.array([learning_rate(plan, step) for step in range(5000)])
    assert rates[0] == pytest.approx(1e-4)
    assert rates[600] == pytest.approx(5e-4)
    assert rates[1200] == pytest.approx(1e-4)
    assert rates[1800] == pytest.approx(3e-4)
    np.testing.assert_array_equal(plan.loss_weight, 1)


def test_published_networks_begin_as_the_recipe_says(labels_a, reserved):
    for architecture in ("ptychonn2", "ptychonn"):
        for recipe, zero in (("published", False), ("default", True)):
            options = QUICK.model_copy(update={"architecture": architecture, "recipe": recipe})
            network = prepare([labels_a], options, validation=reserved).loop.network
            biases = [value for name, value in network.named_parameters() if name.endswith("bias")]
            assert all(bool((bias == 0).all()) is zero for bias in biases)
    with pytest.raises(InputError, match="lean8"):
        prepare([labels_a], QUICK.model_copy(update={"architecture": "lean8", "initialisation": "torch"}))


def test_parents_that_do_not_fit_are_refused(labels_a, reserved):
    parent = train([labels_a], QUICK.model_copy(update={"frames_per_scan": 16})).content
    with pytest.raises(InputError, match="preprocessing"):
        train([labels_a], QUICK.model_copy(update={"recipe": "published"}), parent=parent, validation=reserved)
    with pytest.raises(InputError, match="a pixel"):
        train([replace(labels_a, pixel_size_m=1e-8)], QUICK, parent=parent)
    small = replace(
        labels_a,
        image=labels_a.image[:, 16:48, 16:48],
        phase_rad=labels_a.phase_rad[:, 16:48, 16:48],
        probe=labels_a.probe[:, 16:48, 16:48],
    )
    with pytest.raises(InputError, match="frames"):
        train([small], QUICK, parent=parent)


def test_labels_that_are_not_finite_stop_the_training(labels_a):
    phase = labels_a.phase_rad.copy()
    phase[:, 30, 30] = np.nan
    with pytest.raises(InputError, match="loss nan"):
        train([replace(labels_a, phase_rad=phase)], QUICK)


def test_options_name_the_key():
    with pytest.raises(InputError, match="batch_size"):
        TrainOptions.create(batch_size=0)
    options = TrainOptions.from_settings(TrainSettings(learning_rate=3e-4), augment="off")
    assert (options.learning_rate, options.augment, options.frames_per_scan) == (3e-4, "off", 10_000)


def test_every_epoch_shows_every_frame_once(labels_a, labels_b):
    arrays = join_label_sets([labels_a, labels_b])
    loader = BatchLoader(arrays, 24, seed=5)
    seen = np.concatenate([loader.indices(step) for step in range(16)])
    for epoch in np.split(seen, 2):
        assert sorted(epoch) == list(range(192))
    assert (seen[:192] != seen[192:]).any()
    np.testing.assert_array_equal(BatchLoader(arrays, 24, seed=5).indices(9), seen[9 * 24 : 10 * 24])
    favoured = BatchLoader(arrays, 24, seed=5, new_runs=["run-2"], new_fraction=0.5)
    for step in range(3):
        assert (arrays.run[favoured.indices(step)[12:]] == 1).all()


@pytest.mark.parametrize("operation", D4_OPERATIONS)
def test_a_turned_frame_is_the_frame_of_the_turned_object(labels_a, operation):
    probe = labels_a.probe[0]
    assert probe_asymmetry(probe, operation) < 1e-3
    arrays = join_label_sets([replace(labels_a, image=labels_a.image[:1], phase_rad=labels_a.phase_rad[:1])])
    arrays = replace(arrays, run=arrays.run[:1])
    plain, turned = (BatchLoader(arrays, 1, 0, operations=[name]).batch(0) for name in ("identity", operation))
    objects = [np.exp(1j * phase[0, 0]).astype(np.complex64) for _, phase in (plain, turned)]
    frames = [diffract(probe, obj, np.array([[32.0, 32.0]]))[0] for obj in objects]
    expected = BatchLoader(replace(arrays, image=frames[0][None]), 1, 0, operations=[operation]).batch(0)[0][0, 0]
    np.testing.assert_allclose(frames[1], expected, atol=2e-3 * frames[0].max())


def test_a_lopsided_probe_is_not_turned(labels_a):
    probe = labels_a.probe.copy()
    probe[:, :, 32:] *= 0.3
    assert symmetric_operations(probe, 0.05) == ("identity", "flip_rows")
    assert symmetric_operations(labels_a.probe, 0.05) == D4_OPERATIONS


def test_stitched_labels_score_one_and_a_constant_nothing(labels_a):
    weight = labels_a.weight
    image = stitch_patches(labels_a.phase_rad, labels_a.position_m, labels_a.pixel_size_m, weight)
    assert image.coverage.max() > 3
    result = train([labels_a], QUICK.model_copy(update={"frames_per_scan": 16}))
    figures = evaluate(result.content, labels_a)
    assert abs(figures["constant"]) < 0.05
    assert figures["frames"] == len(labels_a)


def test_a_network_that_answers_a_constant_has_figures(labels_a):
    reader, _ = from_onnx(train([labels_a], QUICK.model_copy(update={"frames_per_scan": 16})).content)
    with torch.no_grad():
        for parameter in reader.network.parameters():
            parameter.zero_()
    figures = evaluate(reader, labels_a)
    assert figures["pearson"] == 0.0
    assert np.isfinite(list(figures.values())).all()


def test_what_an_older_run_shows_of_the_area_held_out_is_not_trained_on(labels_a):
    wide = replace(labels_a, position_m=labels_a.position_m * 4)
    older = replace(wide, run_uid="older", image=wide.image + 1)
    options = QUICK.model_copy(update={"recipe": "published"})
    data = gather([older, wide], options, ())
    assert data.held_out is not None
    assert {0, 1} == set(data.arrays.run.tolist())
    distance = np.linalg.norm(data.arrays.position_m[:, None] - data.held_out.position_m[None], axis=-1)
    assert distance.min() >= 0.99 * wide.phase_rad.shape[-1] / 2 * wide.pixel_size_m


def test_the_published_recipe_holds_an_area_out(labels_a):
    # a tenth of 96 frames validates, those within half a patch of them train as little
    wide = replace(labels_a, position_m=labels_a.position_m * 2)
    result = train([wide], QUICK.model_copy(update={"recipe": "published", "epochs": 1}))
    assert result.frame_updates == 64
    with pytest.raises(InputError, match="both sides"):
        train(
            [replace(labels_a, position_m=labels_a.position_m * 0.1)], QUICK.model_copy(update={"recipe": "published"})
        )


def test_served_weights_are_the_running_mean():
    network = torch.nn.Linear(1, 1, bias=False)
    average = WeightAverage(network, horizon_steps=4)
    trace = []
    for step in range(1, 41):
        with torch.no_grad():
            network.weight.fill_(float(step))
        average.update(step)
        trace.append(float(average.mean[0]))
    # the mean of a ramp lags by its horizon, less one step
    assert trace[-1] == pytest.approx(40 - 3, abs=0.1)
    assert trace[0] < 1.01
    average.swap()
    assert float(network.weight.detach()) == pytest.approx(trace[-1])
    average.swap()
    assert float(network.weight.detach()) == 40


def test_the_rate_falls_over_the_lineage_but_never_ends():
    options = TrainOptions(batch_size=8, learning_rate=1e-3, decay_frames=20_000, frames_per_scan=16_000)
    weight = np.ones((64, 64), dtype=np.float32)
    first, second, old = (make_plan(options, 963, 1, weight, past) for past in (0, 16_000, 10**9))
    assert learning_rate(first, 0) == pytest.approx(1e-5)
    assert learning_rate(first, 1999) == pytest.approx(1e-3 / np.sqrt(1 + 1999 * 8 / 20_000))
    assert learning_rate(second, 1999) == pytest.approx(1e-3 / np.sqrt(1 + (16_000 + 1999 * 8) / 20_000))
    assert learning_rate(old, 1999) == pytest.approx(1e-4)


def test_schedules_end_where_they_should():
    weight = np.ones((64, 64), dtype=np.float32)
    for schedule, last in (("constant", 1.0), ("cosine", 0.1)):
        options = TrainOptions(schedule=schedule, frames_per_scan=8000, learning_rate=1e-3)
        plan = make_plan(options, 963, 1, weight, past_frames=10**6)
        assert learning_rate(plan, 0) == pytest.approx(1e-5)
        assert learning_rate(plan, plan.num_steps) == pytest.approx(1e-3 * last)


@pytest.mark.parametrize(("inputs", "sqrt", "offset"), [("root", True, False), ("counts", False, False)])
def test_inputs_and_loss_area_can_be_set_back(labels_a, inputs, sqrt, offset):
    options = QUICK.model_copy(update={"frames_per_scan": 16, "inputs": inputs, "loss_area": "whole"})
    reader, _ = from_onnx(train([labels_a], options).content)
    assert reader.preprocessing.as_dict()["sqrt"] is sqrt
    assert reader.preprocessing.as_dict()["offset"] is offset
    np.testing.assert_array_equal(make_plan(options, 96, 1, labels_a.weight).loss_weight, 1)


def test_a_corpus_on_disk_is_brought_to_one_light(tmp_path, labels_a, labels_b):
    dim = replace(labels_b, image=labels_b.image, provenance={"light": {"exposure_s": 0.5}})
    bright = replace(labels_a, provenance={"light": {"exposure_s": 1.0}})
    corpus = Corpus(tmp_path)
    for labels in (dim, bright):
        corpus.add(labels)
    options = QUICK.model_copy(update={"buffer_frames": 50, "augment": "off"})
    data = gather(corpus, options, ())
    plan = make_plan(options, data.num_frames, 2, labels_a.weight)
    source = data.source(plan, options, (), ("identity",), with_amplitude=False, ranks=Ranks())
    counts = np.concatenate([batch.counts for batch in source.batches(0, source.steps_per_epoch)])
    expected = np.concatenate([dim.image * 2.0, bright.image * 1.0])
    assert len(counts) == len(expected)
    np.testing.assert_allclose(np.sort(counts.sum(axis=(1, 2, 3))), np.sort(expected.sum(axis=(1, 2))))
    np.testing.assert_allclose(corpus.load().image, expected)
    with pytest.raises(InputError, match="memory"):
        gather(corpus, options.model_copy(update={"recipe": "published"}), ())
    with pytest.raises(InputError, match="folder"):
        gather([labels_a], options, ())


@pytest.mark.parametrize("changes", [{"buffer_policy": "clairvoyant"}, {"order_epochs": True}])
def test_how_a_corpus_is_buffered_changes_no_batch(tmp_path, labels_a, labels_b, changes):
    corpus = Corpus(tmp_path)
    for labels in (labels_a, labels_b):
        corpus.add(labels)
    options = QUICK.model_copy(update={"buffer_frames": 50, "augment": "off", "frames_per_scan": 500, "batch_size": 32})
    found = []
    for each in (options, options.model_copy(update=changes)):
        data = gather(corpus, each, ())
        plan = make_plan(each, data.num_frames, 2, labels_a.weight)
        source = data.source(plan, each, (), ("identity",), with_amplitude=False, ranks=Ranks())
        found.append([batch.counts.sum(axis=(1, 2, 3)) for batch in source.batches(0, 4 * source.steps_per_epoch)])
        source.close()
    plain, changed = found
    if changes.get("order_epochs"):  # the same epochs in another order
        plain, changed = ([np.concatenate(each[k : k + 6]) for k in range(0, 24, 6)] for each in (plain, changed))
        assert {each.tobytes() for each in plain} == {each.tobytes() for each in changed}
        return
    for one, other in zip(plain, changed, strict=True):
        np.testing.assert_array_equal(one, other)


def test_rehearsal_limits_the_frames_of_old_runs(tmp_path, labels_a, labels_b):
    corpus = Corpus(tmp_path)
    for labels in (labels_a, labels_b):
        corpus.add(labels)
    options = QUICK.model_copy(update={"rehearsal_frames": 10})
    for given in (corpus, [labels_a, labels_b]):
        arrays = gather(given, options, ["run-1"]).arrays
        assert np.bincount(arrays.run).tolist() == [10, 96]
        assert arrays.run_uids == ("run-1", "run-2")


@pytest.mark.slow
def test_each_scan_makes_an_unseen_scan_clearer(make_true_labels, reserved):
    options = TrainOptions(frames_per_scan=4000, num_threads=1, average_frames=800)
    corpus, parent, scores = [], None, []
    for seed in (11, 12):
        corpus.append(make_true_labels(seed, 300))
        result = train(corpus, options, parent=parent, validation=reserved)
        parent = result.content
        scores.append(result.figures["score"])
    assert result.figures["constant"] + 0.02 < scores[0] < scores[1]
    assert scores[1] > 0.2
