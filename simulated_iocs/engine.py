"""The detector without its control layer: what arming, a trigger and an error do."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from simulated_iocs.clock import FrameClock
from simulated_iocs.faults import Faults
from simulated_iocs.frames import Frame, FrameSet

__all__ = ["DetectorEngine", "DetectorState", "Status"]

logger = logging.getLogger(__name__)

DIE_EXIT_CODE = 70


class DetectorState(IntEnum):
    """areaDetector's DetectorState_RBV."""

    Idle = 0
    Acquire = 1
    Readout = 2
    Correct = 3
    Saving = 4
    Aborting = 5
    Error = 6
    Waiting = 7
    Initializing = 8
    Disconnected = 9
    Aborted = 10


class Plugin(Protocol):
    """What gets the frames; it must return at once."""

    def __call__(self, frame: Frame) -> None:
        """Take a frame."""
        ...


@dataclass(frozen=True)
class Status:
    """One consistent look at the detector."""

    state: DetectorState
    acquiring: bool
    num_images: int
    unique_id: int
    message: str


class DetectorEngine:
    """Counts, numbers and stamps frames and hands them to its plugins.

    Parameters
    ----------
    plugins : list of callable
        Called with each `Frame` in the clock's thread.
    faults : Faults
    shutter_is_open : callable
        Asked for every frame.
    on_change : callable
        Called, in whatever thread, when the state changes (not for every frame).

    Notes
    -----
    Triggers come from one clock at a time. Arming and disarming come from the control layer; a lock keeps the
    counters of one acquisition consistent.
    """

    def __init__(
        self,
        plugins: list[Plugin],
        faults: Faults,
        shutter_is_open: Callable[[], bool],
        on_change: Callable[[], None],
    ) -> None:
        self._plugins, self._faults = plugins, faults
        self._shutter_is_open, self._on_change = shutter_is_open, on_change
        self._lock = threading.RLock()
        self._clock: FrameClock | None = None
        self._state = DetectorState.Idle
        self._message = "Idle"
        self._acquiring = False
        self._wanted = 0
        self._count = 0
        self._unique_id = 0
        self.callbacks_enabled = True
        self.last_i0 = float("nan")

    def status(self) -> Status:
        """State and counters at one instant."""
        with self._lock:
            return Status(self._state, self._acquiring, self._count, self._unique_id, self._message)

    def set_counter(self, value: int) -> None:
        """Set the unique id after which the next frame is numbered."""
        with self._lock:
            self._unique_id = value

    def arm(self, num_images: int, *, reset_ids: bool = False, message: str = "Waiting for triggers") -> None:
        """Take triggers until ``num_images`` frames were made (0: without end)."""
        with self._lock:
            self._wanted, self._count = num_images, 0
            if reset_ids:
                self._unique_id = 0
            self._acquiring = True
            self._state, self._message = DetectorState.Acquire, message
        self._on_change()

    def disarm(self) -> None:
        """Take no more triggers; an exposure that is under way is thrown away."""
        clock = self._clock
        if clock is not None:
            clock.break_off()
        with self._lock:
            self._acquiring = False
            if self._state is not DetectorState.Error:
                self._state, self._message = DetectorState.Idle, "Acquisition stopped"
        self._on_change()

    def fail(self, reason: str) -> None:
        """Stop with an error."""
        logger.error("detector error: %s", reason)
        with self._lock:
            self._acquiring = False
            self._state, self._message = DetectorState.Error, reason
        self._on_change()

    @property
    def failed(self) -> bool:
        """Whether the detector is in error."""
        return self._state is DetectorState.Error

    def expose(self, frames: FrameSet, period_s: float, *, repeat: bool) -> FrameClock:
        """Trigger itself through the frames (internal trigger), over and over if ``repeat``."""
        rows = range(2**62) if repeat else range(len(frames))
        count = len(frames)
        clock = FrameClock(lambda row: self.trigger(frames, row % count), rows, period_s, self._on_change, self.fail)
        self._clock = clock
        clock.start()
        return clock

    def trigger(self, frames: FrameSet, row: int) -> bool:
        """End of an exposure: make the frame and hand it on.

        Returns
        -------
        bool
            False when the detector has failed; a trigger that it does not wait for is ignored.
        """
        with self._lock:
            if not self._acquiring:
                return not self.failed
            number = self._count + 1
            if self._faults.detector_error_at == number:
                self._faults.detector_error_at = 0
                self.fail(f"simulated error at frame {number}")
                return False
            if self._faults.die_at == number:
                logger.error("simulated death at frame %d", number)
                os._exit(DIE_EXIT_CODE)
            frame = self._make_frame(frames, row)
            self._count, self._unique_id, self.last_i0 = number, frame.unique_id, frame.i0
            # Under the lock, so that nobody sees the acquisition complete before its last frame is handed on.
            if self.callbacks_enabled:
                for plugin in self._plugins:
                    plugin(frame)
            if self._wanted and number >= self._wanted:
                self._acquiring = False
                self._state, self._message = DetectorState.Idle, "Acquisition complete"
            finished = not self._acquiring
        if finished:
            self._on_change()
        return True

    def _make_frame(self, frames: FrameSet, row: int) -> Frame:
        y, x = frames.position_m[row].tolist()
        image = frames.image[row] if self._shutter_is_open() else frames.dark
        return Frame(image, self._unique_id + 1, time.time(), y, x, float(frames.i0[row]))
