"""What ``ptycho-bluesky train`` trains on and validates with, and whether the parent has seen what validates."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.models.export import read_manifest
from ptycho_bluesky.records import LabelSet
from ptycho_bluesky.training.area_split import hold_out_area, near_area
from ptycho_bluesky.training.catalog import CatalogEntry
from ptycho_bluesky.training.corpus import Corpus, read_label_set
from ptycho_bluesky.training.splits import SplitFractions, split_scans

__all__ = ["Parent", "TrainData", "read_data", "read_parent"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parent:
    """A model to start from.

    Attributes
    ----------
    content : bytes
        Of its file.
    architecture : str
    runs : frozenset of str
        That it, or a parent of it, has trained on.
    """

    content: bytes
    architecture: str
    runs: frozenset[str]


@dataclass(frozen=True)
class TrainData:
    """What is trained on: a corpus, of it some runs, or label sets; and what validates."""

    corpus: Corpus | list[LabelSet]
    runs: list[str] | None
    validation: LabelSet | None


def read_parent(path: Path) -> Parent:
    """Read a model to start from.

    Raises
    ------
    InputError
        The file cannot be read, or is no model of this package.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"model {path}: {error}", "the file must be readable", "name a model file") from error
    try:
        manifest = read_manifest(content)
    except InputError as error:
        raise InputError(f"{path}, {error.what}", error.rule, error.remedy) from error
    if not manifest.get("architecture"):
        raise InputError(
            f"model {path} without the name of an architecture",
            "training goes on from models of this package",
            "name another parent, or none",
        )
    return Parent(content, str(manifest["architecture"]), frozenset(manifest.get("training_runs", ())))


def read_data(paths: Sequence[Path], validate: Path | None, split: str, parent: Parent | None) -> TrainData:
    """Read what is trained on, and keep out of it what validates.

    Parameters
    ----------
    paths : sequence of path
        Files and folders of label sets.
    validate : path, optional
        Label set that validates.
    split : str
        Else: ``none``, ``scan`` or ``area``.
    parent : Parent, optional
        What it has trained on cannot validate.

    Raises
    ------
    InputError
        A path is missing or a run named twice, nothing is left for one of the two parts, or trainer or parent know what
        would validate.
    """
    if split not in ("none", "scan", "area"):
        raise InputError(f"--split {split}", "it is none, scan or area")
    if split != "none" and validate is not None:
        raise InputError(f"--split {split} with --validate", "one of the two validates", "leave one out")
    known = frozenset() if parent is None else parent.runs
    validation = read_label_set(validate) if validate else None
    if validation is not None and validation.run_uid in known:
        raise InputError(
            f"--validate {validate}: run {validation.run_uid}",
            "the parent has trained on it, which would flatter",
            "validate on a run that it has not seen, or start from another parent",
        )
    if len(paths) == 1 and paths[0].is_dir() and split != "area":
        return _data_of_corpus(Corpus(paths[0]), validation, split, known)
    files = _label_files(paths)
    if split == "scan":
        raise InputError("--split scan of label files", "scans are chosen from a folder", "name one folder")
    label_sets = [read_label_set(path) for path in files]
    _refuse_twice(files, label_sets)
    _refuse_trained(validation, [each.run_uid for each in label_sets])
    if split == "area":
        label_sets, validation = _hold_out_area(label_sets, known)
    return TrainData(label_sets, None, validation)


def _data_of_corpus(corpus: Corpus, validation: LabelSet | None, split: str, known: Collection[str]) -> TrainData:
    entries = corpus.select()
    if not entries:
        raise _no_label_sets(corpus.directory)
    if split == "none":
        # runs whose frames the corpus has under another name included
        _refuse_trained(validation, [entry.run_uid for entry in corpus.entries()])
        return TrainData(corpus, None, validation)
    parts = split_scans(entries, SplitFractions())
    runs = [entry.run_uid for entry in entries if parts[entry.run_uid] == "train"]
    kept = [entry for entry in entries if parts[entry.run_uid] == "validation"]
    if not runs or not kept:
        raise InputError(
            f"{len(runs)} scans for training and {len(kept)} for validation of {len(entries)}",
            "each needs one; scans of one place stay together",
            "gather more scans, use --split area, or name a scan by --validate",
        )
    seen = [entry for entry in entries if entry.run_uid in known]
    unseen = [entry.run_uid for entry in kept if not any(_same_place(entry, other) for other in seen)]
    if not unseen:
        raise InputError(
            f"--split scan: the parent has trained on the places of all {len(kept)} scans that would validate",
            "what it knows would flatter",
            "start from a parent that was trained with --split scan, or name a scan that it has not seen by --validate",
        )
    return TrainData(corpus, runs, corpus.read(unseen[-1]))


