"""Random kills of every process of the learning loop while scans come in: no run may be lost or counted twice."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ptycho_bluesky.bench.workflow_runs import Run, journal, make_runs
from ptycho_bluesky.config import Settings
from ptycho_bluesky.demo.processes import ChildProcess
from ptycho_bluesky.errors import InputError, UnreachableError
from ptycho_bluesky.training.corpus import Corpus
from ptycho_bluesky.workflow.files import read_json
from ptycho_bluesky.workflow.run_state import RunFolder, RunState, run_folder, run_states
from ptycho_bluesky.workflow.tiled_store import TiledStore

__all__ = ["TARGETS", "KillReport", "survive"]

TARGETS = ("worker", "executor", "writer", "tiled", "trainer")
FRAMES = 260
WAITING_RUNS = 3
"""Runs that are kept undecided while kills go on."""
PAUSE_S = (0.5, 6.0)
STAGE_WAIT_S = 60.0
TRAINER_WAIT_S = 3.0
"""Several times the pause between two notes of progress, each of which tells the process that writes it."""
NOTHING_TO_KILL_S = 180.0
QUIET_S, DRAIN_S = 240.0, 1200.0
"""The wait for the last decisions ends when nothing has moved for so long, or altogether after so long."""


@dataclass
class KillReport:
    """What was killed, and what became of the runs.

    Attributes
    ----------
    kills : list of dict
        Target, the stages that runs were in at that moment, and seconds since the beginning.
    runs : int
    lost : list of str
        Runs without a decision, with another number of frames in Tiled than the detector took, or given up.
    duplicated : list of str
        Runs with frames twice in Tiled or in the corpus, twice in a model's training, or with two candidates.
    outcomes : dict
    seconds : float
    ended : str
        Why the kills ended before all were done, "" otherwise.
    counted : bool
        Whether lost and duplicated runs were looked for.
    """

    kills: list[dict[str, Any]] = field(default_factory=list)
    runs: int = 0
    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    outcomes: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    ended: str = ""
    counted: bool = False


class Facility:
    """Tiled, writer and worker as processes of their own, each restarted when it was killed.

    Parameters
    ----------
    settings : Settings
    rng : random.Random
        Chooses among the processes of the executor.
    """

    def __init__(self, settings: Settings, rng: random.Random) -> None:
        self.settings, self._rng = settings, rng
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        config = settings.data_dir / "config.yml"
        settings.to_yaml(config)
        self.children = {
            name: ChildProcess(name, [name, *extra, "--config", str(config)], settings.data_dir / f"{name}.log", {})
            for name, extra in (("tiled", []), ("writer", ["--no-proxy"]), ("worker", []))
        }

    def start(self) -> None:
        """Start everything and wait until it serves."""
        for child in self.children.values():
            child.start()
            child.wait_ready(180.0)

    def stop(self) -> None:
        """Stop everything, the server last."""
        for name in ("worker", "writer", "tiled"):
            self.children[name].stop()

    def kill(self, target: str) -> bool:
        """Kill a process as a crash would, and start again what does not come back by itself; False where none is."""
        if target == "executor":
            pids = sorted(self._executor_pids())
            return bool(pids) and _kill(self._rng.choice(pids))
        if target == "trainer":
            pid = self._trainer_pid()
            return pid is not None and _kill(pid)
        child = self.children[target]
        pid = child.pid
        # The process alone: what it had started must notice by itself.
        if pid is None or not child.alive or not _kill(pid):
            return False
        _wait(lambda: not child.alive, 20.0)
        child.start()
        child.wait_ready(180.0)
        return True

    def _trainer_pid(self) -> int | None:
        """The process of the pool that trains."""
        folders = [run_folder(self.settings, state.uid) for state in _states(self.settings) if state.stage == "train"]
        deadline = time.monotonic() + TRAINER_WAIT_S
        while folders and time.monotonic() < deadline:
            if found := writers_of(folders) & set(self._executor_pids()):
                return min(found)
            time.sleep(0.0005)
        return None

    def _executor_pids(self) -> list[int]:
        """Processes of the worker's pool."""
        pid = self.children["worker"].pid
        return [] if pid is None else spawned_by(pid)


