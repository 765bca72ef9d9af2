"""Pass after pass of any engine: progress, refined positions, when to stop, and going on from where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho_bluesky.errors import InputError, StorageError
from ptycho_bluesky.reconstruction.conjugate_gradient import ConjugateGradient
from ptycho_bluesky.reconstruction.forward import Scan, frame_errors
from ptycho_bluesky.reconstruction.options import CgOptions, EngineOptions, PieOptions, PtychiOptions
from ptycho_bluesky.reconstruction.pie import Pie
from ptycho_bluesky.reconstruction.positions import refine_positions
from ptycho_bluesky.reconstruction.workers import Workers

__all__ = ["Engine", "EngineState", "Progress", "make_engine", "run_passes"]

Progress = Callable[[int, int, float], None]
"""Called with (passes done, passes in all, error)."""


class Engine(Protocol):
    """A running reconstruction."""

    scan: Scan
    probe: Tensor

    @property
    def obj(self) -> Tensor:
        """The object, complex (rows, cols)."""
        ...

    def run_pass(self, iteration: int) -> float:
        """Use every frame once; returns Σ(|F| − √I)²/ΣI before or during the pass."""
        ...

    def move(self, scan: Scan) -> None:
        """Go on with other positions of the same frames."""
        ...

    def memory(self) -> dict[str, Tensor]:
        """What, beside object, probe and positions, the next pass depends on."""
        ...

    def recall(self, memory: Mapping[str, Tensor]) -> None:
        """Inverse of `memory`."""
        ...


def make_engine(
    scan: Scan, obj: Tensor, probe: Tensor, options: EngineOptions, workers: Workers | None = None
) -> Engine:
    """The engine that the type of the options names; ``workers`` share the work of the conjugate gradients.

    Raises
    ------
    InputError
        No engine takes options of this type.
    """
    if isinstance(options, PieOptions):
        return Pie(scan, obj, probe, options)
    if isinstance(options, CgOptions):
        return ConjugateGradient(scan, obj, probe, options, workers=workers)
    if isinstance(options, PtychiOptions):
        from ptycho_bluesky.reconstruction.ptychi_adapter import PtychiEngine

        return PtychiEngine(scan, obj, probe, options)
    raise InputError(f"options of type {type(options).__name__}", "no engine takes them", "use EpieOptions")


@dataclass(frozen=True)
class EngineState:
    """A reconstruction between two passes: what is needed to go on as if it had never stopped.

    Attributes
    ----------
    options : dict
        Of the engine, its name under ``engine``.
    obj : ndarray of complex, shape (rows, cols)
        In the engine's own gauge.
    probe : ndarray of complex, shape (modes, N, N)
    position_px : ndarray of float64, shape (n, 2)
    error : ndarray of float64, shape (passes done,)
    held_out_error : ndarray of float64, shape (passes done,)
        Empty where no frames are held out.
    memory : dict of ndarray
        Velocities, directions.
    """

    options: Mapping[str, Any]
    obj: NDArray[Any]
    probe: NDArray[Any]
    position_px: NDArray[np.float64]
    error: NDArray[np.float64]
    held_out_error: NDArray[np.float64]
    memory: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def save(self, path: Path | str) -> None:
        """Write the state (``.npz``), beside and renamed when complete.

        Raises
        ------
        StorageError
            It cannot be written.
        """
        path = Path(path)
        beside = path.with_name(path.name + ".part")
        content: dict[str, Any] = {f"memory_{name}": value for name, value in self.memory.items()}
        content |= {"obj": self.obj, "probe": self.probe, "position_px": self.position_px, "error": self.error}
        content |= {"held_out_error": self.held_out_error, "options": json.dumps(dict(self.options))}
        try:
            with beside.open("wb") as file:
                np.savez(file, **content)
            beside.replace(path)
        except OSError as error:
            raise StorageError(f"state {path}: {error}", "the folder must be writable", "name another file") from error

    @classmethod
    def load(cls, path: Path | str) -> EngineState:
        """Inverse of `save`.

        Raises
        ------
        InputError
            There is no such file, or it holds something else.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                found = {name: file[name] for name in file.files}
            memory = {name[7:]: value for name, value in found.items() if name.startswith("memory_")}
            return cls(
                options=json.loads(str(found["options"])),
                obj=found["obj"],
                probe=found["probe"],
                position_px=found["position_px"],
                error=found["error"],
                held_out_error=found["held_out_error"],
                memory=memory,
            )
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"state {path}: {error}", "a state that an engine has saved", "start anew") from error


