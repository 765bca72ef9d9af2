"""One scan of the live bench: streamed, read, shown; and what came of it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.bench.live_processes import LineProcess
from ptycho_bluesky.bench.live_scene import LiveScene, RunOfFrames
from ptycho_bluesky.callbacks.edge_service import IMAGE_CHANNEL
from ptycho_bluesky.callbacks.publisher import DocumentPublisher
from ptycho_bluesky.config import EdgeSettings, EpicsSettings, Settings, ZmqSettings
from ptycho_bluesky.demo.processes import free_ports
from ptycho_bluesky.errors import UnreachableError
from ptycho_bluesky.streaming.core import RunResult
from ptycho_bluesky.streaming.spool import Spool
from ptycho_bluesky.workflow.proxy import DocumentProxy

__all__ = ["LiveStage", "Outcome", "ids_of_ranges"]

RESULT_TIMEOUT_S = 60.0
DOCUMENTS_S = 0.5
"""Time for the opening documents to reach the edge before the first frame."""


def ids_of_ranges(text: str) -> list[int]:
    """Ids of ``"17-24,26"``."""
    ids: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        ids += range(int(first), int(last or first) + 1)
    return ids


@dataclass(frozen=True)
class Outcome:
    """What came of one scan.

    Attributes
    ----------
    rate : float
        Frames per second asked for.
    offered : float
        By the detector's count and clock.
    sustained : float
        Frames over the time from the first exposure to the receipt of the image that lists the last frame.
    counts : dict of str to int
        Of the edge; its file source is off.
    unlisted : int
        Frames that no image listed.
    latency_ms : tuple of float
        Median and 99th percentile, end of exposure to receipt in another process.
    images_per_s : float
        Mosaics that the receiver got.
    canvas : tuple of int
    cpu_us : dict of str to float
        CPU time a frame: detector, edge, receiver.
    detector_latest_ms : float
        By how much the worst frame left after its time.
    """

    rate: float
    offered: float
    sustained: float
    counts: dict[str, int]
    unlisted: int
    latency_ms: tuple[float, float]
    images_per_s: float
    canvas: tuple[int, ...]
    cpu_us: dict[str, float]
    detector_latest_ms: float

    @property
    def kept_up(self) -> bool:
        """Whether every frame offered was read and shown, at no less than 98 % of the rate asked for.

        The time counts until the last frame is seen, so an edge that only queues what it cannot read does not pass.
        """
        faults = self.counts["missed"] + self.counts["lost"] + self.counts["unaccounted"] + self.unlisted
        return faults == 0 and min(self.offered, self.sustained) >= 0.98 * self.rate

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {**asdict(self), "kept_up": self.kept_up}


class LiveStage:
    """Detector, receiver and document proxy on loopback; edges come and go. Use it as a context manager.

    Parameters
    ----------
    scene : LiveScene
    folder : path
        Configuration, logs, models, results.
    edge : dict
        Settings of the edge that differ from the default.
    """

    def __init__(self, scene: LiveScene, folder: Path, **edge: Any) -> None:
        self.scene, self.folder = scene, folder
        ports = free_ports(4)
        epics = EpicsSettings(prefix="BENCH:", pva_server_port=ports[0], pva_broadcast_port=ports[1])
        zmq = ZmqSettings(publish=f"127.0.0.1:{ports[2]}", subscribe=f"127.0.0.1:{ports[3]}")
        options = {"backfill": False, "catch_up_runs": 0, "prefix": "BENCH:edge1:", **edge}
        self.settings = Settings(data_dir=folder, epics=epics, zmq=zmq, edge=EdgeSettings(**options))
        self.channel = epics.prefix + IMAGE_CHANNEL
        self.spool = Spool(self.settings.edge_dir)
        self._environment = epics.environment()
        self._next_id = 1
        self._exit = ExitStack()

    def __enter__(self) -> LiveStage:
        frames = self.folder / "frames.npz"
        self.scene.save(frames)
        try:
            self._exit.enter_context(DocumentProxy(self.settings.zmq))
            self._publisher = DocumentPublisher(self.settings.zmq.publish)
            self._exit.callback(self._publisher.close)
            self.detector = self._exit.enter_context(
                self.process("detector", "simulated_iocs.stream", self.channel, str(frames))
            )
            self.detector.wait_ready()
        except BaseException:
            self._exit.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def process(self, name: str, module: str, *arguments: str) -> LineProcess:
        """Start a module as a process in the bench's own EPICS environment."""
        return LineProcess(name, [module, *arguments], self.folder / f"{name}.log", self._environment)

    @contextmanager
    def edge(self, models: Path, **changes: Any) -> Iterator[LiveEdge]:
        """Run an edge with the models of a folder, and a receiver of its mosaics."""
        settings = self.settings.model_copy(deep=True)
        for key, value in changes.items():
            setattr(settings.edge, key, value)
        config = self.folder / f"edge-{uuid.uuid4().hex[:8]}.yml"
        settings.to_yaml(config)
        with self.process("edge", "ptycho_bluesky.bench.live_edge", str(config), str(models)) as edge:
            edge.wait_ready()
            channel = settings.edge.prefix + "Mosaic:Image"
            with self.process("receiver", "ptycho_bluesky.bench.live_receiver", channel) as receiver:
                receiver.wait_ready()
                yield LiveEdge(self, edge, receiver)

    def publish(self, documents: Iterator[tuple[str, dict[str, Any]]]) -> None:
        """Publish documents."""
        for name, doc in documents:
            self._publisher(name, doc)

    def new_run(self, count: int) -> RunOfFrames:
        """A run whose ids follow those of the run before."""
        run = RunOfFrames(self.scene, uuid.uuid4().hex, self.channel, self._next_id, count)
        self._next_id += count
        return run

    def stream(self, run: RunOfFrames, rate: float, meanwhile: Callable[[], None] | None = None) -> dict[str, Any]:
        """Stream the frames of a run; the detector's report."""
        self.detector.send(first_id=run.first_id, count=run.count, period_s=1.0 / rate)
        if meanwhile is not None:
            meanwhile()
        return self.detector.receive(2 * run.count / rate + 60.0)


