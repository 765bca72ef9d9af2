"""Fly scans: the trajectory controller triggers the detector; documents carry addresses and ranges of frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from bluesky import plan_stubs as bps
from bluesky.protocols import Readable
from bluesky.utils import MsgGenerator, short_uid
from numpy.typing import ArrayLike

from ptycho_bluesky.devices import PtychoFlyer, SampleStage, Shutter, Trajectory, connect
from ptycho_bluesky.plans.points import ScanPoints, listed_points, spiral_points
from ptycho_bluesky.plans.run import ptycho_run
from ptycho_bluesky.plans.start import ScanOptions, start_metadata
from ptycho_bluesky.plans.stubs import PauseGuard, emit, end_segment, set_shutter

__all__ = ["fly_ptycho", "fly_spiral_ptycho"]

FLUSH_PERIOD_S = 0.2


def fly_spiral_ptycho(
    flyer: PtychoFlyer,
    stage: SampleStage,
    *,
    num_points: int | None = None,
    extent_m: float | tuple[float, float] | None = None,
    step_m: float | None = None,
    overlap: float | None = None,
    beam_m: float | None = None,
    centre_m: tuple[float, float] = (0.0, 0.0),
    exposure_s: float = 0.5e-3,
    period_s: float | None = None,
    shutter: Shutter | None = None,
    baseline: Sequence[Readable] = (),
    purpose: str = "train",
    object_pixel_m: float | None = None,
    flush_period_s: float = FLUSH_PERIOD_S,
    md: Mapping[str, Any] | None = None,
) -> MsgGenerator[str]:
    """Fly a spiral.

    Parameters
    ----------
    flyer : PtychoFlyer
        Detector and trajectory controller.
    stage : SampleStage
        Moved to the first point; its limits are checked.
    num_points, extent_m, step_m, overlap, beam_m, centre_m
        See `ptycho_bluesky.plans.points.spiral_points`; metres.
    exposure_s : float
        Exposure of each frame.
    period_s : float, optional
        From frame to frame; by default the exposure.
    shutter : Shutter, optional
        Open only while frames are taken.
    baseline : sequence of Readable
        Read before and after (a session adds its own).
    purpose : str
        ``train``; ``reserved`` or ``test`` for runs that never train.
    object_pixel_m : float, optional
        Nominal pixel at the sample where the geometry is unknown.
    flush_period_s : float
        Period of the documents that announce frames.
    md : mapping, optional
        Added to the start document.

    Returns
    -------
    str
        Uid of the run.

    Raises
    ------
    InputError
        An argument, or a point outside the limits; before anything moves.
    UnreachableError
        A device does not answer; before anything moves.
    StorageError
        The disk cannot hold the scan; before anything moves.
    HardwareError
        Detector or controller failed; the hardware is safe and the run readable.

    Notes
    -----
    A pause ends the present segment: trajectory aborted, detector disarmed, shutter closed. Resuming arms a new segment
    at the next frame, in the same file.

    Examples
    --------
    >>> RE(fly_spiral_ptycho(flyer, stage, num_points=963, step_m=50e-9, shutter=shutter))  # doctest: +SKIP
    """
    points = spiral_points(
        num_points=num_points, extent_m=extent_m, step_m=step_m, overlap=overlap, beam_m=beam_m, centre_m=centre_m
    )
    options = ScanOptions(exposure_s, period_s, shutter, baseline, purpose, object_pixel_m, md)
    return (yield from _fly("fly_spiral_ptycho", flyer, stage, points, options, flush_period_s))


def fly_ptycho(
    flyer: PtychoFlyer,
    stage: SampleStage,
    position_m: ArrayLike,
    *,
    pattern: str = "list",
    beam_m: float | None = None,
    exposure_s: float = 0.5e-3,
    period_s: float | None = None,
    shutter: Shutter | None = None,
    baseline: Sequence[Readable] = (),
    purpose: str = "train",
    object_pixel_m: float | None = None,
    flush_period_s: float = FLUSH_PERIOD_S,
    md: Mapping[str, Any] | None = None,
) -> MsgGenerator[str]:
    """Fly through given points.

    Parameters
    ----------
    flyer, stage, exposure_s, period_s, shutter, baseline, purpose, object_pixel_m, flush_period_s, md
        As in `fly_spiral_ptycho`.
    position_m : array-like, shape (n, 2)
        (y, x) of each frame, in m.
    pattern : str
        Name of the pattern in the start document.
    beam_m : float, optional
        Diameter of the beam, for the start document.

    Returns
    -------
    str
        Uid of the run.
    """
    points = listed_points(position_m, pattern=pattern, beam_m=beam_m)
    options = ScanOptions(exposure_s, period_s, shutter, baseline, purpose, object_pixel_m, md)
    return (yield from _fly("fly_ptycho", flyer, stage, points, options, flush_period_s))


def _fly(
    plan_name: str,
    flyer: PtychoFlyer,
    stage: SampleStage,
    points: ScanPoints,
    asked: ScanOptions,
    flush_period_s: float,
) -> MsgGenerator[str]:
    period_s = asked.exposure_s if asked.period_s is None else asked.period_s
    trajectory = Trajectory(points.position_m, asked.exposure_s, period_s)
    options = replace(asked, period_s=trajectory.period_s)
    shutter, detector = options.shutter, flyer.detector
    connect(flyer, stage, *([] if shutter is None else [shutter]))
    stage.check_positions(points.position_m)
    metadata = start_metadata(
        plan_name,
        {
            **points.metadata,
            "exposure_s": asked.exposure_s,
            "period_s": asked.period_s,
            "purpose": asked.purpose,
        },
        detector,
        stage,
        points,
        options,
        dimensions=[[[f"{detector.name}_position_y_m", f"{detector.name}_position_x_m"], "primary"]],
    )
    guard = PauseGuard(flyer.halt_motion, stage, shutter, reopen=False)

    return (
        yield from ptycho_run(
            flyer,
            trajectory,
            detector,
            # annotated for Readable alone, collectable devices are what it is for with collect=True
            declare_primary=lambda: bps.declare_stream(flyer, name="primary", collect=True),  # pyright: ignore[reportArgumentType]
            body=lambda: _segments(flyer, stage, points, shutter, guard, flush_period_s),
            collect=lambda: bps.collect(flyer, name="primary"),
            guard=guard,
            shutter=shutter,
            baseline=options.baseline,
            metadata=metadata,
        )
    )


def _segments(
    flyer: PtychoFlyer,
    stage: SampleStage,
    points: ScanPoints,
    shutter: Shutter | None,
    guard: PauseGuard,
    flush_period_s: float,
) -> MsgGenerator[None]:
    """Arm and fly until every frame is generated; a pause ends a segment early."""
    while (first := flyer.next_frame_index) < len(points):
        yield from bps.checkpoint()
        guard.replay_allowed = True
        y, x = stage.to_motor(points.position_m[first])
        motor_y, motor_x = stage.axes
        yield from bps.mv(motor_y, y, motor_x, x)
        # From here on nothing is repeated on resume: a pause leaves `armed` false, and the plan goes on behind the
        # message that it interrupted.
        guard.replay_allowed = False
        status = yield from bps.trigger(flyer.segment, wait=True)
        if status is None:
            return  # the messages are being listed, nothing will ever be generated
        if not flyer.armed:
            continue
        yield from emit(flyer.segment)
        yield from set_shutter(shutter, "open")
        if flyer.armed:
            yield from _fly_segment(flyer, flush_period_s)
        yield from set_shutter(shutter, "closed")
        yield from end_segment(flyer.detector, lambda: bps.collect(flyer, name="primary"))


def _fly_segment(flyer: PtychoFlyer, flush_period_s: float) -> MsgGenerator[None]:
    yield from bps.kickoff(flyer, wait=True)
    group = short_uid("complete")
    status = yield from bps.complete(flyer, group=group, wait=False)
    while not status.done:
        finished = yield from bps.wait(group=group, timeout=flush_period_s, error_on_timeout=False)
        if finished and not status.done:  # a pause interrupted the wait, which then forgets its group
            yield from bps.sleep(flush_period_s)
        yield from bps.collect(flyer, name="primary")
        yield from bps.checkpoint()
    yield from bps.wait(group=group)  # a failure is raised behind this message at the latest