def run_passes(
    engine: Engine,
    options: EngineOptions,
    *,
    measured_px: NDArray[np.float64] | None = None,
    held_out: Scan | None = None,
    progress: Progress | None = None,
    state: EngineState | None = None,
    keep: Callable[[EngineState], None] | None = None,
) -> EngineState:
    """Run passes until all are done or a reason to stop is met.

    Parameters
    ----------
    engine : Engine
    options : EngineOptions
        ``iterations``, ``stop_error``, ``patience`` and those on positions are used here.
    measured_px : ndarray of float64, shape (n, 2), optional
        Positions before any refinement; those of the engine's scan by default.
    held_out : Scan, optional
        Frames that the engine does not see; their error is followed where ``patience`` asks for it.
    progress : callable, optional
        Called after each pass; an exception in it ends the reconstruction.
    state : EngineState, optional
        Go on from here; the engine has the object, probe and positions of it already.
    keep : callable, optional
        Called with the state after each pass.

    Returns
    -------
    EngineState
        After the last pass, or the best one on the held-out frames where ``patience`` has ended it.
    """
    error = [] if state is None else state.error.tolist()
    judged = [] if state is None else state.held_out_error.tolist()
    if state is not None:
        engine.recall({name: torch.from_numpy(value) for name, value in state.memory.items()})
    measured_px = engine.scan.position_px if measured_px is None else measured_px
    judge = _Judge(held_out, options.patience, judged)
    for iteration in range(len(error), options.iterations):
        error.append(engine.run_pass(iteration))
        if not np.isfinite(error[-1]):
            raise InputError(
                f"the reconstruction diverged (error {error[-1]})", "", "use smaller steps or another probe"
            )
        if options.correct_positions and iteration >= options.position_start:
            refined = refine_positions(engine.scan, engine.obj, engine.probe, measured_px, options.max_correction_px)
            engine.move(engine.scan.moved(refined))
        judge.look(engine)
        if keep is not None:
            keep(_state(engine, options, error, judge.error))
        if progress is not None:
            progress(iteration + 1, options.iterations, error[-1])
        if error[-1] <= options.stop_error or judge.gives_up():
            break
    return judge.best(_state(engine, options, error, judge.error))


def _state(engine: Engine, options: EngineOptions, error: list[float], judged: list[float]) -> EngineState:
    obj, probe = (wave.detach().cpu().numpy().copy() for wave in (engine.obj, engine.probe))
    memory = {name: value.cpu().numpy().copy() for name, value in engine.memory().items()}
    settings = {"engine": options.engine, **options.model_dump()}
    position_px = engine.scan.position_px
    return EngineState(settings, obj, probe, position_px, np.array(error), np.array(judged), memory)


class _Judge:
    """Follows the held-out frames and remembers the best object."""

    def __init__(self, held_out: Scan | None, patience: int, error: list[float]) -> None:
        self._scan = held_out if held_out is not None and patience and len(held_out) else None
        self._patience, self.error = patience, error
        self._total = 0.0 if self._scan is None else float(self._scan.amplitude.double().square().sum())
        self._best: tuple[int, Tensor, Tensor] | None = None

    def look(self, engine: Engine) -> None:
        if self._scan is None:
            return
        self.error.append(float(frame_errors(self._scan, engine.obj, engine.probe).sum()) / self._total)
        if self.error[-1] == min(self.error):
            self._best = len(self.error), engine.obj.clone(), engine.probe.clone()

    def gives_up(self) -> bool:
        return self._scan is not None and len(self.error) - 1 - int(np.argmin(self.error)) >= self._patience

    def best(self, last: EngineState) -> EngineState:
        if not self.gives_up() or self._best is None:
            return last
        passes, obj, probe = self._best
        return EngineState(
            last.options, obj.cpu().numpy(), probe.cpu().numpy(), last.position_px,
            last.error[:passes], last.held_out_error[:passes], {},
        )  # fmt: skip
