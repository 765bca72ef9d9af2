"""Which label sets train, validate and test, and how much of the old ones is rehearsed.

Overlapping frames show the same features, so a split frame by frame leaks and flatters. Splits here are by scan, scans
of one place together, or by area of the sample with a gap between. Both follow from a hash of what is split: a corpus
that grows never moves a scan or an area from one part to another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.training.catalog import CatalogEntry

__all__ = ["Part", "SplitFractions", "rehearsal_rows", "split_frames_by_area", "split_scans"]

Part = Literal["train", "validation", "test", "dropped"]
PARTS: tuple[Part, ...] = ("train", "validation", "test", "dropped")


@dataclass(frozen=True)
class SplitFractions:
    """How much validates and tests; the rest trains.

    Attributes
    ----------
    validation, test : float
        Expected parts of the scans, or of the sample's area.
    seed : int
    """

    validation: float = 0.1
    test: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.validation >= 0 and self.test >= 0 and self.validation + self.test < 1):
            raise InputError(
                f"parts of {self.validation} for validation and {self.test} for the test",
                "both are not negative, and something is left to train on",
            )

    def part_of(self, name: str) -> Part:
        """Part of a thing by its name."""
        digest = hashlib.blake2b(f"{self.seed}/{name}".encode(), digest_size=8).digest()
        drawn = int.from_bytes(digest, "little") / 2**64
        if drawn < self.test:
            return "test"
        return "validation" if drawn < self.test + self.validation else "train"


def split_scans(
    entries: Sequence[CatalogEntry], fractions: SplitFractions, margin_m: float | None = None
) -> dict[str, Part]:
    """Part of every run.

    Parameters
    ----------
    entries : sequence of CatalogEntry
        Oldest first.
    fractions : SplitFractions
    margin_m : float, optional
        Distance from each other up to which two scans show the same features; by default the window of the labels.

    Returns
    -------
    dict of str to str
        A scan goes where older scans of its place went; ``dropped``, where these differ.
    """
    found: dict[str, Part] = {}
    boxes = np.empty((len(entries), 4))
    parts = np.empty(len(entries), dtype=object)
    samples = np.array([str(entry.area.get("sample", "")) for entry in entries], dtype=object)
    for place, entry in enumerate(entries):
        boxes[place] = [*entry.area["y_m"], *entry.area["x_m"]]
        margin = margin_m if margin_m is not None else max(entry.patch_shape) * (entry.pixel_size_m or 1.0)
        # a run that names no sample may be of any
        alike = (samples[:place] == samples[place]) | (samples[:place] == "") | (samples[place] == "")
        near = _overlap(boxes[:place], boxes[place], margin) & alike
        older = set(parts[:place][near]) - {"dropped"}
        part = older.pop() if len(older) == 1 else "dropped"
        parts[place] = found[entry.run_uid] = part if near.any() else fractions.part_of(entry.run_uid)
    return found


def _overlap(boxes: NDArray[np.float64], box: NDArray[np.float64], margin: float) -> NDArray[np.bool_]:
    """Which of the boxes (n, 4) of least and largest y and x come nearer to another than a margin on both axes."""
    apart = (boxes[:, 0] > box[1] + margin) | (boxes[:, 1] < box[0] - margin)
    return ~(apart | (boxes[:, 2] > box[3] + margin) | (boxes[:, 3] < box[2] - margin))


def split_frames_by_area(
    position_m: ArrayLike, cell_m: float, gap_m: float, fractions: SplitFractions
) -> dict[Part, NDArray[np.int64]]:
    """Split the frames of a scan by the cells of a grid that is fixed to the sample.

    Parameters
    ----------
    position_m : array_like, shape (n, 2)
        (y, x) in metres.
    cell_m : float
        Side of a cell; larger than the gap.
    gap_m : float
        Least distance, on one axis or the other, between frames of different parts.
    fractions : SplitFractions

    Returns
    -------
    dict of str to ndarray of int64
        Rows of each part, rising. ``dropped`` are the frames at the border of two parts.

    Raises
    ------
    InputError
        Positions are not (n, 2) and finite, or the lengths are out of range.
    """
    position = np.asarray(position_m, dtype=np.float64)
    if position.ndim != 2 or position.shape[1] != 2 or not np.isfinite(position).all():
        raise InputError(f"positions of shape {position.shape}", "(n, 2) finite positions (y, x) are needed")
    if not 0 <= gap_m < cell_m:
        raise InputError(f"gap_m = {gap_m}, cell_m = {cell_m}", "a gap is not negative and smaller than a cell")
    corners = [position + np.array([y, x]) * gap_m / 2 for y in (-1, 1) for x in (-1, 1)]
    known: dict[tuple[int, int], int] = {}
    parts = []
    for corner in corners:
        cells = np.floor(corner / cell_m).astype(np.int64)
        for cell in map(tuple, np.unique(cells, axis=0).tolist()):
            known.setdefault(cell, PARTS.index(fractions.part_of(f"{cell[0]},{cell[1]}")))
        parts.append(np.array([known[row, col] for row, col in cells.tolist()], dtype=np.int64))
    stacked = np.stack(parts)
    part = np.where((stacked == stacked[0]).all(axis=0), stacked[0], PARTS.index("dropped"))
    return {name: np.flatnonzero(part == number) for number, name in enumerate(PARTS)}


def rehearsal_rows(
    entries: Sequence[CatalogEntry], new_runs: Sequence[str], budget_frames: int, seed: int = 0
) -> dict[str, NDArray[np.int64]]:
    """Rows to train on: every frame of new runs, and of the old ones as many as the budget allows.

    Parameters
    ----------
    entries : sequence of CatalogEntry
    new_runs : sequence of str
    budget_frames : int
        Frames of old runs together; 0 takes all of them.
    seed : int
        Of which frames are taken; of one run always the same first ones.

    Returns
    -------
    dict of str to ndarray of int64
        Rows of each run, rising. Old regimes share the budget alike, and so do the runs of a regime: what is rare is
        not drowned by what is frequent.
    """
    if budget_frames < 0:
        raise InputError(f"rehearsal of {budget_frames} frames", "the budget is not negative; 0 rehearses everything")
    fresh = set(new_runs)
    old = [entry for entry in entries if entry.run_uid not in fresh]
    share = {entry.run_uid: entry.num_frames for entry in entries}
    if budget_frames and sum(entry.num_frames for entry in old) > budget_frames:
        share.update(_shares(old, budget_frames))
    rows = {}
    for entry in entries:
        digest = hashlib.blake2b(entry.run_uid.encode(), digest_size=4).digest()
        order = np.random.default_rng([seed, int.from_bytes(digest, "little")]).permutation(entry.num_frames)
        rows[entry.run_uid] = np.sort(order[: share[entry.run_uid]])
    return rows


def _shares(old: Sequence[CatalogEntry], budget: int) -> Mapping[str, int]:
    """Frames of each old run."""
    regimes: dict[str, list[CatalogEntry]] = {}
    for entry in old:
        regimes.setdefault(str(entry.regime.get("key", sorted(entry.regime.items()))), []).append(entry)
    groups = list(regimes.values())
    found: dict[str, int] = {}
    for group, frames in zip(
        groups, _fill([sum(e.num_frames for e in group) for group in groups], budget), strict=True
    ):
        parts = _fill([entry.num_frames for entry in group], frames)
        found.update(zip((entry.run_uid for entry in group), parts, strict=True))
    return found


def _fill(capacities: Sequence[int], amount: int) -> list[int]:
    """Deal an amount alike to vessels, none over its capacity; what does not divide goes to the later ones."""
    order = np.argsort(capacities, kind="stable")
    found, left = [0] * len(capacities), amount
    for place, number in enumerate(order.tolist()):
        found[number] = min(capacities[number], left // (len(order) - place))
        left -= found[number]
    return found
