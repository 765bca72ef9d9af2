"""Splits never part what shows the same features, do not move when the corpus grows, and rehearsal keeps its budget."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.training.catalog import CatalogEntry
from ptycho_bluesky.training.splits import SplitFractions, rehearsal_rows, split_frames_by_area, split_scans

HALF = SplitFractions(validation=0.3, test=0.3, seed=1)


def entry(number, centre=(0.0, 0.0), num_frames=100, regime="a", sample=""):
    (y, x), half = centre, 1e-6
    return CatalogEntry(
        f"run-{number}",
        f"run-{number}.h5",
        num_frames,
        (64, 64),
        (64, 64),
        1e-8,
        regime={"key": regime},
        area={"y_m": [y - half, y + half], "x_m": [x - half, x + half], "sample": sample},
    )


def test_scans_of_one_place_stay_together_and_growth_moves_none():
    entries = [entry(k, centre=(0.0, (k // 3) * 1e-5)) for k in range(60)]
    parts = split_scans(entries, HALF)
    for first in range(0, 60, 3):
        assert len({parts[f"run-{first + k}"] for k in range(3)}) == 1
    assert set(parts.values()) == {"train", "validation", "test"}
    for size in (1, 10, 31):
        assert all(parts[uid] == part for uid, part in split_scans(entries[:size], HALF).items())
    apart = split_scans([entry(k, sample=f"sample {k}") for k in range(60)], HALF)
    assert set(apart.values()) == {"train", "validation", "test"}
    unnamed = split_scans([entry(k, sample="" if k % 2 else "one") for k in range(60)], HALF)
    assert len(set(unnamed.values())) == 1


def test_a_scan_that_joins_two_parts_is_dropped():
    places = [entry(k, centre=(0.0, k * 1e-5)) for k in range(20)]
    parts = split_scans(places, HALF)
    one = next(k for k in range(19) if parts[f"run-{k}"] != parts[f"run-{k + 1}"])
    bridge = [entry(90 + k, centre=(0.0, one * 1e-5 + k * 2e-6)) for k in range(6)]
    found = split_scans([*places, bridge[0], bridge[5], bridge[2]], HALF)
    assert found["run-90"] == parts[f"run-{one}"]
    assert found["run-95"] == parts[f"run-{one + 1}"]
    wide = entry(99, centre=(0.0, (one + 0.5) * 1e-5))
    wide = CatalogEntry(**{**wide.as_dict(), "area": {**wide.area, "x_m": [one * 1e-5, (one + 1) * 1e-5]}})
    assert split_scans([*places, wide], HALF)["run-99"] == "dropped"


@given(st.integers(0, 1000), st.floats(0.0, 0.9))
def test_frames_of_different_parts_keep_the_gap(seed, gap):
    position = np.random.default_rng(seed).uniform(-3, 3, (80, 2))
    rows = split_frames_by_area(position, 1.0, gap, SplitFractions(0.3, 0.3, seed))
    assert sorted(np.concatenate(list(rows.values())).tolist()) == list(range(80))
    kept = [rows["train"], rows["validation"], rows["test"]]
    for one in range(3):
        for other in range(one):
            distance = np.abs(position[kept[one]][:, None] - position[kept[other]][None]).max(axis=2)
            assert (distance >= gap - 1e-9).all()


def test_bad_splits_are_refused():
    with pytest.raises(InputError, match="left to train"):
        SplitFractions(0.6, 0.5)
    with pytest.raises(InputError, match="gap"):
        split_frames_by_area(np.zeros((2, 2)), 1.0, 1.0, HALF)
    with pytest.raises(InputError, match="finite"):
        split_frames_by_area(np.full((2, 2), np.nan), 1.0, 0.5, HALF)
    with pytest.raises(InputError, match="budget"):
        rehearsal_rows([entry(0)], [], -1)


def test_rehearsal_takes_all_of_the_new_and_shares_the_budget_by_regime():
    entries = [entry(k, regime="common") for k in range(9)] + [entry(9, regime="rare"), entry(10)]
    rows = rehearsal_rows(entries, ["run-10"], 120)
    sizes = {uid: len(value) for uid, value in rows.items()}
    assert sizes["run-10"] == 100
    assert sizes["run-9"] == 60
    assert sum(sizes[f"run-{k}"] for k in range(9)) == 60
    assert all((np.diff(value) > 0).all() for value in rows.values())
    assert {uid: len(value) for uid, value in rehearsal_rows(entries, ["run-10"], 0).items()} == {
        f"run-{k}": 100 for k in range(11)
    }
    smaller = rehearsal_rows(entries, ["run-10"], 60)
    assert all(set(smaller[uid]) <= set(rows[uid]) for uid in rows)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(1, 200))
def test_the_budget_is_spent_and_never_exceeded(sizes, budget):
    entries = [entry(k, num_frames=size) for k, size in enumerate(sizes)]
    assert sum(map(len, rehearsal_rows(entries, [], budget).values())) == min(budget, sum(sizes))
