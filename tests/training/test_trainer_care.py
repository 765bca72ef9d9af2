"""What a training must not lose, mix up or begin in vain."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ptycho_bluesky.config import TrainSettings
from ptycho_bluesky.errors import InputError, StorageError
from ptycho_bluesky.training.corpus import Corpus
from ptycho_bluesky.training.loop import TrainingLoop
from ptycho_bluesky.training.options import TrainOptions
from ptycho_bluesky.training.trainer import TrainingStoppedError, train
from ptycho_bluesky.workflow.stages import Job, LearningStages

QUICK = TrainOptions(architecture="lean8", frames_per_scan=160, batch_size=16, num_threads=1, precision="float32")


def full_disk(*_):
    raise StorageError("model: no space left", "", "free space")


def stop_at_once(*args, **kwargs):
    """Start a training, and stop it before its first step."""
    with pytest.raises(TrainingStoppedError):
        train(*args, **kwargs, should_stop=lambda: True)


@pytest.fixture
def taken_steps(monkeypatch):
    """Steps that a training takes."""
    take, taken = TrainingLoop._take_step, []
    monkeypatch.setattr(TrainingLoop, "_take_step", lambda *a: taken.append(1) or take(*a))

    def run(*args, **kwargs):
        taken.clear()
        train(*args, **kwargs)
        return len(taken)

    return run


def test_a_model_that_cannot_be_written_keeps_the_checkpoint(tmp_path, labels_a, taken_steps):
    with pytest.raises(StorageError, match="space"):
        train([labels_a], QUICK, checkpoint_dir=tmp_path, write=full_disk)
    written = []
    assert taken_steps([labels_a], QUICK, checkpoint_dir=tmp_path, write=written.append) == 0
    assert written[0].content == train([labels_a], QUICK).content
    assert len(written[0].curve["loss_rad"]) == 1
    assert not (tmp_path / "training.pt").exists()


def test_a_worker_that_cannot_write_its_model_keeps_the_checkpoint(tmp_path, monkeypatch, labels_a):
    corpus = Corpus(tmp_path / "corpus")
    corpus.add(labels_a)
    settings = TrainSettings(architecture="lean8", frames_per_scan=48, batch_size=16)
    job = Job(str(tmp_path), str(corpus.directory), {}, settings.model_dump(), str(tmp_path / "stop"))
    with monkeypatch.context() as patched:
        patched.setattr("ptycho_bluesky.workflow.stages.write_bytes", full_disk)
        with pytest.raises(StorageError):
            LearningStages().train(job, ("run-1",), None, {})
    assert (job.files.training / "training.pt").exists()
    monkeypatch.setattr(TrainingLoop, "_take_step", None)
    result = LearningStages().train(job, ("run-1",), None, {})
    assert job.files.record.exists()
    assert result["figures"]["train_frame_updates"] == 48
    assert not (job.files.training / "training.pt").exists()


def test_a_full_disk_at_the_end_does_not_cost_the_model(tmp_path, monkeypatch, labels_a):
    monkeypatch.setattr("ptycho_bluesky.training.loop.Checkpoint.save", full_disk)
    assert train([labels_a], QUICK, checkpoint_dir=tmp_path).frame_updates == 160


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_there_is_told_before_anything_is_read(tmp_path, device):
    with pytest.raises(InputError, match=device):
        train(Corpus(tmp_path), QUICK.model_copy(update={"device": device}))


def test_labels_of_another_geometry_do_not_validate(labels_a, reserved):
    inner = (slice(None), slice(16, 48), slice(16, 48))
    small = replace(reserved, image=reserved.image[inner], phase_rad=reserved.phase_rad[inner])
    coarse = replace(reserved, pixel_size_m=reserved.pixel_size_m * 1.5)
    for validation, match in ((small, r"frames \(32, 32\)"), (coarse, "a pixel")):
        asked = []
        with pytest.raises(InputError, match=match):
            train([labels_a], QUICK, validation=validation, should_stop=lambda asked=asked: bool(asked.append(1)))
        assert not asked


def test_a_parent_of_another_pixel_is_refused(labels_a):
    parent = train([labels_a], QUICK.model_copy(update={"frames_per_scan": 16})).content
    with pytest.raises(InputError, match="a pixel"):
        train([replace(labels_a, pixel_size_m=labels_a.pixel_size_m * 1.2)], QUICK, parent=parent)


def test_a_checkpoint_of_other_labels_is_not_used(tmp_path, labels_a, taken_steps):
    stopped = iter([False] * 5)
    with pytest.raises(TrainingStoppedError):
        train([labels_a], QUICK, checkpoint_dir=tmp_path, should_stop=lambda: next(stopped, True))
    assert taken_steps([replace(labels_a, phase_rad=-labels_a.phase_rad)], QUICK, checkpoint_dir=tmp_path) == 10


def test_a_checkpoint_chosen_by_other_labels_is_not_used(tmp_path, labels_a, labels_b, reserved, taken_steps):
    options = QUICK.model_copy(update={"recipe": "published", "epochs": 3, "architecture": "ptychonn2"})
    for validation, steps in ((labels_b, 3), (reserved, 1)):
        stopped = iter([False, False])
        with pytest.raises(TrainingStoppedError):
            train(
                [labels_a], options, validation=reserved, checkpoint_dir=tmp_path,
                should_stop=lambda stopped=stopped: next(stopped, True),
            )  # fmt: skip
        assert taken_steps([labels_a], options, validation=validation, checkpoint_dir=tmp_path) == steps


def test_the_default_recipe_goes_on_whatever_validates(tmp_path, labels_a, labels_b, reserved, taken_steps):
    stopped = iter([False] * 5)
    with pytest.raises(TrainingStoppedError):
        train([labels_a], QUICK, validation=reserved, checkpoint_dir=tmp_path, should_stop=lambda: next(stopped, True))
    assert taken_steps([labels_a], QUICK, validation=labels_b, checkpoint_dir=tmp_path) == 5


def test_the_curve_of_another_training_is_not_overwritten(tmp_path, labels_a, labels_b, taken_steps):
    curve = tmp_path / "log" / "curve.csv"
    train([labels_a], QUICK, checkpoint_dir=tmp_path, log_dir=curve.parent)
    kept, files = curve.read_bytes(), sorted(curve.parent.iterdir())
    stop_at_once([labels_b], QUICK, checkpoint_dir=tmp_path)
    with pytest.raises(InputError, match="log folder"):
        train([labels_a], QUICK, checkpoint_dir=tmp_path, log_dir=curve.parent)
    assert (curve.read_bytes(), sorted(curve.parent.iterdir())) == (kept, files)
    # the checkpoint that lay there is as it was
    assert taken_steps([labels_b], QUICK, checkpoint_dir=tmp_path) == 10


def test_a_training_that_was_killed_goes_on_with_its_own_curve(tmp_path, monkeypatch, labels_a):
    """Killed after a point of the curve and before the first periodic checkpoint."""
    options = QUICK.model_copy(update={"frames_per_scan": 480})

    def killed(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train([labels_a], options, checkpoint_dir=tmp_path, log_dir=tmp_path / "log", progress=killed)
    lines = (tmp_path / "log" / "curve.csv").read_text().splitlines()
    assert len(lines) == 2
    train([labels_a], options, checkpoint_dir=tmp_path, log_dir=tmp_path / "log")
    assert np.char.startswith((tmp_path / "log" / "curve.csv").read_text().splitlines(), "320,").sum() == 1
