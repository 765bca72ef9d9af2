"""The worker's training stage reads the corpus as ``ptycho-bluesky train`` does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ptycho_bluesky.config import TrainSettings
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.models.export import from_onnx, read_manifest
from ptycho_bluesky.training.corpus import Corpus
from ptycho_bluesky.training.loader import DiskBatches
from ptycho_bluesky.training.options import TrainOptions
from ptycho_bluesky.training.trainer import TrainingStoppedError, train
from ptycho_bluesky.workflow.stages import Job, LearningStages

SETTINGS = TrainSettings(architecture="lean8", frames_per_scan=96, batch_size=16, buffer_frames=24)
RUNS = ("run-1", "run-2", "run-3")


@pytest.fixture
def corpus(tmp_path, labels_a, labels_b, reserved):
    """Three runs of 96 frames."""
    found = Corpus(tmp_path / "corpus")
    for labels in (labels_a, labels_b, reserved):
        found.add(labels)
    return found


@pytest.fixture
def make_job(tmp_path, corpus):
    def make(name: str = "run", **changes) -> Job:
        (tmp_path / name).mkdir(exist_ok=True)
        settings = {**SETTINGS.model_dump(), **changes}
        return Job(str(tmp_path / name), str(corpus.directory), {}, settings, str(tmp_path / "stop"))

    return make


def _weights(content):
    return from_onnx(content)[0].network.state_dict()


def _assert_same(ours, theirs):
    for name, value in _weights(theirs).items():
        np.testing.assert_array_equal(_weights(ours)[name], value)


def test_a_worker_trains_from_disk_as_the_command_does(monkeypatch, corpus, make_job):
    parent = train(corpus, TrainOptions.from_settings(SETTINGS), runs=RUNS[:1]).content
    options = TrainOptions.from_settings(SETTINGS, rehearsal_frames=40)
    expected = train(corpus, options, runs=RUNS, parent=parent)
    job = make_job(rehearsal_frames=40)
    (job.files.path / "parent.onnx").write_bytes(parent)
    monkeypatch.setattr("ptycho_bluesky.training.training_data.BatchLoader", None)
    monkeypatch.setattr("ptycho_bluesky.training.training_data.SAMPLED_FRAMES", 20)
    loaded, buffered = [], []
    load = Corpus.load
    monkeypatch.setattr(Corpus, "load", lambda *a: loaded.append(load(*a)) or loaded[-1])
    monkeypatch.setattr("ptycho_bluesky.training.loading.disk_loader._Buffer", _noting(buffered))
    result = LearningStages().train(job, RUNS, str(job.files.path / "parent.onnx"), {})
    # of the old runs a sample, of the new ones the newest; the rest is never in memory
    assert [np.bincount(arrays.run).tolist() for arrays in loaded] == [[10, 10, 96]]
    assert buffered == [24]
    model = job.files.model.read_bytes()
    assert read_manifest(model)["recipe"]["buffer_frames"] == 24
    assert result["figures"]["train_frame_updates"] == expected.frame_updates
    _assert_same(model, expected.content)


def _noting(sizes):
    from ptycho_bluesky.training.loading import disk_loader

    class Noting(disk_loader._Buffer):
        def __init__(self, store, capacity):
            super().__init__(store, capacity)
            sizes.append(len(self.arrays["image"]))

    return Noting


def test_a_worker_that_was_stopped_goes_on_from_disk(monkeypatch, corpus, make_job):
    whole, cut = (make_job(name, frames_per_scan=192) for name in ("whole", "cut"))
    LearningStages().train(whole, RUNS, None, {})
    stop, batches, taken = cut.files.path.parent / "stop", DiskBatches.batches, []

    def stopping(self, first_step, num_steps):
        """The worker is asked to stop in the second epoch, whose buffer is full."""
        for step, batch in enumerate(batches(self, first_step, num_steps), first_step):
            taken.append(step)
            if step == 21 and first_step == 0:
                stop.touch()
            yield batch

    monkeypatch.setattr(DiskBatches, "batches", stopping)
    with pytest.raises(TrainingStoppedError):
        LearningStages().train(cut, RUNS, None, {})
    stop.unlink()
    LearningStages().train(cut, RUNS, None, {})
    assert taken == list(range(36))
    _assert_same(cut.files.model.read_bytes(), whole.files.model.read_bytes())


def test_without_a_buffer_it_trains_from_memory(monkeypatch, corpus, make_job):
    monkeypatch.setattr("ptycho_bluesky.training.training_data.FrameStore", None)
    job = make_job(buffer_frames=0)
    regime = {"image_shape": (64, 64), "probe": RUNS[0]}
    LearningStages().train(job, RUNS[:2], None, regime)
    known = [entry.regime.get("probe") for entry in corpus.entries()]
    assert known == [RUNS[0], RUNS[0], None], "the corpus knows the regime of what was trained on"
    expected = train(corpus.load(RUNS[:2]), TrainOptions.from_settings(SETTINGS, buffer_frames=0))
    _assert_same(job.files.model.read_bytes(), expected.content)


class _Changed(LearningStages):
    """What other stages make of the corpus in memory is what is trained on."""

    def corpus(self, job, runs):
        arrays = Corpus(job.corpus_dir).load(list(runs))
        return replace(arrays, phase_rad=arrays.phase_rad[::-1].copy())


def test_stages_that_change_the_corpus_train_on_what_they_made(corpus, make_job):
    job = make_job(buffer_frames=0)
    _Changed().train(job, RUNS[:1], None, {})
    plain = train(corpus, TrainOptions.from_settings(SETTINGS, buffer_frames=0), runs=RUNS[:1])
    assert any(
        not np.array_equal(value, _weights(plain.content)[name])
        for name, value in _weights(job.files.model.read_bytes()).items()
    )
    with pytest.raises(InputError, match="folder"):
        _Changed().train(make_job(), RUNS[:1], None, {})