def _same_place(one: CatalogEntry, other: CatalogEntry) -> bool:
    """Whether two scans come nearer to each other than the window of their labels, as in `split_scans`."""
    if _other_sample(str(one.area.get("sample", "")), str(other.area.get("sample", ""))):
        return False
    margin = max(one.patch_shape) * (one.pixel_size_m or 1.0)
    return all(
        one.area[axis][0] <= other.area[axis][1] + margin and other.area[axis][0] <= one.area[axis][1] + margin
        for axis in ("y_m", "x_m")
    )


def _other_sample(one: str, other: str) -> bool:
    return bool(one and other and one != other)


def _hold_out_area(label_sets: Sequence[LabelSet], known: Collection[str]) -> tuple[list[LabelSet], LabelSet]:
    """Keep an area of the newest run out of every run, and let its frames of the newest validate."""
    newest = label_sets[-1]
    if newest.run_uid in known:
        raise InputError(
            f"--split area of run {newest.run_uid}",
            "the parent has trained on it, its area would flatter",
            "add a run that the parent has not seen, name one by --validate, or start from another parent",
        )
    gap_px = newest.phase_rad.shape[-1] / 2
    train, validation = hold_out_area(newest, gap_px=gap_px)
    gap_m = gap_px * (1.0 if np.isnan(newest.pixel_size_m) else newest.pixel_size_m)
    kept = []
    for labels in label_sets[:-1]:
        near = _near(labels, validation, gap_m)
        if near.any() and labels.run_uid in known:
            raise InputError(
                f"--split area of run {newest.run_uid}",
                f"the parent has trained on run {labels.run_uid}, which covers the area too and would flatter",
                "name a run of another place by --validate, or start from another parent",
            )
        if near.any():
            log.info("run %s: %d frames in the area that validates", labels.run_uid, np.count_nonzero(near))
        if not near.all():
            kept.append(_select(labels, ~near))
    return [*kept, train], validation


def _near(labels: LabelSet, held_out: LabelSet, gap_m: float) -> NDArray[np.bool_]:
    """Frames of a run of the same sample that lie where others do, or within a gap of it; shape (n,)."""
    if _other_sample(str(labels.provenance.get("sample", "")), str(held_out.provenance.get("sample", ""))):
        return np.zeros(len(labels), dtype=np.bool_)
    return near_area(labels.position_m, held_out.position_m, gap_m)


def _select(labels: LabelSet, rows: NDArray[np.bool_]) -> LabelSet:
    columns = ("image", "phase_rad", "amplitude", "position_m", "frame_index")
    return replace(labels, **{name: np.asarray(getattr(labels, name))[rows] for name in columns})


def _refuse_trained(validation: LabelSet | None, runs: Collection[str]) -> None:
    if validation is not None and validation.run_uid in runs:
        raise InputError(f"run {validation.run_uid}", "a run that is trained on cannot validate", "name another run")


def _refuse_twice(files: Sequence[Path], label_sets: Sequence[LabelSet]) -> None:
    """Refuse two files of one run: they would count as two scans."""
    found: dict[str, Path] = {}
    for path, labels in zip(files, label_sets, strict=True):
        if labels.run_uid and labels.run_uid in found:
            raise InputError(
                f"run {labels.run_uid} in {found[labels.run_uid]} and {path}",
                "a run is trained on once",
                "name one of the two",
            )
        found[labels.run_uid] = path


def _label_files(paths: Sequence[Path]) -> list[Path]:
    """Files of what was named, each once."""
    files: dict[Path, Path] = {}
    for path in paths:
        found = Corpus(path).files() if path.is_dir() else [path]
        if not found or not path.exists():
            raise _no_label_sets(path)
        for each in found:
            files.setdefault(each.resolve(), each)
    return list(files.values())


def _no_label_sets(path: Path) -> InputError:
    if path.exists():
        return InputError(f"no label sets in {path}", "training needs at least one", "reconstruct a run first")
    return InputError(
        f"no label sets in {path}, which does not exist",
        "all that is named is trained on",
        "correct the path, or reconstruct a run first",
    )
