"""Following a model store: fetch, verify, warm up and swap in what it serves, and never anything that does not fit."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from ptycho_bluesky.errors import InputError, UnreachableError
from ptycho_bluesky.inference.engine import LoadedModel
from ptycho_bluesky.inference.slot import ModelSlot
from ptycho_bluesky.records import ModelRecord, ModelStage

__all__ = ["ModelSource", "ModelWatcher"]

logger = logging.getLogger(__name__)


class ModelSource(Protocol):
    """The part of a model store that a consumer needs."""

    def serving(self) -> ModelRecord | None:
        """Record of the model that should serve, None when there is none yet."""
        ...

    def content(self, model_id: str) -> bytes:
        """File of a model."""
        ...


class ModelWatcher:
    """Keeps a slot at the model that a store serves.

    Parameters
    ----------
    source : ModelSource
        A local directory, or Tiled.
    slot : ModelSlot
    load : callable
        ``load(content, model_id)`` gives a `LoadedModel`: it verifies the hash and warms the engine up.
    accept : callable, optional
        ``accept(model)`` raises `InputError` for a model of another geometry than is being measured.
    period_s : float
        How often the store is asked; `wake` asks at once, `notice` says what has changed.

    Notes
    -----
    The work is done in a thread of its own; the slot's reader is never held up. A model that is refused is not fetched
    again until `forget_refusals`. A store that does not answer is logged once and asked again.

    A notice only saves the question what serves: whatever it names is fetched and verified like any other model, and
    what no notice told of is found at the next question.
    """

    def __init__(
        self,
        source: ModelSource,
        slot: ModelSlot,
        load: Callable[[bytes, str], LoadedModel],
        accept: Callable[[LoadedModel], None] | None = None,
        period_s: float = 2.0,
    ) -> None:
        self._source, self._slot, self._load, self._accept = source, slot, load, accept
        self._period_s = period_s
        self._wake, self._stop = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._noticed: ModelRecord | None = None
        self._promoted_s = 0.0
        self._thread: threading.Thread | None = None
        self._away = False
        self.refused: dict[str, str] = {}
        """Models that were refused, with the reason."""

    def start(self) -> None:
        """Start following."""
        self._thread = threading.Thread(target=self._run, name="model-watcher", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Ask the store now."""
        self._wake.set()

    def notice(self, model_id: str, metadata: Mapping[str, Any]) -> None:
        """Hear of a model whose record has changed; one that was promoted is fetched at once.

        Parameters
        ----------
        model_id : str
        metadata : mapping
            Its record as it now stands in the store. Old news, and models that nobody serves, are passed over.
        """
        stage = metadata.get("stage")
        with self._lock:
            if stage == ModelStage.PROMOTED:
                record = ModelRecord.from_dict(metadata)
                if self._noticed is None or record.promoted_s > self._noticed.promoted_s:
                    self._noticed = record
            elif self._noticed is not None and self._noticed.model_id == model_id:
                self._noticed = None
            elif stage is not None and model_id != self._slot.model_id:
                return
        self._wake.set()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Stop following."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def forget_refusals(self) -> None:
        """Look at refused models again, because the measurement has changed."""
        self.refused.clear()
        self._wake.set()

    def check(self) -> bool:
        """Take the model that was noticed, or ask the store once; True when the slot's model was exchanged.

        Raises
        ------
        InputError
            The model is damaged, does not run, or is of another geometry; it is remembered as refused.
        """
        record = self._take_notice() or self._source.serving()
        if record is None:
            return False
        model_id = record.model_id
        if model_id == self._slot.model_id:
            self._promoted_s = record.promoted_s
        if model_id == self._slot.model_id or model_id in self.refused:
            return False
        try:
            model = self._load(self._source.content(model_id), model_id)
            if self._accept is not None:
                self._accept(model)
        except UnreachableError:
            raise  # says nothing about the model
        except InputError as error:
            self.refused[model_id] = str(error)
            raise
        self._slot.swap(model)
        self._promoted_s = record.promoted_s
        return True

    def _take_notice(self) -> ModelRecord | None:
        """Model that was noticed, if it was promoted after the one that serves; subscriptions repeat old news."""
        with self._lock:
            noticed, self._noticed = self._noticed, None
        return noticed if noticed is not None and noticed.promoted_s > self._promoted_s else None

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.check()
                if self._away:
                    logger.info("the model store answers again")
                self._away = False
            except InputError as error:
                if not isinstance(error, UnreachableError):
                    logger.error("the serving model is not taken: %s", error)
                elif not self._away:
                    logger.warning("the model in use stays: %s", error)
                self._away = isinstance(error, UnreachableError)
            except Exception as error:  # noqa: BLE001 - the store may fail in any way; the slot keeps its model
                if not self._away:
                    logger.warning("the model store does not answer (%s); the model in use stays", error)
                self._away = True
            self._wake.wait(self._period_s)
            self._wake.clear()
