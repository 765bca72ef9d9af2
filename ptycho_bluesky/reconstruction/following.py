"""A reconstruction that keeps up with a scan: frames are taken as they come, an image is there long before the end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.reconstruction.growing import GrowingReconstruction
from ptycho_bluesky.reconstruction.options import EngineOptions, PieOptions
from ptycho_bluesky.reconstruction.prepare import torch_threads
from ptycho_bluesky.reconstruction.starting_probe import starting_probe
from ptycho_bluesky.records import Measurement, Reconstruction

__all__ = ["FollowOptions", "FrameSource", "Progress", "follow"]

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, float], None]
"""Called with frames taken, frame-updates done, and the diffraction error."""


class FrameSource(Protocol):
    """Gives what has come since the last call; `ptycho_bluesky.io.GrowingFile` is one."""

    ended: bool

    def new(self) -> Measurement | None:
        """New frames, None where there are none."""
        ...


@dataclass(frozen=True)
class FollowOptions:
    """How a scan is followed.

    Attributes
    ----------
    first_frames : int
        Frames in which the starting probe is looked for; before them there is no image.
    image_period_s : float
        Time between two images.
    patience_s : float
        The scan counts as over when, after its first frames, nothing has come for so long, though its file was not
        closed. Its first frames are waited for without end.
    look_period_s : float
        Time that is worked, or waited, between two looks for new frames.
    """

    first_frames: int = 32
    image_period_s: float = 5.0
    patience_s: float = 60.0
    look_period_s: float = 0.5

    def __post_init__(self) -> None:
        if self.first_frames < 2:
            raise InputError(f"first_frames = {self.first_frames}", "a probe is looked for in at least two frames")
        for name in ("patience_s", "look_period_s"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} = {getattr(self, name)}", "it is positive")


def follow(
    source: FrameSource,
    options: EngineOptions,
    how: FollowOptions | None = None,
    *,
    probe: Any = None,
    show: Callable[[Reconstruction], None] = lambda result: None,
    progress: Progress = lambda frames, updates, error: None,
    stop: threading.Event | None = None,
) -> Reconstruction:
    """Reconstruct a scan while it is measured.

    Parameters
    ----------
    source : FrameSource
        Read until it has ended.
    options : PieOptions
        ``iterations`` is how often each frame is used in the end, the share ``settle_fraction`` of it when all are
        there. No frame is left out for validation, and positions are not refined.
    how : FollowOptions, optional
    probe : ndarray of complex, shape (N, N) or (modes, N, N), optional
        Starting probe; by default it is looked for in the first frames (`starting_probe`).
    show : callable, optional
        Called with the image so far, now and then.
    progress : callable, optional
        Called after each piece of work.
    stop : Event, optional
        When it is set, what is there is given back without the passes that are left.

    Returns
    -------
    Reconstruction
        Of all frames; ``provenance["first_image_frames"]`` is the number of frames of the first image shown,
        ``provenance["stopped"]`` whether it was stopped before its end.

    Raises
    ------
    InputError
        The engine takes no frames while it runs, the options ask for what needs the whole scan or a GPU, or the scan
        ended before it had two frames.
    """
    if not isinstance(options, PieOptions):
        raise InputError(
            f"engine {options.engine}", "only epie and rpie take frames while they run", "choose one of them"
        )
    asked = {"correct_positions": options.correct_positions, f"device={options.device}": options.device != "cpu"}
    if any(asked.values()):
        raise InputError(
            f"{', '.join(name for name, wanted in asked.items() if wanted)} for a scan that is followed",
            "it is worked on by the CPU, at the measured positions",
            "leave these out, and reconstruct it again when it is over",
        )
    with torch_threads(1):
        return _Following(source, options, how or FollowOptions(), show, progress, stop or threading.Event()).run(probe)


class _Following:
    def __init__(
        self,
        source: FrameSource,
        options: PieOptions,
        how: FollowOptions,
        show: Callable[[Reconstruction], None],
        progress: Progress,
        stop: threading.Event,
    ) -> None:
        self._source, self._options, self._how = source, options, how
        self._show, self._progress, self._stop = show, progress, stop
        self._stopped = False
        self._began_s = time.time()
        self._heard = np.inf
        self._shown = -np.inf
        self._updates = 0
        self._errors: list[float] = []
        self._first_image_frames = 0

    def run(self, probe: Any) -> Reconstruction:
        first = self._wait_for_first()
        chosen = self._options.model_copy(update={"holdout_fraction": 0.0})
        start = starting_probe(first, chosen, probe=probe)
        engine = GrowingReconstruction(start.wave, first.step_px_m, chosen, first.mask)
        self._take(engine, first)
        while not self._over():
            new = self._look()
            if new is not None:
                self._take(engine, new)
            self._work(engine)
            self._image(engine, first)
        self._complete(engine)
        return self._result(engine, first, start.source)

    def _wait_for_first(self) -> Measurement:
        parts: list[Measurement] = []
        while sum(map(len, parts)) < self._how.first_frames and not self._over():
            new = self._look()
            if new is None:
                self._stop.wait(self._how.look_period_s)
            else:
                parts.append(new)
        if sum(map(len, parts)) < 2:
            raise InputError(
                f"a scan that ended with {sum(map(len, parts))} frames", "an image needs several", "look at its file"
            )
        return _joined(parts)

    def _look(self) -> Measurement | None:
        new = self._source.new()
        if new is not None:
            self._heard = time.monotonic()
        return new

    def _over(self) -> bool:
        if self._source.ended or self._stop.is_set():
            return True
        silent_s = time.monotonic() - self._heard
        if silent_s > self._how.patience_s:
            logger.warning("no frame for %.0f s: the scan counts as over, though its file was not closed", silent_s)
            return True
        return False

    def _take(self, engine: GrowingReconstruction, new: Measurement) -> None:
        engine.append(np.asarray(new.image), new.position_m, new.i0)

    def _settled_passes(self) -> int:
        return round(self._options.iterations * self._options.settle_fraction)

    def _left(self, engine: GrowingReconstruction) -> int:
        """Frame-updates that may still be spent on the frames that are there."""
        return (self._options.iterations - self._settled_passes()) * len(engine) - self._updates

    def _work(self, engine: GrowingReconstruction) -> None:
        """Work until the next look, or wait where what is there has been worked on enough."""
        until = time.monotonic() + self._how.look_period_s
        while time.monotonic() < until and self._left(engine) > 0 and not self._stop.is_set():
            self._spend(engine, min(self._left(engine), self._options.batch_size))
        self._stop.wait(max(0.0, until - time.monotonic()))

    def _spend(self, engine: GrowingReconstruction, updates: int) -> None:
        engine.work(updates)
        self._updates += updates

    def _image(self, engine: GrowingReconstruction, first: Measurement) -> None:
        if not len(engine) or not self._updates:
            return
        if time.monotonic() - self._shown >= self._how.image_period_s:
            self._errors.append(engine.error())
            self._first_image_frames = self._first_image_frames or len(engine)
            self._show(self._result(engine, first, ""))
            self._shown = time.monotonic()
        self._progress(len(engine), self._updates, self._errors[-1] if self._errors else float("nan"))

    def _complete(self, engine: GrowingReconstruction) -> None:
        """What is left of the passes, the last ones with steps that shrink."""
        while self._left(engine) > 0 and not self._stop.is_set():
            self._spend(engine, min(self._left(engine), len(engine)))
            self._errors.append(engine.error())
            self._progress(len(engine), self._updates, self._errors[-1])
        if self._stop.is_set():
            self._stopped = True
            logger.warning("stopped: the image of %d frames as it is, without the passes that are left", len(engine))
            return
        engine.finish(self._settled_passes())
        self._updates += self._settled_passes() * len(engine)
        self._errors.append(engine.error())
        self._progress(len(engine), self._updates, self._errors[-1])

    def _result(self, engine: GrowingReconstruction, first: Measurement, source: str) -> Reconstruction:
        result = engine.result()
        provenance = {
            **result.provenance,
            "started_s": self._began_s,
            "duration_s": time.time() - self._began_s,
            "probe_start": source,
            "frames_used": engine.frames.tolist(),
            "frames_held_out": [],
            "frame_updates": self._updates,
            "first_image_frames": self._first_image_frames,
            "followed": True,
            "stopped": self._stopped,
            "pixel_size_known": first.pixel_size_m is not None,
        }
        return replace(
            result,
            error=np.array(self._errors or [engine.error()]),
            geometry=first.geometry,
            run_uid=first.run_uid,
            provenance=provenance,
        )


def _joined(parts: list[Measurement]) -> Measurement:
    """The first pieces of a scan as one."""
    columns: dict[str, Any] = {
        name: np.concatenate([np.asarray(getattr(part, name)) for part in parts])
        for name in ("image", "position_m", "unique_id", "timestamp_s", "i0")
    }
    return replace(parts[0], frame_index=np.arange(len(columns["image"])), **columns)
