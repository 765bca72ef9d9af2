"""The place of the serving model: exchanged between two batches, the former one kept for a rollback."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.inference.engine import Engine, LoadedModel

__all__ = ["ModelSlot"]

logger = logging.getLogger(__name__)


class ModelSlot:
    """Holds the serving model.

    A reader takes `current` once a batch and uses that model to the batch's end, so a swap falls between two batches
    and every frame has exactly one model. Swaps come from any thread; the new model is loaded and warmed up before.

    Parameters
    ----------
    model : LoadedModel, optional
        None: no model yet.
    """

    def __init__(self, model: LoadedModel | None = None) -> None:
        self._lock = threading.Lock()
        self._current = model
        self._previous: LoadedModel | None = None
        self._swaps = 0

    @property
    def current(self) -> LoadedModel | None:
        """The serving model, None before any."""
        return self._current

    @property
    def previous(self) -> LoadedModel | None:
        """The model that served before, for `rollback`."""
        return self._previous

    @property
    def model_id(self) -> str:
        """Id of the serving model, "" before any."""
        current = self._current
        return current.model_id if current else ""

    @property
    def swaps(self) -> int:
        """How often the model changed."""
        return self._swaps

    def swap(self, model: LoadedModel) -> None:
        """Let another model serve from the next batch on; the same model again changes nothing."""
        with self._lock:
            if self._current is not None and self._current.model_id == model.model_id:
                return
            self._previous, self._current = self._current, model
            self._swaps += 1
        logger.info("model %s serves (%s)", model.model_id[:12], model.engine.name)

    def exchange_engine(self, model_id: str, engine: Engine) -> bool:
        """Let another engine run the same model from the next batch on; the model's id and weight stay.

        Parameters
        ----------
        model_id : str
            The model that the engine was built from; it may serve, or wait for a rollback.
        engine : Engine
            Built, checked and warm.

        Returns
        -------
        bool
            False when the model is no longer in the slot, and nothing was exchanged.
        """
        with self._lock:
            for place in ("_current", "_previous"):
                model: LoadedModel | None = getattr(self, place)
                if model is not None and model.model_id == model_id:
                    setattr(self, place, replace(model, engine=engine))
                    break
            else:
                return False
        logger.info("model %s runs by %s", model_id[:12], engine.name)
        return True

    def rollback(self) -> LoadedModel:
        """Let the former model serve again.

        Raises
        ------
        InputError
            There is none.
        """
        with self._lock:
            if self._previous is None:
                raise InputError("rollback", "no model served before this one")
            self._previous, self._current = self._current, self._previous
            self._swaps += 1
            current = self._current
        logger.warning("rolled back to model %s", current.model_id[:12])
        return current
