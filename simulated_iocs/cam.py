"""``cam1:``, the detector's driver, as areaDetector's ADDriver shows it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from caproto import SkipWrite

from ptycho_bluesky.errors import InputError
from simulated_iocs.channels import (
    Busy,
    RefreshedGroup,
    enum_pair,
    enum_readback,
    guarded,
    index_of,
    long_string,
    number_pair,
    number_readback,
    publish,
    short_string,
    switch_pair,
)
from simulated_iocs.engine import DetectorEngine, DetectorState
from simulated_iocs.frames import FrameSet
from simulated_iocs.front_end import Beam
from simulated_iocs.scene import Scene
from simulated_iocs.stage_drive import StageDrive

__all__ = ["DATA_TYPES", "Cam", "DetectorInfo"]

logger = logging.getLogger(__name__)

DATA_TYPES = (
    "Int8",
    "UInt8",
    "Int16",
    "UInt16",
    "Int32",
    "UInt32",
    "Int64",
    "UInt64",
    "Float32",
    "Float64",
)
"""areaDetector's NDDataType."""
INTERNAL = 0
SINGLE, CONTINUOUS = 0, 2
CONTINUOUS_FRAMES = 64
"""Frames that a continuous acquisition renders and then repeats."""


class DetectorInfo(RefreshedGroup):
    """``det1:`` geometry; 0 where a recording does not state it."""

    distance = number_readback("Distance_m_RBV", 0.0, units="m")
    pixel_size = number_readback("PixelSize_m_RBV", 0.0, units="m")

    def __init__(self, *args: Any, scene: Scene, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._scene = scene

    async def prepare(self) -> None:
        """Show distance and pixel size."""
        geometry = self._scene.geometry
        if geometry is not None:
            await self.distance.write(geometry.distance_m)
            await self.pixel_size.write(geometry.detector_pixel_m)


class Cam(RefreshedGroup):
    """The driver.

    Parameters
    ----------
    engine : DetectorEngine
    scene : Scene
    beam : Beam
    stage : StageDrive
    reset_ids : callable
        Whether the unique ids start again at each arming.
    """

    acquire = switch_pair("Acquire", 0, ("Done", "Acquire"))
    acquire_busy = enum_readback("AcquireBusy", ("Done", "Acquiring"))
    acquire_time = number_pair("AcquireTime", 0.005, units="s")
    acquire_period = number_pair("AcquirePeriod", 0.005, units="s")
    num_images = number_pair("NumImages", 1)
    num_images_counter = number_readback("NumImagesCounter_RBV", 0)
    image_mode = enum_pair("ImageMode", ("Single", "Multiple", "Continuous"), 1)
    trigger_mode = enum_pair("TriggerMode", ("Internal", "External"))
    array_counter = number_pair("ArrayCounter", 0)
    array_callbacks = switch_pair("ArrayCallbacks", 1, ("Disable", "Enable"))
    detector_state = enum_readback("DetectorState_RBV", tuple(state.name for state in DetectorState))
    status_message = long_string("StatusMessage_RBV", "Idle")
    size_x = number_pair("SizeX", 0)
    size_y = number_pair("SizeY", 0)
    max_size_x = number_readback("MaxSizeX_RBV", 0)
    max_size_y = number_readback("MaxSizeY_RBV", 0)
    array_size_x = number_readback("ArraySizeX_RBV", 0)
    array_size_y = number_readback("ArraySizeY_RBV", 0)
    array_size = number_readback("ArraySize_RBV", 0)
    data_type = enum_readback("DataType_RBV", DATA_TYPES, 3)
    manufacturer = short_string("Manufacturer_RBV", "ptycho_bluesky")
    model = short_string("Model_RBV", "Simulated detector")
    port_name = short_string("PortName_RBV", "CAM1")

    def __init__(
        self,
        *args: Any,
        engine: DetectorEngine,
        scene: Scene,
        beam: Beam,
        stage: StageDrive,
        reset_ids: Callable[[], bool],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._engine, self._scene, self._beam = engine, scene, beam
        self._stage, self._reset_ids = stage, reset_ids
        self._busy = Busy()
        self._rendering = False

    @property
    def acquire_time_s(self) -> float:
        """Exposure."""
        return float(self.acquire_time.readback.value)

    @property
    def is_armed(self) -> bool:
        """Whether the detector takes triggers from outside."""
        return index_of(self.trigger_mode.readback) != INTERNAL and self._engine.status().acquiring

    async def prepare(self) -> None:
        """Show the sensor's size and take over the writable variables."""
        rows, cols = self._scene.frame_shape
        dtype = np.dtype(self._scene.dtype)
        name = f"{'UInt' if dtype.kind == 'u' else 'Int'}{8 * dtype.itemsize}"
        for channel, value in (
            (self.size_x.setpoint, cols),
            (self.size_x.readback, cols),
            (self.size_y.setpoint, rows),
            (self.size_y.readback, rows),
            (self.max_size_x, cols),
            (self.max_size_y, rows),
            (self.array_size_x, cols),
            (self.array_size_y, rows),
            (self.array_size, rows * cols * dtype.itemsize),
            (self.data_type, DATA_TYPES.index(name)),
        ):
            await publish(channel, value)
        self.acquire.setpoint.putter = self._put_acquire
        self.array_counter.setpoint.putter = self._put_counter
        self.array_callbacks.setpoint.putter = self._put_callbacks
        self.size_x.setpoint.putter = self.size_y.setpoint.putter = guarded(self._put_size)
        for pair in (self.acquire_time, self.acquire_period):
            pair.setpoint.putter = guarded(self._put_positive(pair))
        self.num_images.setpoint.putter = guarded(self._put_positive(self.num_images))

    def _put_positive(self, pair: Any) -> Any:
        async def put(channel: Any, value: float) -> None:
            if not value > 0:
                raise InputError(f"{channel.pvname} = {value}", "it must be positive")
            await pair.readback.write(value)

        return put

    async def _put_size(self, channel: Any, value: int) -> None:
        whole = self.max_size_x.value if channel is self.size_x.setpoint else self.max_size_y.value
        if value != whole:
            raise InputError(f"{channel.pvname} = {value}", f"regions are not simulated: it is {whole}")

    async def _put_counter(self, channel: Any, value: int) -> None:
        self._engine.set_counter(int(value))
        await self.array_counter.readback.write(value)

    async def _put_callbacks(self, channel: Any, value: str) -> None:
        self._engine.callbacks_enabled = channel.get_raw_value(value) == 1
        await self.array_callbacks.readback.write(value)

    async def _put_acquire(self, channel: Any, value: str) -> None:
        if channel.get_raw_value(value) != 1:
            self._engine.disarm()
            await self.refresh()
            raise SkipWrite
        if self._rendering or self._engine.status().acquiring:
            raise SkipWrite
        self._busy.begin()
        await publish(self.acquire.setpoint, 1)
        if index_of(self.trigger_mode.readback) == INTERNAL:
            self._rendering = True
            try:
                frames = await self._render_here()
            finally:
                self._rendering = False
            if frames is not None and index_of(self.acquire.setpoint) == 1:
                self._engine.arm(self._frames_wanted(), reset_ids=self._reset_ids(), message="Acquiring")
                period_s = max(self.acquire_time_s, float(self.acquire_period.readback.value))
                self._engine.expose(frames, period_s, repeat=self._frames_wanted() == 0)
        else:
            self._engine.arm(self._frames_wanted(), reset_ids=self._reset_ids())
        await self.refresh()
        await self._busy.wait_and_skip()

    def _frames_wanted(self) -> int:
        mode = index_of(self.image_mode.readback)
        if mode == CONTINUOUS:
            return 0
        return 1 if mode == SINGLE else int(self.num_images.readback.value)

    async def _render_here(self) -> FrameSet | None:
        """Render the frames of an internal acquisition where the stage is now."""
        count = self._frames_wanted() or CONTINUOUS_FRAMES
        exposure, seed = self._beam.exposure(self.acquire_time_s), self._beam.next_seed()
        try:
            position_m = np.repeat(np.asarray([await self._stage.read_m()]), count, axis=0)
            return await asyncio.get_running_loop().run_in_executor(
                None, self._scene.render, position_m, exposure, seed
            )
        except InputError as error:
            self._engine.fail(str(error))
            return None

    async def refresh(self) -> None:
        """Counters first, then the state: who sees the end sees the final counts."""
        status = self._engine.status()
        active = int(status.acquiring or self._rendering)
        await publish(self.num_images_counter, status.num_images)
        await publish(self.array_counter.readback, status.unique_id)
        await publish(self.status_message, status.message)
        await publish(self.detector_state, int(status.state))
        for channel in (self.acquire_busy, self.acquire.readback, self.acquire.setpoint):
            await publish(channel, active)
        if not active:
            self._busy.end()