def writers_of(folders: list[RunFolder]) -> set[int]:
    """Processes that at this moment write the progress of a training.

    A note of progress is written twice a second under a name with the process's id before it is renamed, by
    `ptycho_bluesky.workflow.files.write_bytes`; nothing that stays tells which process of the pool computes what.
    """
    found = set()
    for folder in folders:
        progress = folder.progress
        parts = list(folder.path.glob(f".{progress.name}.*.part"))
        with contextlib.suppress(InputError):
            if parts and (read_json(progress) or {}).get("stage") == "train":
                found |= {int(part.name.split(".")[-2]) for part in parts}
    return found


def spawned_by(pid: int) -> list[int]:
    """Python processes that a process has spawned, from whichever of its threads (Linux)."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        # What ends meanwhile is passed over.
        with contextlib.suppress(OSError):
            for name in path.read_text().split():
                if b"spawn_main" in Path(f"/proc/{name}/cmdline").read_bytes():
                    found.append(int(name))
    return found


def survive(
    settings: Settings,
    kills: int,
    seed: int = 0,
    status: Callable[[str], None] = lambda _: None,
    show: Callable[[KillReport], None] = lambda _: None,
) -> KillReport:
    """Take scans while processes are killed at random moments, then let everything drain and count.

    Ctrl-C, and a process that does not come back, end the kills; what was taken until then is drained and counted.

    Parameters
    ----------
    settings : Settings
        Of an installation of its own, on free ports.
    kills : int
        How many; targets take turns in random order.
    seed : int
    status : callable, optional
        Told what is being done.
    show : callable, optional
        Given the report as far as it has got, after each kill.

    Raises
    ------
    UnreachableError
        The processes could not be started.
    """
    report, began = KillReport(), time.monotonic()
    rng = random.Random(seed)
    facility, runs = Facility(settings, rng), list[Run]()
    status("Tiled, writer and worker start")
    try:
        facility.start()
        for kill in _kill_at_random(facility, kills, rng, runs, report):
            kill["after_s"] = time.monotonic() - began
            report.kills.append(kill)
            report.runs, report.seconds = len(runs), time.monotonic() - began
            stages = ", ".join(kill["stages"]) or "nothing"
            status(f"{len(report.kills)} of {kills} kills, the last of {kill['target']} during {stages}")
            show(report)
        status(f"{len(runs)} runs drain")
        try:
            _drain(settings, runs)
            _count(settings, runs, report)
        except UnreachableError as error:
            report.ended = report.ended or str(error)
    finally:
        facility.stop()
    report.seconds = time.monotonic() - began
    return report


def _kill_at_random(
    facility: Facility, count: int, rng: random.Random, runs: list[Run], report: KillReport
) -> Iterator[dict[str, Any]]:
    """Take scans and kill; ends before its time, saying why in the report, when told to or nothing comes back."""
    settings = facility.settings
    targets = [target for _ in range(-(-count // len(TARGETS))) for target in rng.sample(TARGETS, len(TARGETS))]
    targets, killed_s = targets[:count], time.monotonic()
    try:
        while targets:
            _feed(settings, runs)
            time.sleep(rng.uniform(*PAUSE_S))
            if targets[0] == "trainer":
                _wait(lambda: "train" in _stages(settings, runs), STAGE_WAIT_S, lambda: _feed(settings, runs))
            stages, began = _stages(settings, runs), time.monotonic()
            if facility.kill(targets[0]):
                killed_s = time.monotonic()
                yield {"target": targets.pop(0), "stages": stages, "back_s": time.monotonic() - began}
            elif time.monotonic() - killed_s > NOTHING_TO_KILL_S:
                report.ended = f"for {NOTHING_TO_KILL_S:.0f} s there was no {targets[0]} to kill"
                return
    except KeyboardInterrupt:
        report.ended = "interrupted"
    except UnreachableError as error:
        report.ended = str(error)


def _feed(settings: Settings, runs: list[Run]) -> None:
    """Take scans until enough are undecided."""
    decided = sum(bool(state.outcome) for state in _states(settings))
    while len(runs) - decided < WAITING_RUNS:
        run = make_runs(settings.raw_dir, 1, FRAMES, first=len(runs))[0]
        journal(run, settings.journal_dir)
        runs.append(run)


def _states(settings: Settings) -> list[RunState]:
    try:
        return list(run_states(settings))
    except (InputError, OSError):
        return []


def _stages(settings: Settings, runs: list[Run]) -> list[str]:
    """Stages under way."""
    known = {run.uid for run in runs}
    return [state.stage for state in _states(settings) if state.stage and state.uid in known]


def _drain(settings: Settings, runs: list[Run]) -> None:
    """Wait until every run is decided on in Tiled, but not for ever."""
    uids, moved_s, before = {run.uid for run in runs}, time.monotonic(), None
    with TiledStore.connect(settings.tiled, wait_s=60.0) as store:

        def ended() -> bool:
            nonlocal moved_s, before
            now = [(state.uid, state.stage, len(state.done), state.outcome) for state in _states(settings)]
            if now != before:
                moved_s, before = time.monotonic(), now
            try:
                decided = uids <= {uid for uid, _ in store.decided_runs()}
            except UnreachableError:
                decided = False
            return decided or time.monotonic() - moved_s > QUIET_S

        _wait(ended, DRAIN_S, pause_s=1.0)


def _count(settings: Settings, runs: list[Run], report: KillReport) -> None:
    """Compare what was taken with what is stored, labelled and learned from."""
    corpus = Corpus(settings.corpus_dir)
    labelled = set(corpus.runs())
    report.runs = len(runs)
    with TiledStore.connect(settings.tiled) as store:
        records = store.model_store.records()
        # A candidate names the runs that it was trained on, last the one that it was made for.
        candidates = Counter(record.training_runs[-1] for record in records if record.training_runs)
        for run in runs:
            decision = store.decision(run.uid) or {}
            outcome = str(decision.get("outcome", "none"))
            report.outcomes[outcome] = report.outcomes.get(outcome, 0) + 1
            measured = store.read_run(run.uid)
            index = np.asarray(measured.frame_index)
            if outcome in ("none", "failed") or len(np.unique(index)) != run.frames:
                report.lost.append(f"{run.uid}: {outcome}, {len(index)} of {run.frames} frames")
            accepted = outcome in ("promoted", "rejected")
            frames = np.asarray(corpus.read(run.uid).frame_index) if run.uid in labelled else np.array([], int)
            for name, rows in (("Tiled", index), ("the corpus", frames)):
                if repeated := len(rows) - len(np.unique(rows)):
                    report.duplicated.append(f"{run.uid}: {repeated} frames twice in {name}")
            if candidates[run.uid] > 1:
                report.duplicated.append(f"{run.uid}: {candidates[run.uid]} candidates in the registry")
            if accepted and run.uid not in labelled:
                report.lost.append(f"{run.uid}: not in the corpus")
            if accepted and not candidates[run.uid]:
                report.lost.append(f"{run.uid}: no candidate in the registry")
        for record in records:
            repeated = [uid for uid, count in Counter(record.training_runs).items() if count > 1]
            report.duplicated += [f"{uid}: twice in model {record.model_id[:12]}" for uid in repeated]
    report.counted = True


def _kill(pid: int) -> bool:
    """Kill a process; False where it had ended already."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _wait(
    condition: Callable[[], bool], timeout_s: float, meanwhile: Callable[[], None] = lambda: None, pause_s: float = 0.1
) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        meanwhile()
        time.sleep(pause_s)
    return True
