"""Pieces that both kinds of scan are made of; none opens a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from typing import Any

from bluesky import Msg
from bluesky import plan_stubs as bps
from bluesky.utils import FailedStatus, MsgGenerator, NoReplayAllowed, RunEngineControlException

from ptycho_bluesky.devices import EventRecord, PtychoDetector, SampleStage, Shutter

__all__ = [
    "PauseGuard",
    "attempt",
    "clean_up_done",
    "declare",
    "emit",
    "end_segment",
    "register",
    "set_shutter",
    "unwrap_failure",
]

logger = logging.getLogger(__name__)


class PauseGuard:
    """Puts the hardware to rest when the RunEngine pauses, in the right order: triggers first, then the shutter.

    The RunEngine calls `pause` and `resume` of every object that it has seen in a message (`register`), in no
    particular order; that is why one object does it for all.

    Parameters
    ----------
    rest : callable
        Ends the exposures.
    stage : SampleStage
        Its motors, stopped by the RunEngine, have come to rest when the pause begins.
    shutter : Shutter or None
    reopen : bool
        Open the shutter again on resume, if it was open.

    Attributes
    ----------
    replay_allowed : bool
        Whether messages since the last checkpoint may be repeated on resume. Where they may not (a flight has begun, a
        frame has been exposed), the plan goes on behind the message that was interrupted.
    """

    parent = None
    name = "pause_guard"

    def __init__(self, rest: Callable[[], None], stage: SampleStage, shutter: Shutter | None, *, reopen: bool) -> None:
        self._rest, self._stage, self._shutter, self._reopen = rest, stage, shutter, reopen
        self._was_open = False
        self.replay_allowed = True

    def pause(self) -> None:
        """Rest; a failure is logged, the scan finds out when it goes on."""
        try:
            self._rest()
        except Exception:  # boundary to the RunEngine: the shutter is closed all the same
            logger.exception("could not stop the scan for the pause")
        try:
            if self._shutter is not None:
                self._was_open = self._shutter.is_open
                self._shutter.close()
        except Exception:  # boundary to the RunEngine
            logger.exception("could not close the shutter for the pause")
        try:
            self._stage.wait_until_still()
        except Exception:  # boundary to the RunEngine
            logger.exception("the stage did not come to rest for the pause")
        if not self.replay_allowed:
            raise NoReplayAllowed

    def resume(self) -> None:
        """Open the shutter again where the plan will not do so itself."""
        if self._reopen and self._was_open and self._shutter is not None:
            self._shutter.open()
        self._was_open = False


def register(guard: PauseGuard) -> MsgGenerator[None]:
    """Let the RunEngine know the guard."""
    yield Msg("null", guard)


def declare(detector: PtychoDetector) -> MsgGenerator[None]:
    """Declare the streams of the detector's records, before anything cannot be repeated.

    A device that is read for the first time is described first, and a pause may interrupt that: the reading would be
    lost. A declared stream is read in one go.
    """
    for record in (detector.planned, detector.segment, detector.segment_end):
        yield from bps.declare_stream(record, name=record.name)


def clean_up_done(guard: PauseGuard) -> MsgGenerator[None]:
    """Behind the clean-up only readings follow, which may be repeated."""
    yield from bps.checkpoint()
    guard.replay_allowed = True


def emit(record: EventRecord) -> MsgGenerator[None]:
    """Event of the record in the stream of its name."""
    yield from bps.create(name=record.name)
    yield from bps.read(record)
    yield from bps.save()


def end_segment(detector: PtychoDetector, collect: Callable[[], MsgGenerator[Any]]) -> MsgGenerator[None]:
    """Disarm, announce the last rows, emit the ``segment_ends`` event; does nothing when no segment has begun.

    The documents are emitted even if the detector cannot be disarmed (a dead server): the event then holds the last
    count known.

    Parameters
    ----------
    detector : PtychoDetector
    collect : callable
        Plan that announces the rows of the file.
    """
    failure: Exception | None = None
    if detector.current_segment is None:
        return
    while detector.current_segment is not None:  # again, if a pause came before it began
        try:
            status = yield from bps.trigger(detector.segment_end, wait=True)
        except RunEngineControlException:
            raise
        except Exception as error:  # noqa: BLE001  kept until the documents are out
            failure = error
            break
        if status is None:
            return  # the messages are being listed
    yield from attempt(collect(), "announcing the last rows")
    yield from emit(detector.segment_end)
    if failure is not None:
        raise failure


def set_shutter(shutter: Shutter | None, value: str) -> MsgGenerator[None]:
    """Open or close the shutter, if there is one, and wait."""
    if shutter is not None:
        yield from bps.abs_set(shutter, value, wait=True)


def attempt(plan: Generator[Msg, Any, Any], what: str) -> MsgGenerator[None]:
    """Run a step of the clean-up; a failure is logged and the next step runs all the same."""
    try:
        yield from plan
    except RunEngineControlException:
        raise
    except Exception as error:  # noqa: BLE001  clean-up goes on whatever failed
        logger.error("clean-up, %s: %s", what, _reason(error))


def _reason(error: Exception) -> str:
    cause = error.__cause__
    return str(cause) if isinstance(error, FailedStatus) and cause is not None else str(error)


def unwrap_failure(plan: Generator[Msg, Any, Any]) -> MsgGenerator[Any]:
    """Raise what a device reported instead of the `FailedStatus` around it."""
    try:
        return (yield from plan)
    except FailedStatus as error:
        if isinstance(error.__cause__, Exception):
            raise error.__cause__ from error
        raise
