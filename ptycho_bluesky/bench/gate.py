"""`bench gate`: what the update policy saves, and what it costs, on an experiment whose conditions change.

Two learners live through the same forty simulated scans: one retrains on every scan, the other as the policy says. They
begin with the same model and corpus, made from scans before the experiment. Both are the worker's own
`ptycho_bluesky.workflow.run_work.RunWork` with its stages, thresholds and registry, on folders instead of Tiled. They
share the reconstructions, which are the same for the same scan, and each is charged for those that it asks for. Compute
is counted in frame-updates: one frame in one update of an engine, those of the search for a probe, of half-scans and of
the check of the pixel included, or one frame in one step of the training.

A change counts as detected when the policy's learner finds a mismatch beyond its tolerance in time. One that found a
mismatch in every scan would detect them all, so ``false_alarms`` stands beside it: the scans at which that learner
found such a mismatch, or retrained, though nothing had changed lately. "Lately" is from the first scan that shows a
change until, after the last scan that it takes to come about, the policy has had the interval after which it looks
again and then as many scans as its patience has retrainings.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.bench.gate_scans import GateScans, ScanOptions
from ptycho_bluesky.bench.rows import Row
from ptycho_bluesky.config import Settings
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.io.products import read_reconstruction, write_reconstruction
from ptycho_bluesky.reconstruction.pie import Pie
from ptycho_bluesky.records import Measurement
from ptycho_bluesky.training.corpus import Corpus, TrainingArrays
from ptycho_bluesky.training.registry import LocalModelStore, promote, rollback
from ptycho_bluesky.workflow.compute import Compute
from ptycho_bluesky.workflow.executors import InlineExecutor
from ptycho_bluesky.workflow.files import read_json, write_json
from ptycho_bluesky.workflow.lane import Lane
from ptycho_bluesky.workflow.publishing import clean
from ptycho_bluesky.workflow.run_book import RunBook
from ptycho_bluesky.workflow.run_state import RunState, run_folder
from ptycho_bluesky.workflow.run_work import RunWork
from ptycho_bluesky.workflow.shared import Shared
from ptycho_bluesky.workflow.stages import Job, LearningStages
from ptycho_bluesky.workflow.tiled_store import RunSummary

__all__ = ["GateBench", "GateReport", "run"]

STRATEGIES = ("every_run", "on_mismatch")
BEFORE = "before"
POISONED = 3


@dataclass(frozen=True)
class GateBench:
    """Options of the bench.

    Attributes
    ----------
    scans : ScanOptions
    architecture : str
    frames_per_scan, batch_size : int
        Budget of a retraining in frame-updates (by default the published 50 epochs of a scan), and of a step.
    iterations, half_passes : int
        Of the reconstruction that labels are cut from, and of the half-scans by which they are judged.
    probe_scans : int
        The interval after which the policy looks at a run though the model fitted, in scans.
    look_fraction : float
        Part of a run that it looks at first.
    num_threads : int
    """

    scans: ScanOptions = field(default_factory=ScanOptions)
    architecture: str = "lean8"
    frames_per_scan: int = 13_000
    batch_size: int = 16
    iterations: int = 12
    half_passes: int = 3
    probe_scans: int = 1
    look_fraction: float = 0.4
    num_threads: int = 1

    def settings(self, folder: Path, update: str) -> Settings:
        """Settings of a learner."""
        period_s = self.scans.period_s
        return Settings(
            data_dir=folder,
            reconstruct={"iterations": self.iterations, "labels": {"half_passes": self.half_passes}},  # pyright: ignore[reportArgumentType]
            train={  # pyright: ignore[reportArgumentType]
                "architecture": self.architecture,
                "frames_per_scan": self.frames_per_scan,
                "batch_size": self.batch_size,
                "num_threads": self.num_threads,
            },
            worker={  # pyright: ignore[reportArgumentType]
                "update": update,
                "executor": "inline",
                "max_in_flight": 1,
                "probe_interval_s": self.probe_scans * period_s,
                "look_fraction": self.look_fraction,
            },
        )


@dataclass(frozen=True)
class GateReport:
    """Rows, and every scan of either learner."""

    rows: list[Row]
    extra: dict[str, Any]


@contextmanager
def counted_updates() -> Iterator[list[int]]:
    """Frames of every update that the engines of the ePIE family make in this process meanwhile."""
    counts: list[int] = []
    plain = Pie.update

    def update(engine: Pie, rows: NDArray[np.int64], step_object: float, step_probe: float) -> Any:
        counts.append(len(rows))
        return plain(engine, rows, step_object, step_probe)

    setattr(Pie, "update", update)  # noqa: B010 a plain assignment is no override to a type checker
    try:
        yield counts
    finally:
        setattr(Pie, "update", plain)  # noqa: B010


class SharedStages(LearningStages):
    """The worker's stages; a reconstruction that one learner has made serves the other, each is charged for it.

    Parameters
    ----------
    folder : path
        Where reconstructions are kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def reconstruct(self, job: Job) -> dict[str, Any]:
        """Reconstruct, or take what is there."""
        uid = job.files.path.name.removeprefix("poisoned-")
        product, note = self._folder / f"{uid}.h5", self._folder / f"{uid}.json"
        if not note.exists():
            began = time.perf_counter()
            with counted_updates() as updates:
                result = super().reconstruct(job)
            self._folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(job.files.reconstruction, product)
            result["figures"] |= {"label_frame_updates": sum(updates), "label_s": time.perf_counter() - began}
            write_json(note, result)
        # The same scan may have been given under another uid.
        shared = read_reconstruction(product)
        write_reconstruction(job.files.reconstruction, replace(shared, run_uid=job.files.path.name))
        return read_json(note)

    def glance(self, job: Job, model: str) -> dict[str, Any]:
        """Reconstruct the middle, and count what that costs."""
        with counted_updates() as updates:
            result = super().glance(job, model)
        result["figures"]["glance_frame_updates"] = sum(updates)
        return result

    def train(self, job: Job, runs: Sequence[str], parent: str | None, regime: Mapping[str, Any]) -> dict[str, Any]:
        """Train, always on the budget of one scan: a rejected candidate's budget is not spent later."""
        began = time.perf_counter()
        result = super().train(replace(job, one_budget=True), runs, parent, regime)
        result["figures"]["train_s"] = time.perf_counter() - began
        return result