class LiveEdge:
    """An edge that serves, and who looks at its mosaics."""

    def __init__(self, stage: LiveStage, edge: LineProcess, receiver: LineProcess) -> None:
        self.stage, self.process, self._receiver = stage, edge, receiver
        self.batches: list[list[Any]] = []
        """Batches of the last scan: when done, frames, model."""
        self.load: dict[str, Any] = {}
        self.result: RunResult | None = None

    def scan(self, rate: float, seconds: float, meanwhile: Callable[[], None] | None = None) -> Outcome:
        """Stream a scan and wait for its final result.

        Raises
        ------
        UnreachableError
            A process ended, or the edge does not finish the run.
        """
        run = self.stage.new_run(round(rate * seconds))
        self.stage.publish(run.opening())
        time.sleep(DOCUMENTS_S)
        before, seen = self.process.ask(), self._receiver.ask()
        report = self.stage.stream(run, rate, meanwhile)
        self.stage.publish(run.closing())
        result = self.result = self._wait_result(run.uid)
        self.load, received = self.process.ask(), self._receiver.ask()
        self.batches = self.load.pop("batches")
        self.stage.spool.remove(run.uid)
        images = [image for image in received["images"] if image["run_uid"] == run.uid]
        latency_s, last_s = _latencies(images, run, report["begun_s"], 1.0 / rate)
        return Outcome(
            rate=rate,
            offered=report["count"] / report["seconds"],
            sustained=len(latency_s) / max(last_s - report["begun_s"], 1e-9),
            counts=result.counts.as_dict(),
            unlisted=run.count - len(latency_s),
            latency_ms=_quantiles_ms(latency_s),
            images_per_s=len(images) / report["seconds"],
            canvas=tuple(images[-1]["shape"]) if images else (),
            cpu_us={
                "detector": 1e6 * report["cpu_s"] / run.count,
                "edge": 1e6 * (self.load["cpu_s"] - before["cpu_s"]) / run.count,
                "receiver": 1e6 * (received["cpu_s"] - seen["cpu_s"]) / run.count,
            },
            detector_latest_ms=1e3 * report["latest_s"],
        )

    def _wait_result(self, uid: str) -> RunResult:
        deadline = time.monotonic() + RESULT_TIMEOUT_S
        while uid not in self.stage.spool.uids():
            if time.monotonic() > deadline:
                raise UnreachableError(
                    f"result of run {uid[:8]}", f"the edge has not finished it in {RESULT_TIMEOUT_S:.0f} s"
                )
            time.sleep(0.05)
        return self.stage.spool.read(uid)


def _latencies(
    images: list[dict[str, Any]], run: RunOfFrames, begun_s: float, period_s: float
) -> tuple[NDArray[np.float64], float]:
    """Time from the end of each frame's exposure to the first image that lists it, and when the last of these came."""
    seen: dict[int, float] = {}
    for image in images:
        for unique_id in ids_of_ranges(image["ids"]):
            seen.setdefault(unique_id, image["received_s"])
    ids = np.fromiter(seen, dtype=np.int64, count=len(seen))
    received = np.fromiter(seen.values(), dtype=np.float64, count=len(seen))
    own = (ids >= run.first_id) & (ids < run.first_id + run.count)
    stamp = begun_s + (ids[own] - run.first_id + 1) * period_s
    return received[own] - stamp, float(received[own].max(initial=begun_s))


def _quantiles_ms(latency_s: NDArray[np.float64]) -> tuple[float, float]:
    if not len(latency_s):
        return float("inf"), float("inf")
    p50, p99 = np.percentile(latency_s, [50, 99]) * 1e3
    return float(p50), float(p99)
