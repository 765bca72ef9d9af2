from __future__ import annotations

import numpy as np
import pytest

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.training.suggest import SCRATCH_BELOW, Fingerprint, compare, rank


def frames(probe_seed: int, sample_seed: int, n: int = 60, noise_seed: int = 0) -> np.ndarray:
    """Amplitudes of one mean pattern plus few ways to differ from it, with photon noise."""
    probe = np.random.default_rng(probe_seed).gamma(2.0, size=(16, 16)) * 8
    ways = np.random.default_rng(1000 + sample_seed).normal(0, 1.5, (4, 16, 16))
    rng = np.random.default_rng(noise_seed)
    amplitude = np.abs(probe + np.tensordot(rng.normal(size=(n, 4)), ways, 1))
    return rng.poisson(amplitude**2)


def test_the_most_similar_corpus_comes_first():
    new = Fingerprint.of(frames(1, 1, noise_seed=9), 1e-8)
    corpora = {
        "same": [("a", Fingerprint.of(frames(1, 1), 1e-8))],
        "sample": [("b", Fingerprint.of(frames(1, 2), 1e-8))],
        "probe": [("c", Fingerprint.of(frames(2, 2), 1e-8))],
        "geometry": [("d", Fingerprint.of(frames(1, 1), 2e-8))],
    }
    found = rank(new, corpora)
    assert next(each.model_id for each in found) == "same"
    assert {each.model_id for each in found} == {"same", "sample", "probe", ""}
    by_id = {each.model_id: each.similarity for each in found}
    assert by_id["same"].probe > 0.99
    assert by_id["same"].sample > 0.9
    assert by_id["sample"].probe > 0.99
    assert by_id["sample"].sample < 0.5 * by_id["same"].sample
    assert by_id["probe"].probe < by_id["same"].probe
    assert found[0].run_uid == "a"


def test_scratch_stands_where_nothing_is_alike():
    new = Fingerprint.of(frames(1, 1, noise_seed=9), 1e-8)
    found = rank(new, {"other": [("a", Fingerprint.of(frames(2, 2), 1e-8))]})
    assert found[-1].similarity.total < SCRATCH_BELOW
    assert [each.model_id for each in found] == ["", "other"]
    assert rank(new, {})[0].model_id == ""


def test_the_best_run_of_a_corpus_counts():
    new = Fingerprint.of(frames(1, 1, noise_seed=9), None)
    runs = [("far", Fingerprint.of(frames(1, 2), None)), ("near", Fingerprint.of(frames(1, 1), None))]
    assert rank(new, {"m": runs})[0].run_uid == "near"


def test_the_dose_hardly_matters_to_the_probe():
    bright, dim = frames(1, 1), frames(1, 1, noise_seed=4) // 4
    found = compare(Fingerprint.of(dim, 1e-8), Fingerprint.of(bright, 1e-8))
    assert found.probe > 0.97


def test_dark_frames_are_refused():
    with pytest.raises(InputError, match="frames with light"):
        Fingerprint.of(np.zeros((20, 8, 8)), 1e-8)
