"""The file plugin: frames into the detector's NeXus file, in a thread of its own, readable while it grows."""

from __future__ import annotations

import logging
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from ptycho_bluesky.errors import InputError, StorageError
from ptycho_bluesky.geometry import Geometry
from ptycho_bluesky.io import area_detector as layout
from simulated_iocs.faults import Dice, Faults
from simulated_iocs.frames import Frame

__all__ = ["FrameFile", "HdfWriter"]

logger = logging.getLogger(__name__)

GATHER_S = 0.02
"""Frames that came within this time are written together."""
FLUSH_S = 0.05
"""Longest time between flushes while frames come."""
MAX_BATCH = 256
CLOSE_TIMEOUT_S = 30.0
FREE_MARGIN_BYTES = 1_000_000
"""Room that a file needs beside its frames, to be closed properly."""
SUPERBLOCK_END_OF_FILE = 28
"""Where superblocks of version 2 and 3 hold the file's size (HDF5 File Format Specification 3.0, §II.A)."""


def free_bytes(folder: Path) -> int:
    """Room for files in a folder.

    Raises
    ------
    StorageError
        There is no such folder.
    """
    try:
        return shutil.disk_usage(folder).free
    except OSError as error:
        raise StorageError(
            f"folder {folder}: {error.strerror}", "it must exist", "create it or set CreateDirectory"
        ) from error


class FrameFile:
    """One file of the detector's layout, open for writing.

    Parameters
    ----------
    path : path
    frame_shape : tuple of int
    dtype : str
    geometry : Geometry or None
    swmr : bool
        Let others read while it grows.

    Raises
    ------
    StorageError
        The file cannot be created.
    """

    def __init__(
        self, path: Path, frame_shape: tuple[int, int], dtype: str, geometry: Geometry | None, *, swmr: bool
    ) -> None:
        self.path, self.rows = path, 0
        try:
            self._file = h5py.File(path, "w", libver="latest")
            self._datasets = layout.create_datasets(self._file, frame_shape, dtype, geometry=geometry)
            if swmr:
                self._file.swmr_mode = True
            self._file.flush()
        except (OSError, RuntimeError) as error:
            raise StorageError(f"file {path}: {error}", "it must be writable", "check folder and free space") from error

    def append(self, frames: list[Frame]) -> None:
        """Append frames; the unique ids are written last, they mark a row as whole."""
        start, stop = self.rows, self.rows + len(frames)
        image = self._datasets["image"]
        image.resize(stop, axis=0)
        for row, frame in enumerate(frames, start):
            # Straight to the file: a chunk is a frame, so HDF5's chunk cache would only copy it.
            image.id.write_direct_chunk((row, 0, 0), frame.image)
        columns = {
            "timestamp_s": [frame.timestamp_s for frame in frames],
            "position_y_m": [frame.position_y_m for frame in frames],
            "position_x_m": [frame.position_x_m for frame in frames],
            "i0": [frame.i0 for frame in frames],
            "unique_id": np.array([frame.unique_id for frame in frames], dtype=np.int64),
        }
        for name, values in columns.items():
            self._datasets[name].resize(stop, axis=0)
            self._datasets[name][start:stop] = values
        self.rows = stop

    def flush(self) -> None:
        """Make every row so far visible to readers."""
        for name in ("image", *layout.COLUMNS, "unique_id"):
            self._datasets[name].flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def mend(self) -> None:
        """After a failed write: make the file as long as it says it is, so that its flushed rows can be read.

        HDF5 allots space before it fills it; a file that ends before it is refused as cut short. The end is a hole,
        which takes no room on a full disk.
        """
        with self.path.open("rb") as stream:
            stream.seek(SUPERBLOCK_END_OF_FILE)
            announced = int.from_bytes(stream.read(8), "little")
        if announced > self.path.stat().st_size:
            os.truncate(self.path, announced)


