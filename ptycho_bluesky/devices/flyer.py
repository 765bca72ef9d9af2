"""A fly scan as one Bluesky device: trajectory controller and detector together."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from bluesky.protocols import Status
from event_model.documents import DataKey

from ptycho_bluesky.devices._errors import HardwareError
from ptycho_bluesky.devices._waiting import run_in_thread, wait_until
from ptycho_bluesky.devices.acquisition import Acquisition
from ptycho_bluesky.devices.connection import connect
from ptycho_bluesky.devices.detector import PtychoDetector
from ptycho_bluesky.devices.records import EventRecord
from ptycho_bluesky.devices.trajectory import Trajectory, TrajectoryController

__all__ = ["PtychoFlyer"]

logger = logging.getLogger(__name__)

WATCH_PERIOD_S = 0.02
"""Period at which `PtychoFlyer.complete` looks at the hardware."""


class PtychoFlyer:
    """Preparable, Flyable, Collectable; writes StreamResource and StreamDatum documents.

    Life of a run: `stage`; `prepare` with a `Trajectory` (triggers computed, exposure set, file open); then segments:
    trigger `segment` (detector armed, unique ids stated), `kickoff`, `complete`, trigger `segment_end`. `halt_motion`
    ends a segment early; the next one starts at `next_frame_index`. At last trigger `detector.closing`, and `unstage`.

    Parameters
    ----------
    detector : PtychoDetector
    controller : TrajectoryController
    name : str
    stall_s : float
        `complete` fails when neither point nor frame advances for this long (beside ten periods).

    Notes
    -----
    `complete` watches in a thread of its own: it ends when the trajectory is done and the detector idle, and also when
    the trajectory is aborted (a pause); it fails on a fault of the controller, an error of the detector or its file
    plugin, a disconnection, or a stall.
    """

    parent = None

    def __init__(
        self, detector: PtychoDetector, controller: TrajectoryController, *, name: str = "flyer", stall_s: float = 15.0
    ) -> None:
        self.name = name
        self.detector, self.controller = detector, controller
        self.stall_s = stall_s
        self.trajectory: Trajectory | None = None
        self._lock = threading.RLock()
        self._halted = threading.Event()

    @property
    def devices(self) -> tuple[Any, ...]:
        """Devices that it is made of."""
        return self.detector, self.controller

    @property
    def planned(self) -> EventRecord:
        """Content of the stream ``trajectory``."""
        return self.detector.planned

    @property
    def segment(self) -> EventRecord:
        """Content of the stream ``segments``; triggering it arms the detector."""
        return self.detector.segment

    @property
    def segment_end(self) -> EventRecord:
        """Content of the stream ``segment_ends``; triggering it disarms the detector."""
        return self.detector.segment_end

    @property
    def armed(self) -> bool:
        """Whether the detector takes triggers."""
        return self.detector.armed

    @property
    def next_frame_index(self) -> int:
        """First frame that no finished segment holds."""
        return self.detector.next_frame_index

    @property
    def hints(self) -> dict[str, Any]:
        """Frames are not plotted as numbers."""
        return {"fields": []}

    def stage(self) -> list[Any]:
        """Connect, stop what runs, switch the plugins on.

        Raises
        ------
        UnreachableError
            A process variable does not answer.
        """
        connect(self)
        self.trajectory = None
        self.controller.halt()
        self.detector.stage()
        return [self]

    def unstage(self) -> list[Any]:
        """Stop the trajectory, disarm, close the file."""
        try:
            self.controller.halt()
        except Exception:  # boundary: the detector is unstaged all the same
            logger.exception("%s could not be stopped", self.controller.name)
        self.detector.unstage()
        self.trajectory = None
        return [self]

    def prepare(self, value: Trajectory) -> Status:
        """Build the trajectory and open the file; done at once if the same one is prepared already."""
        return run_in_thread(lambda: self._prepare(value), self, f"{self.name} prepare")

    def _prepare(self, value: Trajectory) -> None:
        with self._lock:
            if self.trajectory is value:
                return
            self.trajectory = None
            self.planned.put(planned_y_m=value.position_m[:, 0], planned_x_m=value.position_m[:, 1])
            # the exposure is set first: the simulated controller renders with it
            self.detector.prepare_now(Acquisition(len(value), value.exposure_s, value.period_s, external=True))
            self.controller.load(value)
            self.trajectory = value

    def kickoff(self) -> Status:
        """Start the trajectory at the segment's first frame."""
        segment = self.detector.current_segment
        if segment is None or not self.detector.armed:
            raise HardwareError(f"{self.name}: the detector is not armed")
        self._halted.clear()
        return run_in_thread(lambda: self._start(segment.first_frame_index), self, f"{self.name} kickoff")

    def _start(self, index: int) -> None:
        # the lock keeps a pause from looking at the controller between its start and its first report of running
        with self._lock:
            if self.detector.armed:
                self.controller.run_from(index)

    def complete(self) -> Status:
        """Return the status of the flight; see the notes of the class."""
        return run_in_thread(self._watch, self, f"{self.name} complete")

    def _watch(self) -> None:
        detector, controller = self.detector, self.controller
        trajectory = self.trajectory
        if trajectory is None:
            raise HardwareError(f"{self.name} is not prepared")
        patience_s = self.stall_s + 10 * trajectory.period_s
        progress: tuple[Any, ...] = ()
        last_change = time.monotonic()
        while not self._halted.is_set():
            for reason in (controller.fault(), detector.cam.fault(), detector.hdf1.fault()):
                if reason:
                    raise HardwareError(f"{self.name}: {reason}")
            state = controller.fresh_state
            if state == "Aborted":
                return
            if state == "Done":
                self._wait_for_last_frames()
                return
            now = (detector.poll_counter(), int(controller.index.get(use_monitor=False)), state)
            if now != progress:
                progress, last_change = now, time.monotonic()
            elif time.monotonic() - last_change > patience_s:
                where = f"frame {now[0]}, point {now[1]}, controller {state}, detector {detector.cam.fresh_state}"
                raise HardwareError(f"{self.name}: no progress for {patience_s:.0f} s ({where})")
            time.sleep(WATCH_PERIOD_S)

    def _wait_for_last_frames(self) -> None:
        """All triggers are out: the detector goes idle by itself, unless it missed some."""
        try:
            wait_until(
                lambda: self._halted.is_set() or not self.detector.cam.acquire.get(use_monitor=False),
                self.stall_s,
                f"{self.detector.name} finishes",
                fault=self.detector.cam.fault,
            )
        except HardwareError as error:
            if reason := self.detector.cam.fault():
                raise HardwareError(f"{self.detector.name}: {reason}") from error
            logger.warning("%s: triggers were missed, the segment ends short", error)

    def halt_motion(self) -> None:
        """Stop triggering, then disarm the detector; the order keeps dark frames out of the file."""
        with self._lock:
            try:
                self.controller.halt()
            finally:
                self._halted.set()
                self.detector.stop()

    def stop(self, success: bool = True) -> None:
        """Same as `halt_motion`."""
        self.halt_motion()

    def describe_collect(self) -> dict[str, DataKey]:
        """Keys of the stream ``primary``, all external."""
        return self.detector.describe_collect()

    def get_index(self) -> int:
        """Rows that can be read from the file."""
        return self.detector.get_index()

    def collect_asset_docs(self, index: int | None = None) -> Iterator[tuple[str, Any]]:
        """StreamResource and StreamDatum documents of rows not announced yet."""
        return self.detector.collect_asset_docs(index)

    def read_configuration(self) -> dict[str, Any]:
        """Configuration of detector and controller."""
        return _joined(self.detector.read_configuration(), self.controller.read_configuration())

    def describe_configuration(self) -> dict[str, DataKey]:
        """Data keys of `read_configuration`."""
        return _joined(self.detector.describe_configuration(), self.controller.describe_configuration())


def _joined(*parts: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(key): value for part in parts for key, value in part.items()}
