"""``HDF1:`` and ``Pva1:``, the detector's plugins, as areaDetector shows them."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

from caproto import SkipWrite

from ptycho_bluesky.errors import InputError, StorageError
from simulated_iocs.channels import (
    EMPTY,
    Busy,
    RefreshedGroup,
    enum_pair,
    enum_readback,
    index_of,
    long_string,
    long_string_pair,
    number_pair,
    number_readback,
    publish,
    short_string,
    short_string_pair,
    switch_pair,
)
from simulated_iocs.hdf_writer import HdfWriter
from simulated_iocs.publisher import FramePublisher
from simulated_iocs.scene import Scene

__all__ = ["HdfPlugin", "PvaPlugin", "full_file_name"]

logger = logging.getLogger(__name__)

STREAM = 2
DISABLE_ENABLE = ("Disable", "Enable")


def full_file_name(template: str, folder: str, name: str, number: int) -> Path:
    """Fill areaDetector's file template, C's printf with path, name and number; it may leave the last ones out.

    Raises
    ------
    InputError
        The template does not fit.
    """
    path = folder if folder.endswith("/") else folder + "/"
    for arguments in ((path, name, number), (path, name), (path,)):
        try:
            return Path(template % arguments)
        except (TypeError, ValueError):
            continue
    raise InputError(f"FileTemplate = {template!r}", "it takes path, name and number", "give e.g. %s%s_%6.6d.h5")


def make_folder(folder: Path, depth: int) -> None:
    """Create missing folders as areaDetector's CreateDirectory says: at most -depth levels; 0 creates none.

    Raises
    ------
    OSError
        The folder cannot be created.
    """
    missing = [part for part in (folder, *folder.parents) if not part.exists()]
    if missing and depth < 0 and len(missing) <= -depth:
        folder.mkdir(parents=True, exist_ok=True)


class HdfPlugin(RefreshedGroup):
    """The file plugin, in stream mode.

    Parameters
    ----------
    writer : HdfWriter
    scene : Scene
    """

    file_path = long_string_pair("FilePath", "/tmp/")
    file_name = long_string_pair("FileName", "frames")
    file_template = long_string_pair("FileTemplate", "%s%s_%6.6d.h5")
    file_number = number_pair("FileNumber", 0)
    full_name = long_string("FullFileName_RBV", EMPTY)
    file_path_exists = enum_readback("FilePathExists_RBV", ("No", "Yes"), 1)
    create_directory = number_pair("CreateDirectory", 0)
    auto_increment = switch_pair("AutoIncrement", 1)
    write_mode = enum_pair("FileWriteMode", ("Single", "Capture", "Stream"), STREAM)
    num_capture = number_pair("NumCapture", 0)
    num_captured = number_readback("NumCaptured_RBV", 0)
    capture = switch_pair("Capture", 0, ("Done", "Capture"))
    swmr_mode = switch_pair("SWMRMode", 1, ("Off", "On"))
    swmr_active = enum_readback("SWMRActive_RBV", ("Off", "Active"))
    lazy_open = switch_pair("LazyOpen", 0)
    enable_callbacks = switch_pair("EnableCallbacks", 1, DISABLE_ENABLE)
    array_counter = number_pair("ArrayCounter", 0)
    dropped_arrays = number_pair("DroppedArrays", 0)
    write_status = enum_pair("WriteStatus", ("Write OK", "Write error"))
    write_message = long_string_pair("WriteMessage", "OK")
    port_name = short_string("PortName_RBV", "HDF1")
    nd_array_port = short_string_pair("NDArrayPort", "CAM1")
    plugin_type = short_string("PluginType_RBV", "NDFileHDF5 simulated")

    def __init__(self, *args: Any, writer: HdfWriter, scene: Scene, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._writer, self._scene = writer, scene
        self._busy = Busy()
        self._opening = False
        self._open_error = ""

    async def prepare(self) -> None:
        """Take over the writable variables."""
        self.file_path.setpoint.putter = self._put_path
        self.capture.setpoint.putter = self._put_capture
        self.enable_callbacks.setpoint.putter = self._put_callbacks
        self.create_directory.setpoint.putter = self._put_create_directory

    async def _put_path(self, channel: Any, value: str) -> None:
        folder = value.rstrip("\0").rstrip("/") + "/"
        await self.file_path.readback.write(folder)
        await self._check_folder()

    async def _put_create_directory(self, channel: Any, value: int) -> None:
        await self.create_directory.readback.write(value)
        await self._check_folder()

    async def _check_folder(self) -> None:
        folder = Path(self.file_path.readback.value)
        try:
            make_folder(folder, int(self.create_directory.readback.value))
        except OSError as error:
            logger.warning("folder %s cannot be created: %s", folder, error)
        await publish(self.file_path_exists, int(folder.is_dir()))

    async def _put_callbacks(self, channel: Any, value: str) -> None:
        self._writer.enabled = channel.get_raw_value(value) == 1
        await self.enable_callbacks.readback.write(value)

    async def _put_capture(self, channel: Any, value: str) -> None:
        if channel.get_raw_value(value) != 1:
            await self._stop()
            raise SkipWrite
        if self._writer.open or self._opening:
            raise SkipWrite
        self._busy.begin()
        self._opening = True
        await publish(self.capture.setpoint, 1)
        try:
            await self._open()
            self._open_error = ""
        except InputError as error:
            logger.error("no capture: %s", error)
            self._open_error = str(error)
        finally:
            self._opening = False
        await self.refresh()
        await self._busy.wait_and_skip()

    async def _open(self) -> None:
        if index_of(self.write_mode.readback) != STREAM:
            raise InputError(f"FileWriteMode = {self.write_mode.readback.value}", "only Stream is simulated")
        path = full_file_name(
            self.file_template.readback.value,
            self.file_path.readback.value,
            self.file_name.readback.value,
            int(self.file_number.readback.value),
        )
        await self._check_folder()

        def start() -> None:
            self._writer.start(
                path,
                self._scene.geometry,
                num_capture=int(self.num_capture.readback.value),
                swmr=index_of(self.swmr_mode.readback) == 1,
            )

        await asyncio.get_running_loop().run_in_executor(None, start)
        await publish(self.full_name, str(path))
        if index_of(self.auto_increment.readback) == 1:
            number = int(self.file_number.readback.value) + 1
            await publish(self.file_number.setpoint, number)
            await publish(self.file_number.readback, number)

    async def _stop(self) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(None, self._writer.stop)
        except StorageError as error:
            self._open_error = str(error)
        await self.refresh()

    async def refresh(self) -> None:
        """Rows first, then the state."""
        writer = self._writer
        is_open = int(writer.open or self._opening)
        error = writer.error or self._open_error
        await publish(self.num_captured, writer.captured)
        await publish(self.array_counter.readback, writer.received)
        await publish(self.dropped_arrays.readback, writer.dropped)
        await publish(self.swmr_active, int(writer.swmr_active))
        for pair in (self.write_message,):
            await publish(pair.readback, error or "OK")
            await publish(pair.setpoint, error or "OK")
        for channel in (
            self.write_status.setpoint,
            self.write_status.readback,
        ):
            await publish(channel, int(bool(error)))
        for channel in (self.capture.readback, self.capture.setpoint):
            await publish(channel, is_open)
        if not is_open:
            self._busy.end()


class PvaPlugin(RefreshedGroup):
    """The pvAccess plugin.

    Parameters
    ----------
    publisher : FramePublisher
    """

    enable_callbacks = switch_pair("EnableCallbacks", 1, DISABLE_ENABLE)
    pv_name = long_string("PvName_RBV", EMPTY)
    array_counter = number_pair("ArrayCounter", 0)
    dropped_arrays = number_pair("DroppedArrays", 0)
    port_name = short_string("PortName_RBV", "PVA1")
    nd_array_port = short_string_pair("NDArrayPort", "CAM1")
    plugin_type = short_string("PluginType_RBV", "NDPluginPva simulated")

    def __init__(self, *args: Any, publisher: FramePublisher, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._publisher = publisher

    async def prepare(self) -> None:
        """Show the channel and take over the writable variables."""
        await self.pv_name.write(self._publisher.channel)
        self.enable_callbacks.setpoint.putter = self._put_callbacks

    async def _put_callbacks(self, channel: Any, value: str) -> None:
        self._publisher.enabled = channel.get_raw_value(value) == 1
        await self.enable_callbacks.readback.write(value)

    async def refresh(self) -> None:
        """Counters."""
        await publish(self.array_counter.readback, self._publisher.published)
        await publish(self.dropped_arrays.readback, self._publisher.dropped)
