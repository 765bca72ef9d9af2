"""``fly1:``, the trajectory controller: it moves the stage along stored points and triggers the detector at each."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import numpy as np
from caproto import SkipWrite
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from simulated_iocs.cam import Cam
from simulated_iocs.channels import (
    RefreshedGroup,
    command,
    enum_readback,
    long_string,
    number_pair,
    number_readback,
    publish,
    setting,
    waveform,
)
from simulated_iocs.clock import FrameClock
from simulated_iocs.engine import DetectorEngine
from simulated_iocs.frames import FrameSet
from simulated_iocs.front_end import Beam
from simulated_iocs.scene import Scene
from simulated_iocs.stage_drive import StageDrive, check_trajectory

__all__ = ["TrajectoryController", "TrajectoryState"]

logger = logging.getLogger(__name__)

MAX_POINTS = 200_000
PERCENT = 100.0


class TrajectoryState(IntEnum):
    """``State_RBV``."""

    Idle = 0
    Building = 1
    Ready = 2
    Running = 3
    Done = 4
    Aborted = 5
    Fault = 6


class TrajectoryController(RefreshedGroup):
    """The controller.

    Parameters
    ----------
    engine : DetectorEngine
    scene : Scene
    stage : StageDrive
    cam : Cam
    beam : Beam
    max_frame_bytes : int
        Memory that rendered frames may take.
    on_change : callable
        Wakes the refreshing task; may be called in any thread.

    Notes
    -----
    Frames are rendered by Build in a thread of the executor; Start only lets them go.
    """

    y = waveform("Y_m", MAX_POINTS)
    x = waveform("X_m", MAX_POINTS)
    num_points = setting("NumPoints", 0)
    period = number_pair("Period_s", 0.005, units="s")
    start_index = number_pair("StartIndex", 0)
    build = command("Build")
    build_progress = number_readback("BuildProgress_RBV", 0.0, units="%")
    start = command("Start")
    abort = command("Abort")
    state = enum_readback("State_RBV", tuple(state.name for state in TrajectoryState))
    index = number_readback("Index_RBV", 0)
    max_late = number_readback("MaxLate_ms_RBV", 0.0, units="ms")
    message = long_string("Message_RBV", "Idle")

    def __init__(
        self,
        *args: Any,
        engine: DetectorEngine,
        scene: Scene,
        stage: StageDrive,
        cam: Cam,
        beam: Beam,
        max_frame_bytes: int,
        on_change: Callable[[], None],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._engine, self._scene, self._stage, self._cam = engine, scene, stage, cam
        self._beam, self._max_frame_bytes, self._on_change = beam, max_frame_bytes, on_change
        self._state, self._message = TrajectoryState.Idle, "Idle"
        self._frames: FrameSet | None = None
        self._planned_m: NDArray[np.float64] = np.empty((0, 2))
        self._period_s = 0.0
        self._progress = 0.0
        self._clock: FrameClock | None = None
        self._aborting = False
        self._index = 0

    async def prepare(self) -> None:
        """Take over the commands."""
        self.build.putter = self._put_build
        self.start.putter = self._put_start
        self.abort.putter = self._put_abort

    def _set(self, state: TrajectoryState, message: str) -> None:
        self._state, self._message = state, message

    # Build

    async def _put_build(self, channel: Any, value: str) -> None:
        if channel.get_raw_value(value) != 1 or self._state in (TrajectoryState.Building, TrajectoryState.Running):
            raise SkipWrite
        self._frames = None
        self._progress = 0.0
        self._set(TrajectoryState.Building, "Building")
        await publish(self.build, 1)
        await self.refresh()
        try:
            self._planned_m, self._period_s = self._read_trajectory()
            check_trajectory(self._planned_m, self._period_s, await self._stage.ranges())
            await self._render()
        except (InputError, MemoryError) as error:
            logger.error("no trajectory: %s", error)
            self._set(TrajectoryState.Fault, f"Build: {error}")
        await self.refresh()
        await publish(self.build, 0)
        raise SkipWrite

    def _read_trajectory(self) -> tuple[NDArray[np.float64], float]:
        count, period_s = int(self.num_points.value), float(self.period.readback.value)
        axes = []
        for name, channel in (("Y_m", self.y), ("X_m", self.x)):
            values = np.atleast_1d(np.asarray(channel.value, dtype=np.float64))
            if not 1 <= count <= len(values):
                raise InputError(f"NumPoints = {count} beside {len(values)} values of {name}", "each point needs one")
            axes.append(values[:count])
        position_m = np.stack(axes, axis=1)
        if not np.isfinite(position_m).all():
            raise InputError("a trajectory with a point that is not finite", "each point is a position in metres")
        if not period_s > 0.0:
            raise InputError(f"Period_s = {period_s}", "it must be positive")
        if period_s < self._cam.acquire_time_s * (1.0 - 1e-6):
            raise InputError(
                f"Period_s = {period_s:g}",
                f"it is shorter than the exposure, {self._cam.acquire_time_s:g} s",
                "expose shorter or take a longer period",
            )
        rows, cols = self._scene.frame_shape
        size = count * rows * cols * np.dtype(self._scene.dtype).itemsize
        if size > self._max_frame_bytes:
            raise InputError(
                f"{count} frames of {rows}×{cols} pixels take {size / 1e6:.0f} MB",
                f"the limit is {self._max_frame_bytes / 1e6:.0f} MB",
                "scan fewer points",
            )
        return position_m, period_s

    async def _render(self) -> None:
        def progress(done: int, total: int) -> None:
            self._progress = PERCENT * done / total

        exposure, seed = self._beam.exposure(self._cam.acquire_time_s), self._beam.next_seed()
        frames = await asyncio.get_running_loop().run_in_executor(
            None, self._scene.render, self._planned_m, exposure, seed, progress
        )
        self._frames, self._progress = frames, PERCENT
        self._set(TrajectoryState.Ready, f"{len(frames)} frames ready")

    # Start

    async def _put_start(self, channel: Any, value: str) -> None:
        if channel.get_raw_value(value) != 1 or self._state in (TrajectoryState.Building, TrajectoryState.Running):
            raise SkipWrite
        first = int(self.start_index.readback.value)
        try:
            frames = self._check_start(first)
        except InputError as error:
            logger.error("no start: %s", error)
            self._set(TrajectoryState.Fault, f"Start: {error}")
            await self.refresh()
            raise SkipWrite from None
        self._index, self._aborting = first, False
        self._set(TrajectoryState.Running, "Running")
        await publish(self.start, 1)
        await self.refresh()
        self._run_task = asyncio.create_task(self._run(frames, first))
        raise SkipWrite

    def _check_start(self, first: int) -> FrameSet:
        frames = self._frames
        if frames is None:
            raise InputError("no frames", "they are rendered by Build", "put Build first")
        if not 0 <= first < len(frames):
            raise InputError(f"StartIndex = {first}", f"the trajectory has points 0 to {len(frames) - 1}")
        if not self._cam.is_armed:
            raise InputError("the detector is not armed", "set TriggerMode External and Acquire before Start")
        if frames.exposure != self._beam.exposure(self._cam.acquire_time_s):
            raise InputError(
                "exposure, attenuation or energy changed since Build", "frames are rendered for one", "Build again"
            )
        return frames

    async def _run(self, frames: FrameSet, first: int) -> None:
        y, x = self._planned_m[first].tolist()
        try:
            await self._stage.go_to((y, x))
        except InputError as error:
            self._engine.fail(str(error))
        if self._aborting or self._engine.failed:
            await self._finish()
            return
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()

        def on_end() -> None:
            loop.call_soon_threadsafe(ended.set)

        self._clock = FrameClock(
            lambda row: self._engine.trigger(frames, row),
            range(first, len(frames)),
            self._period_s,
            on_end,
            self._engine.fail,
        )
        self._clock.start()
        await ended.wait()
        await self._finish()

    async def _finish(self) -> None:
        clock, frames = self._clock, self._frames
        if clock is not None:
            self._index = clock.next_row
        self._clock = None
        await self._follow()
        await self._stage.release()
        if self._engine.failed:
            self._set(TrajectoryState.Fault, f"Detector: {self._engine.status().message}")
        elif frames is not None and self._index >= len(frames):
            self._set(TrajectoryState.Done, f"{self._index} points done")
        else:
            self._set(TrajectoryState.Aborted, f"Stopped before point {self._index}")
        await self.refresh()
        self._on_change()

    async def _put_abort(self, channel: Any, value: str) -> None:
        if channel.get_raw_value(value) == 1 and self._state is TrajectoryState.Running:
            self._aborting = True
            if self._clock is not None:
                self._clock.finish()
        raise SkipWrite

    async def _follow(self) -> None:
        """Put the stage where the last triggered frame was taken."""
        if self._frames is not None and self._index > 0:
            y, x = self._frames.position_m[min(self._index, len(self._frames)) - 1].tolist()
            await self._stage.follow((y, x))

    async def refresh(self) -> None:
        """Index and stage first, then the state."""
        clock = self._clock
        if clock is not None and self._state is TrajectoryState.Running:
            self._index = clock.next_row
            await publish(self.max_late, clock.max_late_s * 1e3)
            await self._follow()
        await publish(self.index, self._index)
        await publish(self.build_progress, self._progress)
        await publish(self.message, self._message)
        await publish(self.state, int(self._state))
        await publish(self.start, int(self._state is TrajectoryState.Running))
