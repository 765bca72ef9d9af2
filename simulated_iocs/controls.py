"""``sim1:``, what a real beamline does not have: sample, seed and faults."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import numpy as np

from ptycho_bluesky.errors import InputError
from simulated_iocs.channels import (
    LONG_ARRAY_BACKLOG,
    RefreshedGroup,
    guarded,
    index_of,
    long_string,
    number_readback,
    publish,
    setting,
    switch,
    waveform,
)
from simulated_iocs.faults import Faults
from simulated_iocs.hdf_writer import HdfWriter
from simulated_iocs.publisher import FramePublisher
from simulated_iocs.scene import Scene

__all__ = ["SimulationControls"]

logger = logging.getLogger(__name__)

SAMPLE_CHARS = 200_000
MAX_RECORDED = 200_000
FRACTIONS = {"drop": "Drop", "duplicate": "Duplicate", "corrupt": "Corrupt", "hdf_drop": "HDFDrop"}
FRAME_NUMBERS = {"detector_error_at": "DetectorErrorAt", "die_at": "DieAt"}


class SimulationControls(RefreshedGroup):
    """Sample, seed, faults.

    Parameters
    ----------
    scene : Scene
    faults : Faults
    publisher : FramePublisher
    writer : HdfWriter
    seed : int
    """

    sample = long_string(
        "SampleJSON", "{}", max_length=SAMPLE_CHARS, read_only=False, max_subscription_backlog=LONG_ARRAY_BACKLOG
    )
    seed = setting("Seed", 0)
    id_reset_at_arm = switch("IdResetAtArm")
    flip_frames = switch("FlipFrames")
    object_pixel = number_readback("ObjectPixel_m_RBV", 0.0, units="m")
    recorded_y = waveform("RecordedY_m_RBV", MAX_RECORDED, read_only=True)
    recorded_x = waveform("RecordedX_m_RBV", MAX_RECORDED, read_only=True)
    drop = setting("Fault:Drop", 0.0, precision=4)
    duplicate = setting("Fault:Duplicate", 0.0, precision=4)
    corrupt = setting("Fault:Corrupt", 0.0, precision=4)
    hdf_drop = setting("Fault:HDFDrop", 0.0, precision=4)
    delay = setting("Fault:Delay_s", 0.0, precision=4)
    detector_error_at = setting("Fault:DetectorErrorAt", 0)
    die_at = setting("Fault:DieAt", 0)
    fault_seed = setting("Fault:Seed", 0)

    def __init__(
        self,
        *args: Any,
        scene: Scene,
        faults: Faults,
        publisher: FramePublisher,
        writer: HdfWriter,
        seed: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._scene, self._faults = scene, faults
        self._publisher, self._writer, self._initial_seed = publisher, writer, seed

    @property
    def resets_ids(self) -> bool:
        """Whether the unique ids start again at each arming."""
        return index_of(self.id_reset_at_arm) == 1

    @property
    def flips_frames(self) -> bool:
        """Whether the detector's rows run upwards."""
        return index_of(self.flip_frames) == 1

    async def prepare(self) -> None:
        """Show the scene and take over the writable variables."""
        await publish(self.sample, self._scene.description())
        await publish(self.seed, self._initial_seed)
        await publish(self.object_pixel, self._scene.object_pixel_m)
        recorded = self._scene.recorded_position_m
        if recorded is not None:
            await self.recorded_y.write(np.ascontiguousarray(recorded[:, 0]), verify_value=False)
            await self.recorded_x.write(np.ascontiguousarray(recorded[:, 1]), verify_value=False)
        self.sample.putter = guarded(self._put_sample)
        for name in FRACTIONS:
            getattr(self, name).putter = guarded(self._fraction(name))
        for name in FRAME_NUMBERS:
            getattr(self, name).putter = guarded(self._frame_number(name))
        self.delay.putter = guarded(self._put_delay)
        self.fault_seed.putter = self._put_fault_seed

    async def _put_sample(self, channel: Any, value: str) -> None:
        text = value.rstrip("\0")
        await asyncio.get_running_loop().run_in_executor(None, self._scene.set_sample, text)

    def _fraction(self, name: str) -> Any:
        async def put(channel: Any, value: float) -> None:
            if not 0.0 <= value <= 1.0:
                raise InputError(f"{channel.pvname} = {value}", "a fraction lies between 0 and 1")
            setattr(self._faults, name, float(value))

        return put

    def _frame_number(self, name: str) -> Any:
        async def put(channel: Any, value: int) -> None:
            if value < 0:
                raise InputError(f"{channel.pvname} = {value}", "frames are numbered from 1; 0 is off")
            setattr(self._faults, name, int(value))

        return put

    async def _put_delay(self, channel: Any, value: float) -> None:
        if not value >= 0.0:
            raise InputError(f"{channel.pvname} = {value}", "a delay is not negative")
        self._faults.delay_s = float(value)

    async def _put_fault_seed(self, channel: Any, value: int) -> None:
        self._publisher.reseed(abs(int(value)))
        self._writer.reseed(abs(int(value)))

    async def refresh(self) -> None:
        """What the detector changes by itself: a simulated error happens once."""
        await publish(self.detector_error_at, self._faults.detector_error_at)
        await publish(self.object_pixel, self._scene.object_pixel_m)
