"""Starting models for a new experiment, from the registry and the corpus of this installation."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from ptycho_bluesky.config import Settings
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.records import Measurement, ModelStage
from ptycho_bluesky.training.corpus import Corpus
from ptycho_bluesky.training.registry import ModelStore
from ptycho_bluesky.training.suggest import Fingerprint, Suggestion, rank

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["show_suggestions", "suggest_models"]

logger = logging.getLogger(__name__)

MAX_RUNS = 8
"""Runs of a model's corpus that are compared: the newest, and others evenly over the rest."""
MAX_FRAMES = 200


def suggest_models(settings: Settings, models: ModelStore, measured: Measurement) -> list[Suggestion]:
    """Rank the models that are or were promoted as starting points.

    Parameters
    ----------
    settings : Settings
        ``corpus_dir`` holds the corpora.
    models : ModelStore
    measured : Measurement
        First frames of the new experiment.

    Returns
    -------
    list of Suggestion
        The best first, "from scratch" among them.

    Raises
    ------
    InputError
        Too few frames.
    """
    new = Fingerprint.of(np.asarray(measured.image)[:MAX_FRAMES], measured.pixel_size_m)
    corpus = Corpus(settings.corpus_dir)
    there = set(corpus.runs())
    known: dict[str, Fingerprint] = {}
    corpora = {}
    for record in models.records():
        if record.stage not in (ModelStage.PROMOTED, ModelStage.RETIRED) or models.is_discarded(record.model_id):
            continue
        runs = [uid for uid in record.training_runs if uid in there]
        for uid in (chosen := _spread(runs)):
            if uid not in known:
                labels = corpus.read(uid)
                rows = np.linspace(0, len(labels) - 1, min(MAX_FRAMES, len(labels))).astype(int)
                try:
                    known[uid] = Fingerprint.of(np.asarray(labels.image)[rows], labels.pixel_size_m)
                except InputError as error:
                    logger.warning("run %s is not compared: %s", uid, error)
        corpora[record.model_id] = [(uid, known[uid]) for uid in chosen if uid in known]
    return rank(new, corpora)


def _spread(runs: Sequence[str]) -> list[str]:
    rows = np.unique(np.linspace(0, len(runs) - 1, min(MAX_RUNS, len(runs))).round().astype(int)).tolist()
    return [str(runs[int(k)]) for k in rows] if len(runs) else []


def show_suggestions(suggestions: Sequence[Suggestion], console: Console | None = None) -> None:
    """Print the ways to start, the best first."""
    table = Table(title="Where to start from")
    for name in ("model", "similarity", "probe", "sample", "most like run"):
        table.add_column(name, overflow="fold")
    for each in suggestions:
        found = each.similarity
        numbers = (
            ("", "", "") if found is None else (f"{value:.3f}" for value in (found.total, found.probe, found.sample))
        )
        table.add_row(each.model_id[:12] or "from scratch", *numbers, each.run_uid[:8])
    (console or Console()).print(table)
