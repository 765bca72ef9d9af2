"""The detector of a ptychography scan: arming, unique ids, and its file as StreamResource/StreamDatum."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from bluesky.protocols import Status
from event_model.documents import DataKey
from ophyd import Device
from ophyd.areadetector.base import ADComponent as Cpt
from ophyd.utils import DisconnectedError

from ptycho_bluesky.config import DetectorSettings
from ptycho_bluesky.devices._errors import HardwareError
from ptycho_bluesky.devices._waiting import put_and_wait, require_connection, run_in_thread, wait_until
from ptycho_bluesky.devices.acquisition import Acquisition
from ptycho_bluesky.devices.area_detector import ARMED_STATES, DTYPES, SlimCam, SlimHDF5, SlimPva
from ptycho_bluesky.devices.beamline import BeamlineGeometry
from ptycho_bluesky.devices.connection import connect
from ptycho_bluesky.devices.file_writer import FileWriter
from ptycho_bluesky.devices.frame_file import FrameFile, columns
from ptycho_bluesky.devices.records import Action, EventRecord
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import Geometry
from ptycho_bluesky.io.masks import stated_canonical
from ptycho_bluesky.preprocess import Canonical
from ptycho_bluesky.records import Segment

__all__ = ["PtychoDetector"]

logger = logging.getLogger(__name__)


class PtychoDetector(Device):
    """areaDetector with a pvAccess and an HDF5 plugin, one file a run.

    Life of a run: `stage`, `prepare` (exposure, file open for SWMR), then one or more segments, each armed by
    triggering `segment` and ended by triggering `segment_end`; `close_file`, `unstage`. Frames carry the driver's
    counter as unique id; every arming states the mapping from ids to frame indices anew, because drivers may reset the
    counter.

    Parameters
    ----------
    prefix : str
        ``PTY:det1:``.
    name : str
    raw_dir : path
        Folder of the files as this machine sees it; made when missing.
    ioc_raw_dir : path, optional
        The same folder as the detector's machine sees it, when that differs.
    geometry : BeamlineGeometry, optional
    settings : DetectorSettings, optional
        Centre, region of interest and mask, for the start documents of its runs.
    external_trigger, internal_trigger : str
        TriggerMode of the driver for a trigger a frame, and for free exposures.
    lazy_open : bool
        Open the file with the first frame (drivers whose array size is known only then); SWMR cannot be awaited then.
    file_timeout_s, arm_timeout_s, flush_timeout_s : float
        Deadlines: file open, detector armed or idle, last rows in the file.

    Attributes
    ----------
    planned, segment, segment_end : EventRecord
        Contents of the streams ``trajectory``, ``segments`` and ``segment_ends``.
    closing : Action
        Closes the file.
    """

    cam = Cpt(SlimCam, "cam1:", kind="config")
    hdf1 = Cpt(SlimHDF5, "HDF1:", kind="config")
    pva1 = Cpt(SlimPva, "Pva1:", kind="config")

    def __init__(
        self,
        prefix: str,
        *,
        name: str,
        raw_dir: Path,
        ioc_raw_dir: Path | str | None = None,
        geometry: BeamlineGeometry | None = None,
        settings: DetectorSettings | None = None,
        external_trigger: str = "External",
        internal_trigger: str = "Internal",
        lazy_open: bool = False,
        file_timeout_s: float = 10.0,
        arm_timeout_s: float = 10.0,
        flush_timeout_s: float = 10.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(prefix, name=name, **kwargs)
        self.writer = FileWriter(
            self.hdf1,
            name,
            Path(raw_dir),
            None if ioc_raw_dir is None else str(ioc_raw_dir),
            lazy_open=lazy_open,
            open_timeout_s=file_timeout_s,
            flush_timeout_s=flush_timeout_s,
        )
        self.beamline_geometry = geometry
        self.settings = settings or DetectorSettings()
        self.external_trigger, self.internal_trigger = external_trigger, internal_trigger
        self.arm_timeout_s, self.flush_timeout_s = arm_timeout_s, flush_timeout_s
        self.planned = EventRecord("trajectory", {"planned_y_m": list, "planned_x_m": list})
        self.segment = EventRecord(
            "segments",
            {
                "segment_index": int,
                "first_unique_id": int,
                "first_frame_index": int,
                "num_frames": int,
                "pva_channel": str,
                "first_file_row": int,
            },
            on_trigger=lambda: run_in_thread(self.arm, self, f"{self.name} arm"),
        )
        self.segment_end = EventRecord(
            "segment_ends",
            {"segment_index": int, "frames_generated": int, "last_unique_id": int},
            on_trigger=lambda: run_in_thread(self.end_segment, self, f"{self.name} end segment"),
        )
        self.closing = Action(
            f"{name}_closing", lambda: run_in_thread(self.close_file, self, f"{self.name} close file")
        )
        self._lock = threading.RLock()
        self._resting = threading.Event()
        self._resting.set()
        self._acquisition: Acquisition | None = None
        self._file: FrameFile | None = None
        self._segment: Segment | None = None
        self._armed = False
        self._next_frame_index = 0
        self._next_segment_index = 0
        self._last_counter = 0

    @property
    def frame_shape(self) -> tuple[int, int]:
        """(H, W) of a frame."""
        rows = int(self.cam.array_size_y.get(use_monitor=False))
        cols = int(self.cam.array_size_x.get(use_monitor=False))
        if rows < 1 or cols < 1:
            raise InputError(
                f"{self.name}: frames of {rows} x {cols} pixels",
                "the driver states the size once it has taken a frame",
                f"take one frame with {self.cam.prefix}Acquire",
            )
        return rows, cols

    @property
    def dtype_numpy(self) -> str:
        """NumPy dtype of the frames, ``<u2``."""
        data_type = str(self.cam.data_type.get(as_string=True, use_monitor=False))
        if data_type not in DTYPES:
            raise InputError(f"{self.name}: data type {data_type!r}", f"known ones are {', '.join(DTYPES)}")
        return DTYPES[data_type]

    @property
    def channel(self) -> str:
        """PvAccess channel on which the frames are published."""
        return str(self.pva1.pv_name.get(as_string=True, use_monitor=False))

    @property
    def image_key(self) -> str:
        """Data key of the frames."""
        return f"{self.name}_image"

    @property
    def simulated(self) -> bool:
        """Whether the driver calls itself a simulation."""
        words = f"{self.cam.manufacturer.get(use_monitor=False)} {self.cam.model.get(use_monitor=False)}"
        return "sim" in words.lower()

    def canonical(self) -> dict[str, Any]:
        """How its frames become canonical, as calibrated; see `ptycho_bluesky.preprocess.Canonical.from_run`."""
        content = stated_canonical(self.settings, self.frame_shape)
        Canonical.from_run({"canonical": content}, self.frame_shape)  # a crop outside the frame is told before the scan
        return content

    def read_geometry(self) -> Geometry | None:
        """Geometry of the canonical frames as settings or beamline state it, None when unknown."""
        if self.beamline_geometry is None:
            return None
        shape, content = self.frame_shape, self.canonical()
        if content:
            shape = Canonical.from_run({"canonical": content}, shape).shape
        return self.beamline_geometry.read(shape)

    @property
    def stated_pixel_m(self) -> float | None:
        """Pixel at the sample that the settings state for an unknown geometry."""
        return None if self.beamline_geometry is None else self.beamline_geometry.object_pixel_m

    @property
    def hints(self) -> dict[str, Any]:
        """Frames are not plotted as numbers."""
        return {"fields": []}

    def stage(self) -> list[Any]:
        """Stop whatever runs and switch the plugins on.

        Raises
        ------
        UnreachableError
            A process variable does not answer.
        """
        connect(self)
        staged = super().stage()
        self._reset()
        self._stop_acquiring()
        for signal in (self.cam.array_callbacks, self.hdf1.enable_callbacks, self.pva1.enable_callbacks):
            put_and_wait(signal, 1)
        return staged

    def unstage(self) -> list[Any]:
        """Disarm and close the file; what cannot be done (a dead server) is logged."""
        for step in (self._stop_acquiring, self.close_file):
            try:
                step()
            except Exception:  # boundary: the RunEngine unstages what else it can
                logger.exception("%s could not be put to rest", self.name)
        self._reset()
        return super().unstage()

    def _reset(self) -> None:
        self._acquisition = self._file = self._segment = None
        self._armed = False
        self._next_frame_index = self._next_segment_index = 0

    def prepare(self, value: Acquisition) -> Status:
        """Set the exposure and open the run's file; done at once if the same acquisition is prepared already."""
        return run_in_thread(lambda: self.prepare_now(value), self, f"{self.name} prepare")

    def prepare_now(self, value: Acquisition) -> None:
        """`prepare` in the calling thread.

        Raises
        ------
        StorageError
            The folder cannot be written or the disk is too full for the scan.
        HardwareError
            The detector does not follow.
        """
        with self._lock:
            if self._acquisition is value and self._file is not None:
                return
            self.writer.check_room(value.num_frames * self._frame_bytes)
            self._stop_acquiring()
            put_and_wait(self.cam.acquire_time, value.exposure_s)
            put_and_wait(self.cam.acquire_period, value.period_s)
            put_and_wait(self.cam.image_mode, "Multiple")
            put_and_wait(self.cam.trigger_mode, self.external_trigger if value.external else self.internal_trigger)
            path = self.writer.open(value.num_frames)
            self._file = FrameFile(path, self.name, columns(self.frame_shape, self.dtype_numpy))
            self._acquisition = value
            self._next_frame_index = self._next_segment_index = 0

    @property
    def _frame_bytes(self) -> int:
        rows, cols = self.frame_shape
        return rows * cols * np.dtype(self.dtype_numpy).itemsize

    def close_file(self) -> None:
        """End the capture and wait until the file is closed."""
        self.writer.close()

    @property
    def armed(self) -> bool:
        """Whether a segment has begun and not been stopped."""
        return self._armed

    @property
    def next_frame_index(self) -> int:
        """Index of the first frame that no finished segment holds."""
        return self._next_frame_index

    @property
    def current_segment(self) -> Segment | None:
        """The segment that has begun and not ended."""
        return self._segment

    def arm(self) -> None:
        """Begin a segment at `next_frame_index`: take triggers (fly) or state where step exposures start.

        Does nothing when armed; a segment that was stopped before anything heard of it is begun anew.

        Raises
        ------
        HardwareError
            The detector does not arm in time or is in error.
        """
        with self._lock:
            if self._armed:
                return
            if self._segment is not None:
                self._next_segment_index = self._segment.index
            acquisition = self._require_prepared()
            first = self._next_frame_index
            remaining = acquisition.num_frames - first
            if acquisition.external:
                put_and_wait(self.cam.num_images, remaining)
                self.cam.acquire.put(1)
                wait_until(
                    self._takes_triggers, self.arm_timeout_s, f"{self.name} arms", fault=self.cam.lasting_fault()
                )
            else:
                put_and_wait(self.cam.num_images, 1)
            self._begin(int(self.cam.array_counter.get(use_monitor=False)) + 1, first, remaining)

    def _takes_triggers(self) -> bool:
        return bool(self.cam.acquire.get(use_monitor=False)) and (self.cam.fresh_state in ARMED_STATES)

    def _begin(self, first_unique_id: int, first_frame_index: int, num_frames: int) -> None:
        self._segment = Segment(self._next_segment_index, first_unique_id, first_frame_index, num_frames)
        self._next_segment_index += 1
        self._last_counter = first_unique_id - 1
        self._armed = True
        self.segment.put(
            segment_index=self._segment.index,
            first_unique_id=first_unique_id,
            first_frame_index=first_frame_index,
            num_frames=num_frames,
            pva_channel=self.channel,
            first_file_row=int(self.hdf1.num_captured.get(use_monitor=False)),
        )

    def _require_prepared(self) -> Acquisition:
        if self._acquisition is None:
            raise HardwareError(f"{self.name} is not prepared")
        return self._acquisition

    def poll_counter(self) -> int:
        """Frames generated in the current segment so far; kept for when the detector disconnects."""
        if self._segment is None:
            return 0
        if self.cam.array_counter.connected:
            self._last_counter = int(self.cam.array_counter.get(use_monitor=False))
        return self._generated(self._last_counter)

    def _generated(self, counter: int) -> int:
        if self._segment is None:
            return 0
        return max(0, min(counter - self._segment.first_unique_id + 1, self._segment.num_frames))

    def end_segment(self) -> None:
        """Disarm, count what was generated, and wait until it is in the file.

        The record `segment_end` is filled whatever happens, with the last count known.
        """
        with self._lock:
            segment = self._segment
            if segment is None:
                return
            try:
                self._stop_acquiring()
                self._last_counter = int(self.cam.array_counter.get(use_monitor=False))
            finally:
                generated = self._generated(self._last_counter)
                self._segment, self._armed = None, False
                self._next_frame_index = segment.first_frame_index + generated
                self.segment_end.put(
                    segment_index=segment.index,
                    frames_generated=generated,
                    last_unique_id=segment.first_unique_id + generated - 1,
                )
            self.writer.wait_for_rows(self.segment.values["first_file_row"] + generated)

    def _stop_acquiring(self) -> None:
        require_connection(self.cam.acquire)
        if not self.cam.acquire.get(use_monitor=False):
            return
        self.cam.acquire.put(0)
        wait_until(
            lambda: not self.cam.acquire.get(use_monitor=False), self.arm_timeout_s, f"{self.name} stops acquiring"
        )

    def stop(self, *, success: bool = False) -> None:
        """Stop acquiring, once an arming under way is through."""
        with self._lock:
            self._armed = False
            self._stop_acquiring()

    def trigger(self) -> Status:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Expose one frame and wait until its row is in the file (step scans)."""
        self._resting.clear()
        return run_in_thread(self._expose_and_rest, self, f"{self.name} expose")

    def _expose_and_rest(self) -> None:
        try:
            self._expose()
        finally:
            self._resting.set()

    def _expose(self) -> None:
        with self._lock:
            acquisition = self._require_prepared()
            if self._file is None or self._segment is None:
                raise HardwareError(f"{self.name}: no segment has begun")
            rows = int(self.hdf1.num_captured.get(use_monitor=False))
            dropped = int(self.hdf1.dropped_arrays.get(use_monitor=False))
            finished = threading.Event()
            self.cam.acquire.put(1, use_complete=True, callback=lambda **_: finished.set())
            timeout_s = acquisition.exposure_s + acquisition.period_s + self.arm_timeout_s
            wait_until(finished.is_set, timeout_s, f"{self.name} exposes", fault=self.cam.lasting_fault(), poll_s=0.002)
            if reason := self.cam.fault():
                raise HardwareError(f"{self.name}: {reason}")
            wait_until(
                lambda: int(self.hdf1.num_captured.get(use_monitor=False)) > rows,
                self.flush_timeout_s,
                f"{self.name}: the frame reaches the file",
                fault=lambda: self.hdf1.fault() or self._drop_since(dropped),
            )
            self._last_counter = int(self.cam.array_counter.get(use_monitor=False))

    def _drop_since(self, dropped: int) -> str:
        now = int(self.hdf1.dropped_arrays.get(use_monitor=False))
        return "the file plugin dropped it" if now > dropped else ""

    def finish_exposure(self, timeout_s: float | None = None) -> None:
        """Wait until an exposure under way is over and in the file."""
        acquisition = self._acquisition
        if timeout_s is None:
            timeout_s = self.arm_timeout_s + self.flush_timeout_s + (acquisition.exposure_s if acquisition else 0.0)
        if not self._resting.wait(timeout_s):
            raise HardwareError(f"{self.name}: the exposure is not over within {timeout_s:g} s")

    @property
    def counter_was_reset(self) -> bool:
        """Whether the last frame's id does not continue the segment's (the driver reset its counter)."""
        if self._segment is None or self._file is None:
            return False
        exposed = self._exposed()
        return exposed > 0 and self._last_counter != self._segment.first_unique_id + exposed - 1

    def _exposed(self) -> int:
        return int(self.hdf1.num_captured.get(use_monitor=False)) - self.segment.values["first_file_row"]

    def split_segment(self) -> None:
        """End the segment before the last frame and begin another one with it (`counter_was_reset`).

        Fills `segment_end` and `segment`; no hardware moves.
        """
        with self._lock:
            old = self._segment
            if old is None:
                raise HardwareError(f"{self.name}: no segment has begun")
            before = self._exposed() - 1
            self.segment_end.put(
                segment_index=old.index, frames_generated=before, last_unique_id=old.first_unique_id + before - 1
            )
            counter, frame_index = self._last_counter, old.first_frame_index + before
            self._begin(counter, frame_index, old.num_frames - before)
            self._last_counter = counter
            self.segment.put(**(self.segment.values | {"first_file_row": self.segment.values["first_file_row"] - 1}))

    def describe(self) -> dict[str, DataKey]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Frames and their columns as external data; no process variable is read in an event."""
        source = f"PV:{self.hdf1.prefix}"
        return {
            f"{self.name}_{column.suffix}": column.data_key(source)
            for column in columns(self.frame_shape, self.dtype_numpy)
        }

    def describe_collect(self) -> dict[str, DataKey]:
        """Same keys as `describe`."""
        return self.describe()

    def read(self) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Nothing: the frames are in the file."""
        return {}

    def get_index(self) -> int:
        """Rows that can be read from the file."""
        if self._file is None:
            return 0
        try:
            require_connection(self.hdf1.num_captured)
            return int(self.hdf1.num_captured.get(use_monitor=False))
        except (HardwareError, TimeoutError, DisconnectedError) as error:
            logger.warning("%s: rows of the file are not known: %s", self.name, error)
            return self._file.rows_announced

    def collect_asset_docs(self, index: int | None = None) -> Iterator[tuple[str, Any]]:
        """StreamResource and StreamDatum documents of rows not announced yet.

        Parameters
        ----------
        index : int, optional
            Announce rows up to this one at most.
        """
        if self._file is None:
            return
        rows = self.get_index()
        yield from self._file.documents(rows if index is None else min(rows, index))

    @property
    def file_path(self) -> Path | None:
        """File of the run, None before it is opened."""
        return None if self._file is None else self._file.path
