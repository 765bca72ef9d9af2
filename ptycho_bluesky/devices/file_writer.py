"""Opening and closing the run's file with the detector's HDF5 plugin."""

from __future__ import annotations

import logging
import os
import shutil
import time
import uuid
from pathlib import Path

from ptycho_bluesky.devices._errors import HardwareError
from ptycho_bluesky.devices._waiting import put_and_wait, require_connection, wait_until
from ptycho_bluesky.devices.area_detector import SlimHDF5
from ptycho_bluesky.errors import StorageError

__all__ = ["FileWriter"]

logger = logging.getLogger(__name__)

SPARE_BYTES = 64 * 2**20
"""Room on the disk that is left beside the frames of a scan."""


class FileWriter:
    """One file a run, named uniquely, opened for SWMR before the detector is armed.

    Parameters
    ----------
    plugin : SlimHDF5
    name : str
        Beginning of the files' names.
    raw_dir : path
        Folder as this machine sees it.
    ioc_raw_dir : str or None
        Folder as the detector's machine sees it, when that differs.
    lazy_open : bool
        Let the plugin open the file with the first frame; SWMR cannot be awaited then.
    open_timeout_s, flush_timeout_s : float
        Deadlines for opening or closing, and for the last rows.
    """

    def __init__(
        self,
        plugin: SlimHDF5,
        name: str,
        raw_dir: Path,
        ioc_raw_dir: str | None,
        *,
        lazy_open: bool,
        open_timeout_s: float,
        flush_timeout_s: float,
    ) -> None:
        self.plugin, self.name = plugin, name
        self.raw_dir, self.ioc_raw_dir = raw_dir, ioc_raw_dir
        self.lazy_open = lazy_open
        self.open_timeout_s, self.flush_timeout_s = open_timeout_s, flush_timeout_s
        self._dropped_before = 0

    def check_room(self, num_bytes: int) -> None:
        """Refuse a scan that the folder cannot hold.

        Raises
        ------
        StorageError
            It cannot be made or written, or has no room for ``num_bytes``.
        """
        try:
            self.raw_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"folder of raw files {self.raw_dir}: {error}", "it must be writable") from error
        if not os.access(self.raw_dir, os.W_OK):
            raise StorageError(f"folder of raw files {self.raw_dir}", "it must be writable", "set data_dir")
        needed = num_bytes + SPARE_BYTES
        free = shutil.disk_usage(self.raw_dir).free
        if free < needed:
            raise StorageError(
                f"{self.raw_dir} has {free / 1e9:.2f} GB free",
                f"the scan needs {needed / 1e9:.2f} GB",
                "free some space or set data_dir to another disk",
            )

    def open(self, num_frames: int) -> Path:
        """Open a new file for ``num_frames`` rows and return its path on this machine.

        Raises
        ------
        StorageError
            The detector's machine does not see the folder or cannot write there.
        """
        plugin, timeout_s = self.plugin, self.open_timeout_s
        self.close()
        name = f"{self.name}_{time.strftime('%Y%m%d_%H%M%S')}_{uuid.uuid4().hex[:8]}"
        folder = self.ioc_raw_dir or str(self.raw_dir.absolute())
        put_and_wait(plugin.create_directory, -5)
        put_and_wait(plugin.file_path, folder.rstrip("/") + "/", timeout_s)
        if not plugin.file_path_exists.get(use_monitor=False):
            raise StorageError(
                f"{plugin.prefix}FilePath {folder}",
                "it does not exist on the detector's machine",
                "check that both machines see data_dir, or state ioc_raw_dir",
            )
        put_and_wait(plugin.file_name, name)
        put_and_wait(plugin.file_template, "%s%s.h5")
        put_and_wait(plugin.auto_increment, 0)
        put_and_wait(plugin.file_write_mode, "Stream")
        put_and_wait(plugin.swmr_mode, 1)
        put_and_wait(plugin.lazy_open, int(self.lazy_open))
        put_and_wait(plugin.num_capture, num_frames)
        self._dropped_before = int(plugin.dropped_arrays.get(use_monitor=False))
        plugin.capture.put(1)
        try:
            wait_until(self._is_open, timeout_s, f"{plugin.prefix} opens {folder}/{name}.h5", fault=plugin.fault)
        except HardwareError as error:
            raise StorageError(str(error), "the detector must be able to write", "check the folder and disk") from error
        written = str(plugin.full_file_name.get(as_string=True, use_monitor=False)).rstrip("\0")
        return self.raw_dir / (Path(written).name or f"{name}.h5")

    def _is_open(self) -> bool:
        plugin = self.plugin
        capturing = plugin.capture.get(use_monitor=False) and plugin.num_captured.get(use_monitor=False) == 0
        return bool(capturing and (self.lazy_open or plugin.swmr_active.get(use_monitor=False)))

    def close(self) -> None:
        """End the capture and wait until the file is closed.

        Raises
        ------
        HardwareError
            It is not closed in time.
        """
        require_connection(self.plugin.capture)
        if not self.plugin.capture.get(use_monitor=False):
            return
        self.plugin.capture.put(0)
        wait_until(
            lambda: not self.plugin.capture.get(use_monitor=False),
            self.open_timeout_s,
            f"{self.plugin.prefix} closes its file",
        )

    def wait_for_rows(self, rows: int) -> None:
        """Wait until the file holds ``rows`` rows, dropped ones counted in; a shortfall is logged, not raised."""

        def complete() -> bool:
            dropped = int(self.plugin.dropped_arrays.get(use_monitor=False)) - self._dropped_before
            return int(self.plugin.num_captured.get(use_monitor=False)) + max(dropped, 0) >= rows

        try:
            wait_until(complete, self.flush_timeout_s, f"{self.name}: {rows} rows in the file", fault=self.plugin.fault)
        except HardwareError as error:
            logger.warning("%s", error)