class PoisonedStages(SharedStages):
    """The same, but every frame is trained with the label of another one."""

    def corpus(self, job: Job, runs: Sequence[str]) -> TrainingArrays:
        """Corpus with its labels shuffled."""
        arrays = Corpus(job.corpus_dir).load(list(runs))
        order = np.random.default_rng(len(arrays)).permutation(len(arrays))
        return replace(arrays, phase_rad=arrays.phase_rad[order], amplitude=arrays.amplitude[order])


class Folders:
    """What `RunWork` asks Tiled for, from the simulation and a folder of models.

    Parameters
    ----------
    measure : callable
        Gives the measurement of a run by its uid.
    models : LocalModelStore
    """

    def __init__(self, measure: Callable[[str], Measurement], models: LocalModelStore) -> None:
        self._measure, self.model_store = measure, models

    def store(self) -> Folders:
        """The store of this thread."""
        return self

    def read_run(self, uid: str, *, object_pixel_m: float | None = None) -> Measurement:
        """Frames of a run."""
        return self._measure(uid)

    def stop_uid(self, uid: str) -> str:
        """Uid of its stop document."""
        return f"stop-{uid}"


class Learner:
    """One strategy, on a folder of its own; what it has done already is not done again.

    Parameters
    ----------
    settings : Settings
    stages : LearningStages
    measure : callable
        Gives the measurement of a run by its uid.
    """

    def __init__(self, settings: Settings, stages: LearningStages, measure: Callable[[str], Measurement]) -> None:
        self.settings = settings
        self.models = LocalModelStore(settings.models_dir)
        self._book = RunBook(settings)
        self._book.load()
        self._shared = Shared(
            settings,
            stages,
            Compute(InlineExecutor),
            Folders(measure, self.models),
            self._book,
            Lane(),
            threading.Event(),
            set(),
        )

    def serving(self) -> bytes | None:
        """File of the model that serves."""
        record = self.models.serving()
        return None if record is None else self.models.get(record.model_id)[1]

    def take(self, uid: str, time_s: float) -> RunState:
        """Work on a run, unless it has its outcome."""
        folder = run_folder(self.settings, uid)
        state = folder.load()
        if state is None or not state.outcome:
            start = {"uid": uid, "time": time_s, "ptycho": {"purpose": "train"}}
            state = RunWork(self._shared, RunSummary(uid, time_s, start, {"uid": f"stop-{uid}"})).run()
            clean(folder, state)
        if state.outcome == "failed":
            raise InputError(f"{uid} failed: {state.reason}", "the bench counts scans that were worked on")
        return state


