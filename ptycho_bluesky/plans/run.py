"""What both kinds of scan have in common: one run, prepared before it opens, cleaned up before it closes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bluesky import plan_stubs as bps
from bluesky import preprocessors as bpp
from bluesky.protocols import Readable
from bluesky.utils import MsgGenerator

from ptycho_bluesky.devices import PtychoDetector, Shutter
from ptycho_bluesky.plans.baseline import baseline_wrapper
from ptycho_bluesky.plans.stubs import (
    PauseGuard,
    attempt,
    clean_up_done,
    declare,
    emit,
    end_segment,
    register,
    set_shutter,
    unwrap_failure,
)

__all__ = ["ptycho_run"]


def ptycho_run(
    device: Any,
    value: Any,
    detector: PtychoDetector,
    *,
    declare_primary: Callable[[], MsgGenerator[Any]],
    body: Callable[[], MsgGenerator[Any]],
    collect: Callable[[], MsgGenerator[Any]],
    guard: PauseGuard,
    shutter: Shutter | None,
    baseline: Sequence[Readable],
    metadata: Mapping[str, Any],
) -> MsgGenerator[str]:
    """Stage, prepare, run, clean up and unstage.

    Parameters
    ----------
    device : PtychoFlyer or PtychoDetector
        What is staged, prepared with ``value``, and stopped.
    value : Trajectory or Acquisition
    detector : PtychoDetector
    declare_primary, body, collect : callable
        Plans: declare the stream ``primary``, take every frame, announce the last rows of the file.
    guard : PauseGuard
    shutter : Shutter or None
    baseline : sequence of Readable
    metadata : mapping
        Of the start document.

    Returns
    -------
    str
        Uid of the run.

    Notes
    -----
    Whatever ends the body (success, an abort, a fault of the hardware, a full disk), in this order: exposures are
    stopped, the shutter is closed, the ``segment_ends`` event is out, the file is closed, the run is closed. A step
    that fails is logged and the next one is taken all the same.
    """

    @bpp.run_decorator(md=dict(metadata))
    def run() -> MsgGenerator[None]:
        yield from declare(detector)
        yield from declare_primary()
        yield from bps.checkpoint()
        yield from emit(detector.planned)
        # unwrapped in here as well: the stop document states the reason
        yield from unwrap_failure(bpp.finalize_wrapper(body(), clean_up))

    def clean_up() -> MsgGenerator[None]:
        guard.replay_allowed = False
        yield from attempt(bps.sleep(0), "")  # a status that failed meanwhile strikes here, not in a step below
        yield from attempt(bps.stop(device), "stopping the exposures")
        yield from attempt(set_shutter(shutter, "closed"), "closing the shutter")
        yield from attempt(end_segment(detector, collect), "ending the segment")
        yield from attempt(bps.trigger(detector.closing, wait=True), "closing the file")
        yield from attempt(clean_up_done(guard), "checkpoint")

    def scan() -> MsgGenerator[Any]:
        yield from register(guard)
        yield from bps.checkpoint()
        yield from bps.prepare(device, value, wait=True)
        return (yield from baseline_wrapper(run(), baseline))

    staged = [device] if shutter is None else [device, shutter]
    return (yield from unwrap_failure(bpp.stage_wrapper(scan(), staged)))
