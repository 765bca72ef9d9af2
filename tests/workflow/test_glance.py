"""The cheap look at the middle of a run."""

from __future__ import annotations

import numpy as np
import pytest

from ptycho_bluesky.reconstruction import EpieOptions, reconstruct
from ptycho_bluesky.simulation.scans import spiral_scan
from ptycho_bluesky.training.corpus import join_label_sets
from ptycho_bluesky.training.labels import make_labels
from ptycho_bluesky.training.options import TrainOptions
from ptycho_bluesky.training.trainer import train
from ptycho_bluesky.workflow.glance import MIN_FRAMES, glance, middle


def test_middle_is_the_part_next_to_the_median():
    angle = np.arange(400) * 2.4
    position = np.sqrt(np.arange(400))[:, None] * np.stack([np.sin(angle), np.cos(angle)], axis=1)
    position[7] = np.nan
    rows = middle(position, 0.25)
    assert len(rows) == 100
    assert 7 not in rows
    assert np.nanmax(np.linalg.norm(position[rows], axis=1)) < 11.0
    assert len(middle(position, 0.01)) == MIN_FRAMES


@pytest.mark.slow
def test_a_model_that_learned_reads_the_middle_better_than_one_that_did_not():
    measurement, _ = spiral_scan(160, 64)
    options = EpieOptions(iterations=10)
    labels = make_labels(reconstruct(measurement, options), measurement)
    arrays = join_label_sets([labels])

    def model(frames):
        chosen = TrainOptions.create(architecture="lean8", frames_per_scan=frames, num_threads=1)
        return train(arrays, chosen).content

    found = [glance(measurement, options, model(frames), 0.5)["figures"] for frames in (3000, 8)]
    assert found[0]["glance_score"] > found[1]["glance_score"] + 0.2
    assert found[0]["glance_frames"] == 80
    assert found[0]["glance_frame_updates"] == 800
