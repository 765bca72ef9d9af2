"""How soon the worker takes a finished run up, and the edge a promoted model, beside polling every five seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from ptycho_bluesky.bench.workflow_makespan import SleepingStages, put_run
from ptycho_bluesky.bench.workflow_runs import Run
from ptycho_bluesky.config import Settings
from ptycho_bluesky.inference import LoadedModel, load_model
from ptycho_bluesky.inference.slot import ModelSlot
from ptycho_bluesky.inference.watch import ModelWatcher
from ptycho_bluesky.models import build
from ptycho_bluesky.models.export import to_onnx
from ptycho_bluesky.models.reader import Preprocessing
from ptycho_bluesky.records import ModelRecord, ModelStage
from ptycho_bluesky.training.registry import content_id, register
from ptycho_bluesky.workflow.executors import InlineExecutor
from ptycho_bluesky.workflow.files import write_bytes
from ptycho_bluesky.workflow.run_state import run_folder
from ptycho_bluesky.workflow.tiled_store import TiledStore
from ptycho_bluesky.workflow.watch import ContainerWatch
from ptycho_bluesky.workflow.worker import Worker

__all__ = ["Latencies", "handoff", "handover"]

POLL_S = 5.0
TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Latencies:
    """Seconds from an event to its receipt, ours and by polling; events that were never received count as missed.

    Attributes
    ----------
    ours, polled : list of float
    missed : int
        By ours.
    """

    ours: list[float]
    polled: list[float]
    missed: int


class _Poller(threading.Thread):
    """Looks every five seconds for what is new, from a random moment on."""

    def __init__(self, look: Callable[[], Sequence[str]], phase_s: float) -> None:
        super().__init__(name="poller", daemon=True)
        self._look, self._phase_s = look, phase_s
        self.seen_s: dict[str, float] = {}
        self.ending = threading.Event()

    def run(self) -> None:
        """Poll until told to end."""
        wait_s = self._phase_s
        while not self.ending.wait(wait_s):
            for name in self._look():
                self.seen_s.setdefault(name, time.time())
            wait_s = POLL_S


def handoff(settings: Settings, runs: Sequence[Run], seed: int = 0) -> Latencies:
    """Seconds from when a run's stop document is sent to Tiled until the worker has taken the run up.

    The poller lists the complete runs of the same server every five seconds; both see the same runs, which come at
    random moments.
    """
    rng = np.random.default_rng(seed)
    stop, ready = threading.Event(), threading.Event()
    settings.worker.max_in_flight = len(runs)
    worker = Worker(settings, SleepingStages(1e-3), InlineExecutor)
    thread = threading.Thread(target=worker.run, args=(stop, ready.set), name="bench-worker")
    thread.start()
    sent_s: dict[str, float] = {}
    with TiledStore.connect(settings.tiled) as store, TiledStore.connect(settings.tiled) as polled_store:
        poller = _Poller(
            lambda: [run.uid for run in polled_store.run_summaries() if run.stop], float(rng.uniform(0, POLL_S))
        )
        try:
            ready.wait(60.0)
            time.sleep(1.5)
            poller.start()
            for run in runs:
                time.sleep(float(rng.uniform(0.5, 4.0)))
                with _last_update(store) as times:
                    put_run(store, run)
                sent_s[run.uid] = times[-1]
            deadline = time.monotonic() + TIMEOUT_S
            while time.monotonic() < deadline and (
                set(poller.seen_s) < set(sent_s) or any(run_folder(settings, uid).load() is None for uid in sent_s)
            ):
                time.sleep(0.1)
        finally:
            poller.ending.set()
            stop.set()
            thread.join(60.0)
            poller.join(60.0)
    states = {uid: run_folder(settings, uid).load() for uid in sent_s}
    ours = [state.taken_s - sent_s[uid] for uid, state in states.items() if state is not None]
    polled = [poller.seen_s[uid] - sent_s[uid] for uid in sent_s if uid in poller.seen_s]
    return Latencies(ours, polled, len(sent_s) - len(ours))


@contextmanager
def _last_update(store: TiledStore) -> Iterator[list[float]]:
    """When metadata were last sent to Tiled inside the block: of a run's documents the stop comes last."""
    times: list[float] = []

    def note(request: httpx.Request) -> None:
        if request.method in ("PATCH", "PUT") and "/metadata/" in request.url.path:
            times.append(time.time())

    client = store.root.context.http_client
    hooks = client.event_hooks
    client.event_hooks = {**hooks, "request": [*hooks.get("request", []), note]}
    try:
        yield times
    finally:
        client.event_hooks = hooks


