"""The edge as a process: documents over 0MQ, frames over pvAccess, models and results in Tiled."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from ptycho_bluesky.callbacks.edge import EdgeInference
from ptycho_bluesky.config import Settings
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import ObjectFrame
from ptycho_bluesky.inference import LoadedModel, ModelSlot, check_model, load_model
from ptycho_bluesky.inference.tuning import EngineTuner
from ptycho_bluesky.inference.watch import ModelSource, ModelWatcher
from ptycho_bluesky.preprocess import Canonical
from ptycho_bluesky.records import InferredBatch, ModelRecord
from ptycho_bluesky.stitching import MosaicBuilder
from ptycho_bluesky.stitching.moments import frame_moments
from ptycho_bluesky.streaming.merging import share_dir
from ptycho_bluesky.streaming.recovery import DocumentRecovery, JournalFollower, JournalSource, TiledSource
from ptycho_bluesky.streaming.sinks import Sink
from ptycho_bluesky.streaming.sinks_pva import PvaSink
from ptycho_bluesky.streaming.sinks_store import StoreSink
from ptycho_bluesky.streaming.sources_documents import DocumentSubscriber
from ptycho_bluesky.workflow.tiled_store import TiledStore
from ptycho_bluesky.workflow.watch import ContainerWatch

__all__ = ["EdgeService", "TiledModels", "warm_up"]

logger = logging.getLogger(__name__)

PROXY_WAIT_S = 2.0
FIRST_LOOK_S = 10.0
SWITCH_INTERVAL_S = 0.0005
"""How long a thread of the edge may keep the interpreter while another waits for it. Python's own 5 ms, several times a
batch, would hold the frames up whenever a model is loaded beside them."""
IMAGE_CHANNEL = "det1:Pva1:Image"


class TiledModels:
    """The registry in Tiled as a `ModelSource`, reconnecting after the server was away.

    Parameters
    ----------
    connect : callable
        Gives a connected `TiledStore`.
    """

    def __init__(self, connect: Callable[[], TiledStore]) -> None:
        self._connect = connect
        self._store: TiledStore | None = None

    def serving(self) -> ModelRecord | None:
        """Record of the model that should serve."""
        return self._ask(lambda store: store.model_store.serving())

    def content(self, model_id: str) -> bytes:
        """File of a model."""
        return self._ask(lambda store: store.model_store.content(model_id))

    def close(self) -> None:
        """Close the connection."""
        store, self._store = self._store, None
        if store is not None:
            store.close()

    def _ask(self, question: Callable[[TiledStore], Any]) -> Any:
        if self._store is None:
            self._store = self._connect()
        try:
            return question(self._store)
        except Exception:
            self.close()
            raise


def warm_up(size_px: int = 64) -> None:
    """Compile the loops of the mosaic, so that the first frames of the first scan are not held up for seconds."""
    frame = ObjectFrame.around(np.zeros((1, 2)), size_px, 1.0)
    builder = MosaicBuilder(frame, (size_px, size_px))
    builder.add(np.zeros((1, size_px, size_px), dtype=np.float32), np.zeros((1, 2)))
    builder.add_values(frame_moments(np.ones((1, size_px, size_px), dtype=np.float32)), np.zeros((1, 2)))
    builder.snapshot()
    builder.picture()


class EdgeService:
    """Puts the edge's parts together and takes them apart again.

    Parameters
    ----------
    settings : Settings
    tiled : bool
        Whether results go to Tiled and models come from there; without it results stay in the edge's folder.
    models : ModelSource, optional
        Where models come from, instead of Tiled (a local directory).
    pva : bool
        Whether to serve the edge's process variables.
    on_batch : callable, optional
        ``on_batch(batch)`` after each batch, in the edge's thread.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        tiled: bool = True,
        models: ModelSource | None = None,
        pva: bool = True,
        on_batch: Callable[[InferredBatch], None] | None = None,
    ) -> None:
        self.settings = settings
        self.slot = ModelSlot()
        connect = partial(TiledStore.connect, settings.tiled) if tiled else None
        warm_up()
        share = settings.edge.share
        # a share is no result of the run: it stays here until `ptycho-bluesky merge` puts all of them together
        whole = connect if share[1] == 1 else None
        self.store_sink = StoreSink(share_dir(settings.edge_dir, share), whole, settings.edge.tiled_period_s)
        sinks: list[Sink] = [self.store_sink]
        if pva:
            sinks.append(PvaSink(settings.edge.prefix))
        self._geometry_lock = threading.Lock()
        self._measured: tuple[tuple[int, int], float | None] | None = None
        self._models = TiledModels(connect) if connect is not None and models is None else None
        source = models or self._models
        self.tuner = EngineTuner(
            self.slot,
            num_threads=settings.edge.num_threads,
            batch_size=settings.edge.batch_size,
            precision=settings.edge.precision,
        )
        self.watcher = None if source is None else ModelWatcher(source, self.slot, self._load, self._accept)
        self.edge = EdgeInference(
            settings.edge,
            self.slot,
            sinks,
            channels=[settings.epics.prefix + IMAGE_CHANNEL],
            on_unknown=lambda name, doc: self.recovery.report_unknown(name, doc),
            on_batch=on_batch,
        )
        self._result_store: TiledStore | None = None
        runs = [JournalSource(settings.journal_dir)]
        self.recovery = DocumentRecovery(
            [*runs, TiledSource(connect)] if connect is not None else runs,
            self._take_documents,
            self._has_result,
            settings.edge.catch_up_runs,
            JournalFollower(settings.journal_dir),
        )
        self.documents = DocumentSubscriber(settings.zmq.subscribe, self._take)
        self._watch = None
        if connect is not None and models is None:
            self._watch = ContainerWatch(settings.tiled, settings.tiled.models, self._noticed, on_connect=self._wake)

    def start(self) -> EdgeService:
        """Start; returns when documents, frames and models can be taken."""
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self.documents.start(PROXY_WAIT_S)
        if self.watcher is not None:
            self._first_model(self.watcher)
            self.watcher.start()
        if self._watch is not None:
            self._watch.start()
        self.recovery.start()
        self.recovery.first_look.wait(FIRST_LOOK_S)
        return self

    def close(self) -> None:
        """Stop everything, sources first."""
        self.documents.close()
        self.recovery.stop()
        if self._watch is not None:
            self._watch.stop()
        if self.watcher is not None:
            self.watcher.stop()
        self.tuner.stop()
        if self._models is not None:
            self._models.close()
        self.edge.close()
        store, self._result_store = self._result_store, None
        if store is not None:
            store.close()

    def _first_model(self, watcher: ModelWatcher) -> None:
        try:
            watcher.check()
        except (InputError, OSError) as error:
            logger.warning("no model yet: %s", error)

    def _wake(self) -> None:
        if self.watcher is not None:
            self.watcher.wake()

    def _noticed(self, model_id: str, metadata: Mapping[str, Any]) -> None:
        if self.watcher is not None:
            self.watcher.notice(model_id, metadata)

    def _load(self, content: bytes, model_id: str) -> LoadedModel:
        options = self.settings.edge
        # a queue that has grown is read in larger batches: the first of these must not be a slow one either
        batches = (1, options.batch_size, 4 * options.batch_size)
        model = load_model(
            content,
            options.engine,
            expected_id=model_id,
            num_threads=options.num_threads,
            precision=options.precision,
            warm_up_frames=batches,
        )
        if options.engine == "auto" and options.precision != "int8":
            # it serves by an engine that is ready at once, until the fastest one is found beside it
            self.tuner.consider(content)
        return model

    def _accept(self, model: LoadedModel) -> None:
        with self._geometry_lock:
            measured = self._measured
        if measured is not None:
            check_model(model.engine.manifest, measured[0], measured[1], model.model_id)

    def _take(self, name: str, doc: dict[str, Any], live: bool = True) -> None:
        if name == "start" and live:
            self._note_geometry(doc)
        self.edge.take(name, doc, live)

    def _take_documents(self, documents: list[tuple[str, dict[str, Any]]], live: bool) -> None:
        if live:
            for name, doc in documents:
                if name == "start":
                    self._note_geometry(doc)
        self.edge.take_run(documents, live)

    def _note_geometry(self, start: dict[str, Any]) -> None:
        """Remember what is measured; models refused for another geometry get another chance when it changes."""
        ptycho = start.get("ptycho")
        if not isinstance(ptycho, dict) or not ptycho.get("frame_shape"):
            return
        height, width = (int(size) for size in ptycho["frame_shape"])
        try:
            side = Canonical.from_run(ptycho, (height, width)).num_px
        except InputError as error:
            logger.error("run %s: %s", str(start.get("uid", ""))[:8], error)
            return
        pixel = ptycho.get("pixel_size_m")
        measured = ((side, side), None if pixel is None else float(pixel))
        with self._geometry_lock:
            changed, self._measured = measured != self._measured, measured
        if changed and self.watcher is not None:
            self.watcher.forget_refusals()

    def _has_result(self, uid: str) -> bool:
        if uid in self.store_sink.spool.uids():
            return True
        if not self.store_sink.remote:
            return False
        if self._result_store is None:
            self._result_store = TiledStore.connect(self.settings.tiled)
        try:
            return self._result_store.has_final_mosaic(uid)
        except InputError:
            self._result_store.close()
            self._result_store = None
            raise
