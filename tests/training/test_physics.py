"""What is measured of a model when it is made, on labels that are the truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.models import build
from ptycho_bluesky.models.export import from_onnx, read_manifest, to_onnx
from ptycho_bluesky.models.reader import PhaseReader, Preprocessing
from ptycho_bluesky.training.corpus import join_label_sets
from ptycho_bluesky.training.evaluate import predict
from ptycho_bluesky.training.options import TrainOptions
from ptycho_bluesky.training.physics import measure_physics, stamp_physics
from ptycho_bluesky.training.trainer import train
from ptycho_bluesky.trust.light import Light
from ptycho_bluesky.trust.physics import read_physics


@pytest.fixture(autouse=True)
def one_thread():
    """Two threads that meet after every layer spin on busy cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def few(labels_a):
    columns = ("image", "phase_rad", "amplitude", "position_m", "frame_index")
    return replace(labels_a, **{name: getattr(labels_a, name)[:24] for name in columns})


@pytest.fixture(scope="module")
def reader() -> PhaseReader:
    return PhaseReader(build("ptychonn2"), Preprocessing(scale=0.1))


def lit(labels, **light):
    return replace(labels, provenance={**labels.provenance, "light": light})


def test_the_label_is_the_floor_and_the_flat_patch_the_ceiling(few, reader):
    physics = measure_physics(reader, few, Light(i0=5.0))
    assert physics is not None
    figures = physics.figures
    # linear interpolation blurs the labels, so the floor lies above shot noise
    assert 1.0 < figures["residual_label"] < 0.2 * figures["residual_flat"]
    assert figures["unexplained_label"] < 0.1
    assert (figures["of"], figures["frames"]) == ("training", len(few))
    assert physics.light.i0 == 5.0
    assert physics.light.mean_counts == pytest.approx(few.image.sum(axis=(1, 2)).mean())
    # the probe came in another unit than the counts
    assert (np.abs(physics.probe) ** 2).sum() == pytest.approx(physics.light.mean_counts, rel=0.2)
    assert physics.amplitude.slope == pytest.approx(np.log(1 / 0.9), rel=0.05)  # of the simulated material
    assert physics.limits is not None
    assert physics.limits.contrast[0] < physics.limits.contrast[1]


def test_limits_come_from_frames_that_were_held_out(few, reader):
    physics = measure_physics(reader, few, Light(), held_out=replace(few))
    assert physics is not None
    assert physics.figures["of"] == "held out"


def test_labels_on_another_grid_have_no_physics(few, reader):
    coarse = replace(few, pixel_size_m=2 * few.pixel_size_m)
    assert measure_physics(reader, coarse, Light()) is None
    dark = replace(few, probe=np.zeros_like(few.probe))
    assert measure_physics(reader, dark, Light()) is None


def test_a_model_made_elsewhere_is_stamped(few):
    content = to_onnx(build("ptychonn2"), few.image.shape[1:])
    assert read_physics(read_manifest(content))[0] is None
    stamped = stamp_physics(content, few, Light(i0=2.0))
    physics, reason = read_physics(read_manifest(stamped))
    assert reason == ""
    assert physics is not None
    assert physics.light.i0 == 2.0
    assert {k: v for k, v in read_manifest(stamped).items() if k != "physics"} == read_manifest(content)
    with pytest.raises(InputError, match="grid"):
        stamp_physics(content, replace(few, pixel_size_m=1e-9), Light())


def test_label_sets_are_brought_to_the_light_of_the_newest(labels_a, labels_b):
    joined = join_label_sets([lit(labels_a, i0=1.0), lit(labels_b, i0=4.0)])
    n = len(labels_a)
    np.testing.assert_allclose(joined.image[:n], 4.0 * labels_a.image)
    np.testing.assert_array_equal(joined.image[n:], labels_b.image)
    assert joined.light == {"i0": 4.0}
    same = join_label_sets([lit(labels_a, i0=4.0), lit(labels_b, i0=4.0)])
    assert same.image.dtype == labels_a.image.dtype


def test_a_retrained_model_is_fed_at_another_light_what_its_parent_was_fed(labels_a):
    """Sixteen times less light: the parent's mean frame and scale go with the counts, or nothing learned is of use."""
    options = TrainOptions.create(architecture="lean8", frames_per_scan=2000, num_threads=1, average_frames=0)
    bright = lit(labels_a, exposure_s=16.0)
    parent = train([bright], options).content
    dim = replace(lit(labels_a, exposure_s=1.0), image=labels_a.image.astype(np.float32) / 16, run_uid="dim")
    # One step of so low a rate changes nothing.
    still = TrainOptions.create(**{**options.model_dump(), "frames_per_scan": 8, "learning_rate": 1e-9})
    child = train([bright, dim], still, parent=parent).content
    before, after = (
        predict(from_onnx(model)[0], image) for model, image in ((parent, bright.image), (child, dim.image))
    )
    np.testing.assert_allclose(after, before, atol=2e-3)
    assert np.abs(before).max() > 0.2
    assert read_physics(read_manifest(child))[0].light.exposure_s == 1.0
