"""Step scans: move, expose, read; the documents of a fly scan beside an event a point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bluesky import plan_stubs as bps
from bluesky.protocols import Readable
from bluesky.utils import MsgGenerator
from numpy.typing import ArrayLike

from ptycho_bluesky.devices import Acquisition, PtychoDetector, SampleStage, Shutter, connect
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.plans.points import ScanPoints, listed_points, spiral_points
from ptycho_bluesky.plans.run import ptycho_run
from ptycho_bluesky.plans.start import ScanOptions, start_metadata
from ptycho_bluesky.plans.stubs import PauseGuard, emit, set_shutter

__all__ = ["spiral_ptycho", "step_ptycho"]


def spiral_ptycho(
    detector: PtychoDetector,
    stage: SampleStage,
    *,
    num_points: int | None = None,
    extent_m: float | tuple[float, float] | None = None,
    step_m: float | None = None,
    overlap: float | None = None,
    beam_m: float | None = None,
    centre_m: tuple[float, float] = (0.0, 0.0),
    exposure_s: float = 0.1,
    shutter: Shutter | None = None,
    baseline: Sequence[Readable] = (),
    purpose: str = "train",
    object_pixel_m: float | None = None,
    md: Mapping[str, Any] | None = None,
) -> MsgGenerator[str]:
    """Step through a spiral.

    Parameters
    ----------
    detector : PtychoDetector
    stage : SampleStage
    num_points, extent_m, step_m, overlap, beam_m, centre_m
        See `ptycho_bluesky.plans.points.spiral_points`; metres.
    exposure_s : float
        Exposure of each frame.
    shutter : Shutter, optional
        Open only while frames are taken.
    baseline : sequence of Readable
        Read before and after (a session adds its own).
    purpose : str
        ``train``; ``reserved`` or ``test`` for runs that never train.
    object_pixel_m : float, optional
        Nominal pixel at the sample where the geometry is unknown.
    md : mapping, optional
        Added to the start document.

    Returns
    -------
    str
        Uid of the run.

    Raises
    ------
    InputError, UnreachableError, StorageError
        As `ptycho_bluesky.plans.fly_spiral_ptycho`, before anything moves.
    HardwareError
        The detector failed, or a frame did not reach the file; the hardware is safe and the run readable.

    Notes
    -----
    A pause waits for the exposure under way, so that every row of the file belongs to one event. A driver that resets
    its counter at each exposure begins a new segment at each; its ``segments`` event then follows the exposure.

    Examples
    --------
    >>> RE(spiral_ptycho(detector, stage, num_points=50, step_m=100e-9, shutter=shutter))  # doctest: +SKIP
    """
    points = spiral_points(
        num_points=num_points, extent_m=extent_m, step_m=step_m, overlap=overlap, beam_m=beam_m, centre_m=centre_m
    )
    options = ScanOptions(exposure_s, None, shutter, baseline, purpose, object_pixel_m, md)
    return (yield from _step("spiral_ptycho", detector, stage, points, options))


def step_ptycho(
    detector: PtychoDetector,
    stage: SampleStage,
    position_m: ArrayLike,
    *,
    pattern: str = "list",
    beam_m: float | None = None,
    exposure_s: float = 0.1,
    shutter: Shutter | None = None,
    baseline: Sequence[Readable] = (),
    purpose: str = "train",
    object_pixel_m: float | None = None,
    md: Mapping[str, Any] | None = None,
) -> MsgGenerator[str]:
    """Step through given points.

    Parameters
    ----------
    detector, stage, exposure_s, shutter, baseline, purpose, object_pixel_m, md
        As in `spiral_ptycho`.
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
    options = ScanOptions(exposure_s, None, shutter, baseline, purpose, object_pixel_m, md)
    return (yield from _step("step_ptycho", detector, stage, points, options))


def _step(
    plan_name: str, detector: PtychoDetector, stage: SampleStage, points: ScanPoints, options: ScanOptions
) -> MsgGenerator[str]:
    exposure_s, shutter = options.exposure_s, options.shutter
    if not exposure_s > 0:
        raise InputError(f"exposure_s = {exposure_s}", "it must be positive")
    connect(detector, stage, *([] if shutter is None else [shutter]))
    stage.check_positions(points.position_m)
    metadata = start_metadata(
        plan_name,
        {**points.metadata, "exposure_s": exposure_s, "purpose": options.purpose},
        detector,
        stage,
        points,
        options,
        dimensions=[[[stage.y.name, stage.x.name], "primary"]],
    )
    acquisition = Acquisition(len(points), exposure_s, exposure_s, external=False)
    guard = PauseGuard(detector.finish_exposure, stage, shutter, reopen=True)

    detector.planned.put(planned_y_m=points.position_m[:, 0], planned_x_m=points.position_m[:, 1])
    return (
        yield from ptycho_run(
            detector,
            acquisition,
            detector,
            declare_primary=lambda: bps.declare_stream(detector, *stage.axes, name="primary"),
            body=lambda: _expose_all(detector, stage, points, shutter, guard),
            collect=bps.null,
            guard=guard,
            shutter=shutter,
            baseline=options.baseline,
            metadata=metadata,
        )
    )


def _expose_all(
    detector: PtychoDetector, stage: SampleStage, points: ScanPoints, shutter: Shutter | None, guard: PauseGuard
) -> MsgGenerator[None]:
    motor_y, motor_x = stage.axes
    yield from bps.checkpoint()
    yield from bps.trigger(detector.segment, wait=True)
    yield from emit(detector.segment)
    yield from bps.checkpoint()
    yield from set_shutter(shutter, "open")
    for position in points.position_m:
        yield from bps.checkpoint()
        guard.replay_allowed = True
        y, x = stage.to_motor(position)
        yield from bps.mv(motor_y, y, motor_x, x)
        # Once exposed, a frame has its row in the file: the point must not be repeated on resume.
        guard.replay_allowed = False
        status = yield from bps.trigger(detector, wait=True)
        if status is not None and detector.counter_was_reset:
            detector.split_segment()
            yield from emit(detector.segment_end)
            yield from emit(detector.segment)
        yield from bps.create(name="primary")
        for device in (detector, motor_y, motor_x):
            yield from bps.read(device)
        yield from bps.save()
