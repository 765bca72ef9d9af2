"""What the runs under way at one worker share, and what they ask of Tiled."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Protocol

from ptycho_bluesky.config import Settings
from ptycho_bluesky.records import Measurement
from ptycho_bluesky.training.registry import ModelStore
from ptycho_bluesky.workflow.compute import Compute
from ptycho_bluesky.workflow.lane import Lane
from ptycho_bluesky.workflow.run_book import RunBook
from ptycho_bluesky.workflow.stages import Stages

__all__ = ["Shared", "Store", "StoreSource"]


class Store(Protocol):
    """What a run asks Tiled for; `ptycho_bluesky.workflow.tiled_store.TiledStore` is one."""

    @property
    def model_store(self) -> ModelStore:
        """The model registry."""
        ...

    def read_run(self, uid: str, *, object_pixel_m: float | None = None) -> Measurement:
        """Frames of a run."""
        ...

    def stop_uid(self, uid: str) -> str:
        """Uid of a run's stop document, "" while it has none."""
        ...


class StoreSource(Protocol):
    """Gives each thread its store."""

    def store(self) -> Store:
        """Connection of this thread."""
        ...


@dataclass
class Shared:
    """What the runs under way at one worker share.

    Attributes
    ----------
    settings : Settings
    stages : Stages
    compute : Compute
    connections : StoreSource
    book : RunBook
    lane : Lane
    stop : Event
        Set when the worker ends.
    cancelled : set of str
        Runs that a person has given up.
    """

    settings: Settings
    stages: Stages
    compute: Compute
    connections: StoreSource
    book: RunBook
    lane: Lane
    stop: threading.Event
    cancelled: set[str]
