"""How long a worker takes to start on a catalogue of very many runs, and what that costs in memory."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptycho_bluesky.config import Settings, load_settings
from ptycho_bluesky.workflow.files import write_json
from ptycho_bluesky.workflow.run_book import RunBook
from ptycho_bluesky.workflow.run_queue import RunQueue
from ptycho_bluesky.workflow.run_state import RunFolder, RunState
from ptycho_bluesky.workflow.server import CATALOGUE, start_server
from ptycho_bluesky.workflow.tiled_store import TiledStore

__all__ = ["CatalogueReport", "peak_growth", "startup"]

T0_S = 1_700_000_000.0
TRAJECTORY_POINTS = 200
"""Numbers in a synthetic start document besides what the worker needs, as real ones hold more than that."""
SAMPLE_S = 0.005


@dataclass(frozen=True)
class CatalogueReport:
    """What a start took.

    Attributes
    ----------
    fresh_s, again_s : float
        Seconds of a worker without a folder of its own, which asks Tiled what was decided, and of one that is started
        again on its folder.
    fresh_mb, again_mb : float
        By how much the search's resident memory grew meanwhile, at its peak, MB (10⁶ bytes).
    """

    fresh_s: float
    again_s: float
    fresh_mb: float
    again_mb: float


def startup(settings: Settings, count: int, status: Callable[[str], None] = lambda _: None) -> CatalogueReport:
    """Fill a catalogue with synthetic runs that were all decided on, and start a worker's search on it.

    Parameters
    ----------
    settings : Settings
        Of an installation of its own.
    count : int
        Runs.
    status : callable, optional
    """
    with start_server(settings), TiledStore.connect(settings.tiled):
        status("containers are made")
    status(f"{count} synthetic runs")
    _fill(settings.tiled_dir / CATALOGUE, settings, count)
    config = settings.data_dir / "config.yml"
    fresh = settings.model_copy(deep=True)
    fresh.data_dir = settings.data_dir / "fresh"
    fresh.to_yaml(config)
    with start_server(settings):
        status(f"start on {count} runs")
        first = _measure(config)
        _fill_folder(settings, count)
        settings.to_yaml(config)
        second = _measure(config)
    return CatalogueReport(first["seconds"], second["seconds"], first["mb"], second["mb"])


def _measure(config: Path) -> dict[str, float]:
    """Search in a process of its own: its memory is this search's alone."""
    module = "ptycho_bluesky.bench.workflow_catalogue"
    done = subprocess.run([sys.executable, "-m", module, str(config)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _search(config: Path) -> dict[str, float]:
    settings = load_settings(config)
    with TiledStore.connect(settings.tiled) as store:
        store.summary("none")
        with peak_growth() as growth:
            began = time.monotonic()
            book = RunBook(settings)
            book.load()
            queue = RunQueue(settings, book)
            queue.catch_up(store)
            unpublished = book.unpublished()
            seconds = time.monotonic() - began
    if waiting := [*queue.waiting(), *unpublished]:
        raise RuntimeError(f"{len(waiting)} runs wait that were decided on")
    return {"seconds": seconds, "mb": growth[0] / 1e6}


@contextmanager
def peak_growth() -> Iterator[list[int]]:
    """Bytes by which this process's resident memory grows at its peak within the block, in a list, once it has ended.

    The kernel's figure of this process alone (Linux): ``ru_maxrss`` begins with the peak of the process that started
    this one. Where the peak cannot be reset, the memory is looked at every few milliseconds.
    """
    found: list[int] = []
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        with _sampled() as seen:
            yield found
        found.append(max(seen) - seen[0])
        return
    before = _memory("VmRSS")
    yield found
    found.append(_memory("VmHWM") - before)


@contextmanager
def _sampled() -> Iterator[list[int]]:
    seen, ended = [_memory("VmRSS")], threading.Event()

    def look() -> None:
        while not ended.wait(SAMPLE_S):
            seen.append(_memory("VmRSS"))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()
        seen.append(_memory("VmRSS"))


def _memory(name: str) -> int:
    """A figure of this process's memory, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _fill(path: Path, settings: Settings, count: int) -> None:
    """Put runs and decisions into the catalogue's database; through the server it would take a quarter of an hour."""
    with closing(sqlite3.connect(path, timeout=60.0)) as database:
        parents = dict(database.execute("SELECT key, id FROM nodes WHERE parent IS NOT NULL"))
        insert = "INSERT INTO nodes (parent, key, structure_family, metadata, specs) VALUES (?, ?, 'container', ?, ?)"
        specs = json.dumps([{"name": "BlueskyRun", "version": "3.0"}])
        database.executemany(insert, _runs(parents[settings.tiled.raw], count, specs))
        database.executemany(insert, _decisions(parents[settings.tiled.decisions], count))
        database.commit()


def _runs(parent: int, count: int, specs: str) -> Iterator[tuple[int, str, str, str]]:
    for number in range(count):
        start = {
            "uid": _uid(number),
            "time": T0_S + 60.0 * number,
            "scan_id": number,
            "plan_name": "fly_spiral_ptycho",
            "ptycho": {"purpose": "train", "trajectory": [0.1 * k for k in range(TRAJECTORY_POINTS)]},
        }
        stop = {"uid": f"stop-{number}", "exit_status": "success", "time": T0_S + 60.0 * number + 10.0}
        yield parent, _uid(number), json.dumps({"start": start, "stop": stop}), specs


def _decisions(parent: int, count: int) -> Iterator[tuple[int, str, str, str]]:
    for number in range(count):
        content = {"run_uid": _uid(number), "stop_uid": f"stop-{number}", "outcome": "skipped", "time_s": T0_S}
        yield parent, _uid(number), json.dumps(content), "[]"


def _fill_folder(settings: Settings, count: int) -> None:
    """States of all runs, and the worker's index of them."""
    book = RunBook(settings)
    for number in range(count):
        state = _state(number)
        folder = RunFolder(settings.worker_dir / _uid(number))
        if number % 1000 == 0:
            book.save(folder, state)
        else:
            folder.path.mkdir(parents=True)
            (folder.path / "state.json").write_text("{}")
            book.note(state)
        book.mark_published(state.uid)
    write_json(settings.worker_dir / "status.json", {})


def _state(number: int) -> RunState:
    done: dict[str, Any] = {"look": {"go_on": True}, "label": {"accepted": True}, "validate": {"figures": {}}}
    regime = {"image_shape": [128, 128], "pixel_size_m": 1e-8}
    return RunState(
        _uid(number), f"stop-{number}", time_s=T0_S + 60.0 * number, regime=regime, done=done, outcome="skipped"
    )


def _uid(number: int) -> str:
    return f"{number:08d}-0000-4000-8000-000000000000"


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_search(Path(sys.argv[1]))) + "\n")
