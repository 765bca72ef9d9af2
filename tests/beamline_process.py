"""A simulated beamline in a process of its own, on the ports of the test session."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import numpy as np
from event_model import DocumentNames, schema_validators

from ptycho_bluesky.config import EpicsSettings, Settings
from ptycho_bluesky.io.area_detector import read_rows


class BeamlineProcess:
    """The IOC as a user starts it, with the line that it prints when it serves."""

    def __init__(self, settings: Settings, folder: Path, *arguments: str) -> None:
        config = folder / f"{settings.epics.prefix.strip(':')}.yml"
        settings.to_yaml(config)
        self.log = folder / f"{settings.epics.prefix.strip(':')}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ptycho_bluesky.cli.main", "ioc", "--config", str(config), *arguments],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        lines: Queue[str] = Queue()
        threading.Thread(target=lambda: lines.put(self.process.stdout.readline()), daemon=True).start()
        try:
            line = lines.get(timeout=timeout_s)
        except Empty:
            line = ""
        assert line.startswith("READY ioc"), self.log.read_text()

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
        self.process.stdout.close()


@contextmanager
def running_beamline(settings: Settings, folder: Path, *arguments: str):
    """Start the IOC, wait until it serves, stop it."""
    process = BeamlineProcess(settings, folder, *arguments)
    try:
        process.wait_ready()
        yield process
    finally:
        process.stop()


def settings_for(epics: EpicsSettings, folder: Path, prefix: str | None = None, **sections: Any) -> Settings:
    """Settings of a test: its own folder, maybe a prefix of its own."""
    own = epics.model_copy(update={"prefix": prefix}) if prefix else epics
    return Settings(data_dir=folder, epics=own, **sections)


class Documents:
    """Documents of the runs since `clear`, checked against the event model as they come."""

    def __init__(self) -> None:
        self.documents: list[tuple[str, dict[str, Any]]] = []
        self.hooks: list[Any] = []

    def __call__(self, name: str, doc: dict[str, Any]) -> None:
        # through JSON, as every consumer sees it
        schema_validators[DocumentNames[name]].validate(json.loads(json.dumps(doc, default=_plain)))
        self.documents.append((name, doc))
        for hook in list(self.hooks):
            hook(name, doc)

    def clear(self) -> None:
        self.documents.clear()
        self.hooks.clear()

    def named(self, name: str) -> list[dict[str, Any]]:
        return [doc for kind, doc in self.documents if kind == name]

    @property
    def start(self) -> dict[str, Any]:
        (start,) = self.named("start")
        return start

    @property
    def stop(self) -> dict[str, Any]:
        (stop,) = self.named("stop")
        return stop

    def events(self, stream: str) -> list[dict[str, Any]]:
        """Data of the events of a stream."""
        uids = {doc["uid"] for doc in self.named("descriptor") if doc["name"] == stream}
        return [doc["data"] for doc in self.named("event") if doc["descriptor"] in uids]

    def descriptor(self, stream: str) -> dict[str, Any]:
        (descriptor,) = [doc for doc in self.named("descriptor") if doc["name"] == stream]
        return descriptor

    def rows(self) -> int:
        """Rows announced for every column, contiguous in rows and in sequence numbers."""
        ends = defaultdict(int)
        resources = {doc["uid"]: doc["data_key"] for doc in self.named("stream_resource")}
        for doc in self.named("stream_datum"):
            key = resources[doc["stream_resource"]]
            assert doc["indices"]["start"] == ends[key]
            assert doc["seq_nums"]["start"] == ends[key] + 1
            assert doc["seq_nums"]["stop"] - doc["seq_nums"]["start"] == doc["indices"]["stop"] - ends[key]
            ends[key] = doc["indices"]["stop"]
        if not ends:
            return 0
        assert set(ends) == set(resources.values())
        (rows,) = set(ends.values())
        return rows

    @property
    def path(self) -> Path:
        (uri,) = {doc["uri"] for doc in self.named("stream_resource")}
        assert uri.startswith("file://localhost/")
        return Path(uri.removeprefix("file://localhost"))

    def frame_indices(self) -> np.ndarray:
        """Frame index of each row of the file, by stored unique id and the segments' mapping."""
        unique_id = read_rows(self.path)["unique_id"]
        segments = self.events("segments")
        first_rows = [segment["first_file_row"] for segment in segments]
        owner = np.searchsorted(first_rows, np.arange(len(unique_id)), side="right") - 1
        first_id = np.array([segment["first_unique_id"] for segment in segments])
        first_index = np.array([segment["first_frame_index"] for segment in segments])
        return unique_id - first_id[owner] + first_index[owner]

    def check_segments(self) -> int:
        """Segments follow each other, each has its end; returns the frames generated in all."""
        segments, ends = self.events("segments"), self.events("segment_ends")
        assert [segment["segment_index"] for segment in segments] == list(range(len(segments)))
        assert [end["segment_index"] for end in ends] == list(range(len(segments)))
        index = 0
        for segment, end in zip(segments, ends, strict=True):
            assert segment["first_frame_index"] == index
            assert end["last_unique_id"] == segment["first_unique_id"] + end["frames_generated"] - 1
            index += end["frames_generated"]
        return index


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else str(value)


def wait_for(condition, timeout_s: float = 10.0) -> None:
    """Poll until a condition holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)