def run(options: GateBench, out: Path | None = None, status: Callable[[str], None] = lambda _: None) -> GateReport:
    """Run the bench.

    Parameters
    ----------
    options : GateBench
    out : path, optional
        Folder in which everything is kept: a bench that was interrupted goes on there. By default a temporary one.
    status : callable, optional
        Told what is being done.

    Raises
    ------
    InputError
        The folder holds a bench of other options.
    """
    with _folder(out) as folder:
        _check_options(folder, options)
        scans = GateScans(options.scans)
        stages = SharedStages(folder / "reconstructions")

        def measure(uid: str) -> Measurement:
            number = int(uid.rsplit("-", 1)[1])
            return replace(scans.measurement(number), run_uid=uid)

        _before(options, folder, stages, scans, measure, status)
        learners = {name: Learner(options.settings(folder / name, name), stages, measure) for name in STRATEGIES}
        results_file = folder / "scans.json"
        results: list[dict[str, Any]] = read_json(results_file, [])
        for number in range(len(results), options.scans.num_scans):
            status(f"scan {number + 1} of {options.scans.num_scans}")
            scan = options.scans.num_before + number
            results.append({name: _one_scan(learner, scans, scan) for name, learner in learners.items()})
            write_json(results_file, results)
        status("poisoned candidates")
        poisoned = _poison(options, folder, scans, measure)
        status("rollback")
        back = _rollback(learners["on_mismatch"])
        return _report(options, results, poisoned, back)


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="bench-gate-") as name:
        yield Path(name)


def _before(
    options: GateBench,
    folder: Path,
    stages: SharedStages,
    scans: GateScans,
    measure: Callable[[str], Measurement],
    status: Callable[[str], None],
) -> None:
    """Make the model and the corpus that both learners begin with."""
    learner = Learner(options.settings(folder / BEFORE, "every_run"), stages, measure)
    for scan in range(options.scans.num_before):
        status(f"scan {scan + 1} of {options.scans.num_before} before the experiment")
        learner.take(scans.uid(scan), scans.time_s(scan))
    for name in STRATEGIES:
        own = folder / name
        if options.scans.num_before and not own.exists():
            part = folder / f"{name}.part"
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(folder / BEFORE, part)
            part.rename(own)


def _check_options(folder: Path, options: GateBench) -> None:
    content = json.loads(json.dumps({**options.__dict__, "scans": options.scans.as_dict()}))
    known = read_json(folder / "options.json")
    if known is not None and known != content:
        raise InputError(f"{folder} holds a bench of other options", "", "name another folder with --out")
    write_json(folder / "options.json", content)


def _one_scan(learner: Learner, scans: GateScans, scan: int) -> dict[str, Any]:
    """What the model that serves reads in a scan, then what is learned from it."""
    model = learner.serving()
    ssim = None if model is None else scans.score(scan, model)
    state = learner.take(scans.uid(scan), scans.time_s(scan))
    figures = state.figures
    return {
        "ssim": ssim,
        "looked": "reconstruct" in state.done or "glance" in state.done,
        "mismatch": figures.get("mismatch"),
        "outcome": state.outcome,
        "reason": state.reason,
        "regime": state.regime.get("probe"),
        "probe_similarity": figures.get("probe_similarity"),
        "candidate_score": figures.get("candidate_score"),
        "serving_score": figures.get("serving_score"),
        "forgotten": figures.get("forgotten"),
        "label_frame_updates": figures.get("label_frame_updates", 0) + figures.get("glance_frame_updates", 0),
        "train_frame_updates": figures.get("train_frame_updates", 0),
        "seconds": figures.get("label_s", 0.0)
        + sum(value for name, value in state.stage_seconds.items() if name != "reconstruct"),
    }


def _poison(
    options: GateBench, folder: Path, scans: GateScans, measure: Callable[[str], Measurement]
) -> list[dict[str, Any]]:
    """Candidates whose labels were shuffled: two on top of the model that serves, one from scratch."""
    kept: list[dict[str, Any]] = read_json(folder / "poisoned.json", [])
    stages = PoisonedStages(folder / "reconstructions")
    last = options.scans.num_before + options.scans.num_scans - 1
    for number in range(len(kept), POISONED):
        own = folder / f"poisoned-{number}"
        shutil.rmtree(own, ignore_errors=True)
        scan = last - number
        if number < POISONED - 1:
            shutil.copytree(folder / "on_mismatch", own)
        learner = Learner(options.settings(own, "every_run"), stages, measure)
        state = learner.take(f"poisoned-{scans.uid(scan)}", scans.time_s(last + 1))
        kept.append(
            {
                "from": "serving" if number < POISONED - 1 else "scratch",
                "outcome": state.outcome,
                "reason": state.reason,
                "candidate_score": state.figures.get("candidate_score"),
                "serving_score": state.figures.get("serving_score"),
                "constant_score": state.figures.get("constant_score"),
            }
        )
        write_json(folder / "poisoned.json", kept)
        shutil.rmtree(own, ignore_errors=True)
    return kept