def handover(settings: Settings, folder: Path, count: int, seed: int = 0) -> Latencies:
    """Seconds from when a model is ready until the edge's slot serves it.

    Ours is registered in Tiled as the worker does it, heard of over the websocket, fetched, verified, loaded and
    swapped in as the edge does it; the other way the same content is written to a file, found by a look into the
    folder every five seconds, loaded and swapped in.
    """
    rng = np.random.default_rng(seed)
    contents = [_model(seed + number) for number in range(count)]
    folder.mkdir(parents=True, exist_ok=True)
    ready_s: dict[str, float] = {}
    by_name = {content_id(content): content for content in contents}
    loaded: set[str] = set()

    def look() -> list[str]:
        names = [path.stem for path in folder.glob("*.onnx") if path.stem not in loaded]
        for name in names:
            load_model((folder / f"{name}.onnx").read_bytes(), num_threads=1)
            loaded.add(name)
        return names

    slot = _TimedSlot()
    with TiledStore.connect(settings.tiled) as store, TiledStore.connect(settings.tiled) as edge_store:
        watcher = ModelWatcher(
            edge_store.model_store,
            slot,
            lambda content, model_id: load_model(content, expected_id=model_id, num_threads=1),
            period_s=2.0,
        )
        poller = _Poller(look, float(rng.uniform(0, POLL_S)))
        with ContainerWatch(settings.tiled, settings.tiled.models, watcher.notice, watcher.wake) as watch:
            watcher.start()
            while not watch.connected:
                time.sleep(0.05)
            poller.start()
            try:
                for name, content in by_name.items():
                    time.sleep(float(rng.uniform(1.0, 4.0)))
                    ready_s[name] = time.time()
                    register(store.model_store, _record(content), content, ModelStage.PROMOTED, "bench")
                    _wait(lambda name=name: name in slot.served_s)
                    written = time.time()
                    write_bytes(folder / f"{name}.onnx", content)
                    ready_s[f"file {name}"] = written
                _wait(lambda: len(poller.seen_s) == count)
            finally:
                poller.ending.set()
                poller.join(30.0)
                watcher.stop()
    ours = [slot.served_s[name] - ready_s[name] for name in by_name if name in slot.served_s]
    polled = [seen - ready_s[f"file {name}"] for name, seen in poller.seen_s.items()]
    return Latencies(ours, polled, count - len(ours))


class _TimedSlot(ModelSlot):
    """A slot that notes when each model began to serve."""

    def __init__(self) -> None:
        super().__init__()
        self.served_s: dict[str, float] = {}

    def swap(self, model: LoadedModel) -> None:
        """Swap, and note the time."""
        super().swap(model)
        self.served_s.setdefault(model.model_id, time.time())


def _wait(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def _model(seed: int) -> bytes:
    import torch

    torch.manual_seed(seed)
    return to_onnx(build("lean16"), (64, 64), 1.0, Preprocessing(), {"number": seed})


def _record(content: bytes) -> ModelRecord:
    return ModelRecord(
        model_id=content_id(content),
        parent_id="",
        stage=ModelStage.CANDIDATE,
        architecture="lean16",
        image_shape=(64, 64),
        patch_shape=(32, 32),
        pixel_size_m=float("nan"),
        count_scale=1.0,
        training_runs=(),
        recipe={},
        validation={},
        geometry=None,
        regime={},
        created_s=time.time(),
    )