class HdfWriter:
    """Writes what the detector hands over, without ever holding it up.

    Parameters
    ----------
    frame_shape : tuple of int
    dtype : str
    faults : Faults
    queue_frames : int
        Frames that wait at most; what does not fit is dropped and counted.
    on_change : callable
        Called (in the writer's thread) when a capture ends.
    on_error : callable
        Called with the reason when a frame cannot be written.
    seed : int
        Of the faults' dice.
    free_bytes : callable
        Room for files in a folder.

    Notes
    -----
    `put` is called by the detector's clock alone, `start` and `stop` by the control layer.
    """

    def __init__(
        self,
        frame_shape: tuple[int, int],
        dtype: str,
        faults: Faults,
        *,
        queue_frames: int,
        on_change: Callable[[], None],
        on_error: Callable[[str], None],
        seed: int = 0,
        free_bytes: Callable[[Path], int] = free_bytes,
    ) -> None:
        self._free_bytes = free_bytes
        self._frame_shape, self._dtype, self._faults = frame_shape, dtype, faults
        self._queue_frames, self._on_change, self._on_error = queue_frames, on_change, on_error
        self._queue: queue.Queue[Frame] = queue.Queue(queue_frames)
        self._thread: threading.Thread | None = None
        self._num_capture = self._accepted = 0
        self.enabled = True
        self.capturing = False
        self.open = False
        self.swmr_active = False
        self.captured = 0
        self.received = 0
        self.dropped = 0
        self.error = ""
        self.reseed(seed)

    def reseed(self, seed: int) -> None:
        """Throw the dice anew."""
        self._dice = Dice(seed, 10)

    def start(self, path: Path, geometry: Geometry | None, *, num_capture: int, swmr: bool) -> None:
        """Open a file and capture until `stop`, or until ``num_capture`` frames are in it (0: no end).

        Raises
        ------
        StorageError
            The folder is missing or not writable, or too full for the frames announced.
        InputError
            A capture is on.
        """
        if self.open:
            raise InputError("a capture is on", "one file at a time", "stop it first")
        self._finish_thread()
        self.error = ""
        self._check_room(path.parent, num_capture)
        file = FrameFile(path, self._frame_shape, self._dtype, geometry, swmr=swmr)
        self._queue = queue.Queue(self._queue_frames)
        self._num_capture, self._accepted = num_capture, 0
        self.captured = self.dropped = 0
        self.swmr_active = swmr
        self.capturing = self.open = True
        self._thread = threading.Thread(target=self._work, args=(file,), name="hdf-writer", daemon=True)
        self._thread.start()

    def _check_room(self, folder: Path, num_frames: int) -> None:
        free = self._free_bytes(folder)
        needed = int(num_frames * np.prod(self._frame_shape) * np.dtype(self._dtype).itemsize) + FREE_MARGIN_BYTES
        if needed > free:
            raise StorageError(
                f"folder {folder}: {free / 1e6:.1f} MB free",
                f"{num_frames} frames need {needed / 1e6:.1f} MB",
                "make room or write elsewhere",
            )

    def put(self, frame: Frame) -> None:
        """Take a frame if a capture is on; never waits."""
        if not self.enabled:
            return
        self.received += 1
        if not self.capturing:
            return
        if self._dice.roll(self._faults.hdf_drop):
            self.dropped += 1
            return
        try:
            self._queue.put_nowait(frame)
        except queue.Full:
            self.dropped += 1
            return
        self._accepted += 1
        if self._num_capture and self._accepted >= self._num_capture:
            self.capturing = False

    def stop(self) -> None:
        """Write what waits, close the file."""
        self.capturing = False
        self._finish_thread()

    def _finish_thread(self) -> None:
        if self._thread is None:
            return
        self._thread.join(CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            raise StorageError("the detector's file does not close", f"it should within {CLOSE_TIMEOUT_S:.0f} s")
        self._thread = None
        self.dropped += self._queue.qsize()  # came in the instant between the last look and the end

    def _work(self, file: FrameFile) -> None:
        try:
            self._write_all(file)
        except StorageError as error:
            self._fail(str(error))
        except Exception as error:  # noqa: BLE001  boundary of the thread: whatever h5py raises ends the capture
            self._fail(f"file {file.path}: {error}")
        finally:
            self.capturing = False
            try:
                file.close()
                if self.error:
                    file.mend()
            except (OSError, RuntimeError) as error:
                self._fail(f"file {file.path}: {error}")
            self.swmr_active = self.open = False
            self._on_change()

    def _write_all(self, file: FrameFile) -> None:
        flushed_at = time.monotonic()
        while True:
            ending = not self.capturing  # looked at before the queue: what came until then is in it
            frames = self._gather()
            if frames:
                # Full is found before HDF5 finds it: the file can then still be closed whole.
                self._check_room(file.path.parent, len(frames))
                file.append(frames)
            now = time.monotonic()
            if now - flushed_at >= FLUSH_S or not frames or ending:
                self._flush(file)
                flushed_at = now
            if ending and not frames:
                return
            if len(frames) < MAX_BATCH and not ending:
                time.sleep(GATHER_S)

    def _flush(self, file: FrameFile) -> None:
        if file.rows > self.captured:
            file.flush()
            self.captured = file.rows

    def _gather(self) -> list[Frame]:
        frames: list[Frame] = []
        while len(frames) < MAX_BATCH:
            try:
                frames.append(self._queue.get_nowait())
            except queue.Empty:
                break
        return frames

    def _fail(self, reason: str) -> None:
        if self.error:
            return
        logger.error("the frames can no longer be written: %s", reason)
        self.capturing = False
        self.error = reason
        self._on_error(reason)
