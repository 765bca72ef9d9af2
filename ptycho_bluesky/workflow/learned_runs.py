"""Which runs a candidate learns from, and which label sets it is tested on: those that nobody has given up."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ptycho_bluesky.config import Settings
from ptycho_bluesky.workflow.run_book import RunBook, RunNote
from ptycho_bluesky.workflow.run_state import RunState, run_folder

__all__ = ["corpus_runs", "older_sets", "reserved_labels"]

OLD_SETS = 6
"""Older label sets on which a candidate is tested for what it forgot."""


def _usable(book: RunBook, state: RunState, *, probe: bool = False) -> Iterator[RunNote]:
    """Other runs with labels that may be used; a person who cancels a run does not want it learned from."""
    return (note for note in book.like(state, probe=probe) if note.accepted and note.outcome != "cancelled")


def corpus_runs(book: RunBook, state: RunState) -> list[str]:
    """Runs of the corpus that are of this run's regime and no younger, oldest first, this one included."""
    older = [
        note.uid for note in _usable(book, state, probe=True) if note.purpose == "train" and note.time_s <= state.time_s
    ]
    return [*older, state.uid]


def older_sets(
    settings: Settings, book: RunBook, state: RunState, reserved: str | None
) -> tuple[dict[str, str], dict[str, str]]:
    """Label sets of older runs, of this regime and of others: file of the held-out area, or "" for the corpus."""
    ours: dict[str, str] = {}
    others: dict[str, str] = {}
    for note in _usable(book, state):
        if note.purpose == "test" or note.time_s >= state.time_s:
            continue
        folder = run_folder(settings, note.uid)
        path = folder.labels if note.purpose == "reserved" else folder.held_out
        same = note.regime.get("probe") == state.regime.get("probe")
        kept = str(path) if path.exists() else ""
        if kept != (reserved or "-") and (kept or note.purpose == "train"):
            (ours if same else others)[note.uid] = kept
    return _spread(ours), _spread(others)


def reserved_labels(settings: Settings, book: RunBook, state: RunState) -> str | None:
    """Label set of the newest reserved run of the same geometry, if there is one."""
    newest = None
    for note in _usable(book, state):
        if note.purpose == "reserved":
            newest = run_folder(settings, note.uid).labels
    return None if newest is None or not newest.exists() else str(newest)


def _spread(sets: dict[str, str]) -> dict[str, str]:
    """At most `OLD_SETS` of them: the last two, and others evenly over the history."""
    keys = list(sets)
    if len(keys) <= OLD_SETS:
        return sets
    chosen = np.unique(np.linspace(0, len(keys) - 3, OLD_SETS - 2).round().astype(int)).tolist()
    return {keys[k]: sets[keys[k]] for k in [*chosen, len(keys) - 2, len(keys) - 1]}