def _rollback(learner: Learner) -> bool:
    """Whether going back brings the model before into service, with its content, and forward again."""
    models = learner.models
    serving = models.serving()
    if serving is None:
        return False
    previous = [
        record.model_id for record in models.records() if record.model_id != serving.model_id and record.promoted_s
    ]
    if not previous:
        return False
    try:
        retired, back = rollback(models, reason="bench", model_id=serving.model_id)
    except InputError:
        return False
    worked = retired.model_id == serving.model_id and back is not None and back.model_id in previous
    if back is not None:
        models.get(back.model_id)
    promote(models, serving.model_id, "bench: forward again")
    again = models.serving()
    return bool(worked and again is not None and again.model_id == serving.model_id)


def _report(
    options: GateBench, results: list[dict[str, Any]], poisoned: list[dict[str, Any]], back: bool
) -> GateReport:
    always, gated = ([each[name] for each in results] for name in STRATEGIES)
    updates = [sum(s["label_frame_updates"] + s["train_frame_updates"] for s in each) for each in (always, gated)]
    seconds = [sum(s["seconds"] for s in each) for each in (always, gated)]
    pairs = [(a["ssim"], g["ssim"]) for a, g in zip(always, gated, strict=True) if a["ssim"] and g["ssim"]]
    means = [float(np.mean([pair[k] for pair in pairs])) for k in (0, 1)]
    tolerance = options.settings(Path(), "on_mismatch").worker.mismatch_tolerance
    detected = {change.name: _detected_after(gated, change.scan, tolerance) for change in options.scans.changes}
    in_time = [name for name, after in detected.items() if after is not None and after <= options.probe_scans]
    alarms = _false_alarms(options, gated)
    promoted = sum(each["outcome"] == "promoted" for each in poisoned)
    count = len(options.scans.changes)
    rows = [
        Row("compute_fraction", "1", "lower", updates[1] / updates[0], 1.0, "retraining on every scan", 0.3),
        Row("ssim_loss", "SSIM", "lower", means[0] - means[1], target=0.01),
        Row("changes_detected", "1", "higher", len(in_time), target=count),
        Row("false_alarms", "scans", "lower", len(alarms)),
        Row("poisoned_promoted", "1", "lower", promoted, target=0),
        Row("rollback_works", "1", "higher", float(back), target=1),
        Row("seconds_fraction", "1", "lower", seconds[1] / seconds[0], 1.0, "retraining on every scan"),
        Row("ssim_gate", "SSIM", "higher", means[1], means[0], "retraining on every scan"),
    ]
    extra = {
        "options": {**options.__dict__, "scans": options.scans.as_dict()},
        "simulated": True,
        "frame_updates": dict(zip(STRATEGIES, updates, strict=True)),
        "seconds": dict(zip(STRATEGIES, seconds, strict=True)),
        "scans_until_detected": detected,
        "false_alarms": alarms,
        "retrained": {
            name: sum(bool(s["train_frame_updates"]) for s in each)
            for name, each in zip(STRATEGIES, (always, gated), strict=True)
        },
        "poisoned": poisoned,
        "scans": results,
    }
    return GateReport(rows, extra)


def _detected_after(gated: list[dict[str, Any]], first: int, tolerance: float) -> int | None:
    """Scans after a change at which a mismatch beyond the tolerance was found; None if never."""
    for after, each in enumerate(gated[first:]):
        if each["mismatch"] is not None and each["mismatch"] >= tolerance:
            return after
    return None


def _false_alarms(options: GateBench, gated: list[dict[str, Any]]) -> list[int]:
    """Scans at which a mismatch was found, or the model retrained, though nothing had changed lately."""
    worker, scans = options.settings(Path(), "on_mismatch").worker, options.scans
    settling = options.probe_scans + worker.patience
    lately: set[int] = set()
    for change in scans.changes:
        takes = scans.drift_scans if change.name == "probe" else 1
        lately |= set(range(change.scan, change.scan + takes + settling))
    if not scans.num_before:
        # A learner that begins with nothing is as one that has seen a change.
        lately |= set(range(1 + settling))
    return [
        number
        for number, each in enumerate(gated)
        if number not in lately
        and (
            (each["mismatch"] is not None and each["mismatch"] >= worker.mismatch_tolerance)
            or each["train_frame_updates"]
        )
    ]
