"""The whole simulated beamline in one process: Channel Access by caproto, pvAccess by pvapy.

Channel Access runs in the main thread's event loop; the detector's clock (which also publishes on pvAccess), the file
writer and the rendering have threads of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from caproto import ChannelChar, ChannelType

from ptycho_bluesky.errors import StorageError
from simulated_iocs.cam import Cam, DetectorInfo
from simulated_iocs.channels import RefreshedGroup, accept_empty
from simulated_iocs.controls import SimulationControls
from simulated_iocs.engine import DetectorEngine
from simulated_iocs.faults import Faults
from simulated_iocs.front_end import Attenuator, Beam, BeamMonitor, Energy, Shutter
from simulated_iocs.hdf_writer import HdfWriter
from simulated_iocs.options import BeamlineOptions
from simulated_iocs.plugins import HdfPlugin, PvaPlugin
from simulated_iocs.publisher import PVA, FramePublisher
from simulated_iocs.scene import Scene
from simulated_iocs.stage import Stage
from simulated_iocs.stage_drive import RemoteStage, StageDrive
from simulated_iocs.trajectory import TrajectoryController

__all__ = ["Beamline", "BeamlineOptions"]

logger = logging.getLogger(__name__)

REFRESH_S = 0.1
MIN_REFRESH_S = 0.005


class Beamline:
    """Every part, wired together; knows nothing of servers.

    Parameters
    ----------
    options : BeamlineOptions

    Attributes
    ----------
    pvdb : dict
        Process variables by name, for caproto's server.
    channel : str
        pvAccess channel of the frames, "" for a stage alone.
    """

    def __init__(self, options: BeamlineOptions) -> None:
        self.options = options
        self.channel = ""
        self._changed: Callable[[], None] = lambda: None
        prefix = options.prefix
        self.groups: list[RefreshedGroup] = []
        self.pva_server: Any = None
        if options.role == "detector":
            self._add_detector(prefix, RemoteStage(prefix))
        else:
            stage = Stage(prefix, limit_um=options.stage_limit_um, velocity_um_s=options.stage_velocity_um_s)
            self.groups += stage.groups
            if options.role == "beamline":
                self._add_detector(prefix, stage)
        self.pvdb: dict[str, Any] = {name: channel for group in self.groups for name, channel in group.pvdb.items()}
        for channel in self.pvdb.values():
            if isinstance(channel, ChannelChar) and channel.data_type == ChannelType.CHAR:
                accept_empty(channel)

    def _add_detector(self, prefix: str, drive: StageDrive) -> None:
        options = self.options
        self.scene = Scene(options)
        self.faults = Faults()
        self.shutter = Shutter(f"{prefix}shutter1:")
        self.attenuator = Attenuator(f"{prefix}atten1:")
        geometry = self.scene.geometry
        self.energy = Energy(f"{prefix}energy:", energy_eV=0.0 if geometry is None else geometry.energy_eV)
        self.monitor = BeamMonitor(f"{prefix}I0:", reading=self._monitor_reading)
        self.pva_server = PVA.PvaServer()
        self.channel = f"{prefix}det1:Pva1:Image"
        shape, dtype = self.scene.frame_shape, self.scene.dtype
        self.publisher = FramePublisher(self.pva_server, self.channel, shape, dtype, self.faults, options.seed)
        self.writer = HdfWriter(
            shape,
            dtype,
            self.faults,
            queue_frames=options.hdf_queue_frames,
            on_change=self._notify,
            on_error=lambda reason: self.engine.fail(reason),
            seed=options.seed,
        )
        self.engine = DetectorEngine(
            [self.publisher.publish, self.writer.put], self.faults, lambda: self.shutter.is_open, self._notify
        )
        self.controls = SimulationControls(
            f"{prefix}sim1:",
            scene=self.scene,
            faults=self.faults,
            publisher=self.publisher,
            writer=self.writer,
            seed=options.seed,
        )
        beam = Beam(
            self.attenuator,
            self.energy,
            lambda: abs(int(self.controls.seed.value)),
            lambda: self.controls.flips_frames,
        )
        self.cam = Cam(
            f"{prefix}det1:cam1:",
            engine=self.engine,
            scene=self.scene,
            beam=beam,
            stage=drive,
            reset_ids=lambda: self.controls.resets_ids,
        )
        self.hdf = HdfPlugin(f"{prefix}det1:HDF1:", writer=self.writer, scene=self.scene)
        self.trajectory = TrajectoryController(
            f"{prefix}fly1:",
            engine=self.engine,
            scene=self.scene,
            stage=drive,
            cam=self.cam,
            beam=beam,
            max_frame_bytes=options.max_frame_bytes,
            on_change=self._notify,
        )
        # In this order they are refreshed: counters and files before the states that clients wait for.
        self.groups += [
            self.shutter,
            self.attenuator,
            self.energy,
            self.monitor,
            DetectorInfo(f"{prefix}det1:", scene=self.scene),
            PvaPlugin(f"{prefix}det1:Pva1:", publisher=self.publisher),
            self.hdf,
            self.cam,
            self.trajectory,
            self.controls,
        ]

    def _monitor_reading(self) -> float:
        if self.engine.status().acquiring and np.isfinite(self.engine.last_i0):
            return self.engine.last_i0
        return self.scene.monitor(self.cam.acquire_time_s, self.attenuator.value)

    def _notify(self) -> None:
        self._changed()

    async def prepare(self) -> None:
        """Initial values; the sample is rasterised here, so that the first scan does not wait for it."""
        for group in self.groups:
            await group.prepare()
        if self.options.role != "stage":
            await asyncio.get_running_loop().run_in_executor(None, self.scene.monitor, 1.0, 1.0)
            for group in self.groups:
                await group.refresh()

    async def refresh_forever(self) -> None:
        """Bring the readbacks up to date, periodically and after each change of state."""
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(changed.set)

        self._changed = wake
        while True:
            # Not wait_for: before Python 3.12 it swallows a cancellation that comes together with the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_S):
                    await changed.wait()
            changed.clear()
            for group in self.groups:
                await group.refresh()
            await asyncio.sleep(MIN_REFRESH_S)

    def close(self) -> None:
        """Stop the detector and close its file."""
        if self.options.role == "stage":
            return
        self.engine.disarm()
        try:
            self.writer.stop()
        except StorageError as error:
            logger.error("%s", error)
        self.publisher.close()
        if self.pva_server is not None:
            self.pva_server.stop()
