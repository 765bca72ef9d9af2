"""`reconstruct`: one function over every engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ptycho_bluesky._version import __version__
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import ObjectFrame
from ptycho_bluesky.reconstruction.forward import Scan, frame_errors
from ptycho_bluesky.reconstruction.gauge import fix_gauge
from ptycho_bluesky.reconstruction.options import CgOptions, EngineOptions, EpieOptions, PieOptions
from ptycho_bluesky.reconstruction.passes import EngineState, Progress, make_engine, run_passes
from ptycho_bluesky.reconstruction.prepare import Selection, prepare_scan, select_frames, torch_threads
from ptycho_bluesky.reconstruction.starting_probe import starting_probe
from ptycho_bluesky.reconstruction.workers import Alone, Workers
from ptycho_bluesky.records import Measurement, Reconstruction

__all__ = ["EngineState", "Progress", "frame_misfit", "reconstruct"]

MARGIN_PX = 8
"""Pixels of the object around the outermost windows."""


def reconstruct(
    measurement: Measurement,
    options: EngineOptions | None = None,
    *,
    probe: NDArray[Any] | None = None,
    object: NDArray[Any] | None = None,  # noqa: A002 - the field's name of what is reconstructed
    rows: ArrayLike | None = None,
    progress: Progress | None = None,
    resume: EngineState | Path | str | None = None,
    checkpoint: Path | str | None = None,
    workers: Workers | None = None,
) -> Reconstruction:
    """Reconstruct object and probe of a measurement.

    Parameters
    ----------
    measurement : Measurement
    options : EngineOptions, optional
        Their type chooses the engine; `EpieOptions` by default.
    probe : ndarray of complex, shape (N, N) or (modes, N, N), optional
        Starting probe; by default `starting_probe` looks for one.
    object : ndarray of complex, shape (rows, cols), optional
        Starting object on ``ObjectFrame.around(position_m, N, pixel, MARGIN_PX)`` of the frames used and held out, from
        which the frame of the result differs by a fraction of a pixel; 1 by default.
    rows : array-like of int or bool, optional
        Rows of the measurement to use, e.g. those of one area.
    progress : callable, optional
        Called with (passes done, passes in all, error) after each pass; an exception in it ends the reconstruction.
    resume : EngineState or path, optional
        Go on from the state of an interrupted reconstruction of the same measurement with the same options: the result
        is that of one never interrupted.
    checkpoint : path, optional
        Where to write the state after each pass.
    workers : Workers, optional
        Processes that share a conjugate-gradient reconstruction, from `joined_workers`; each calls this function with
        the same arguments and gets the whole result.

    Returns
    -------
    Reconstruction
        In the gauge that `ptycho_bluesky.reconstruction.gauge` states. ``provenance`` tells which
        frames (by ``frame_index``) were used and left out, where the probe came from, versions and times.

    Raises
    ------
    InputError
        The measurement cannot be reconstructed: shapes, counts, positions, probe or options are wrong.
    """
    options = options or EpieOptions()
    _check_workers(options, workers, resume, checkpoint)
    with torch_threads(_torch_threads(options)):
        started_s, clock = time.time(), time.perf_counter()
        selection = select_frames(measurement, options, rows)
        # The object holds the windows of the held-out frames too, and stays around them when the gauge shifts it.
        looked_at = np.concatenate([selection.used, selection.held_out])
        size = int(np.shape(measurement.image)[-1])
        frame = ObjectFrame.around(measurement.position_m[looked_at], size, measurement.step_px_m, MARGIN_PX)
        state = EngineState.load(resume) if isinstance(resume, Path | str) else resume
        keep = None if checkpoint is None else lambda now: now.save(checkpoint)
        if state is None:
            start = starting_probe(measurement, options, probe=probe, selection=selection)
            waves = _starting_object(object, frame), start.wave
            source = start.source
        else:
            _check_state(state, options, frame, len(selection.used))
            waves, source = (state.obj, state.probe), "resumed"
        found = _run(measurement, options, selection, frame, waves, workers, progress, state, keep)
        provenance = {
            **_provenance(measurement, selection, source),
            "started_s": started_s,
            "duration_s": time.perf_counter() - clock,
            "passes": len(found.error),
            "held_out_error": found.held_out_error.tolist(),
        }
        measured_m = measurement.position_m[selection.used]
        position_m = frame.to_m(found.position_px) if options.correct_positions else measured_m
        return _finished(measurement, options, frame, position_m, found, provenance)


def _torch_threads(options: EngineOptions) -> int:
    """Threads of torch; on a CPU the ePIE family has threads of its own, each with a part of a batch."""
    return 1 if isinstance(options, PieOptions) and options.device == "cpu" else options.threads


def _run(
    measurement: Measurement,
    options: EngineOptions,
    selection: Selection,
    frame: ObjectFrame,
    waves: tuple[NDArray[Any], NDArray[Any]],
    workers: Workers | None,
    progress: Progress | None,
    state: EngineState | None,
    keep: Callable[[EngineState], None] | None,
) -> EngineState:
    """Run the engine from a starting object and probe."""
    scan = prepare_scan(measurement, selection.used, frame, options)
    measured_px = scan.position_px
    if state is not None:
        scan = scan.moved(state.position_px)
    obj, probe = (torch.from_numpy(np.array(wave)).to(scan.ramp_row) for wave in waves)
    held_out = prepare_scan(measurement, selection.held_out, frame, options) if options.patience else None
    engine = make_engine(scan, obj, probe, options, workers)
    return run_passes(
        engine, options, measured_px=measured_px, held_out=held_out, progress=progress, state=state, keep=keep
    )


def _finished(
    measurement: Measurement,
    options: EngineOptions,
    frame: ObjectFrame,
    position_m: NDArray[np.float64],
    state: EngineState,
    provenance: dict[str, Any],
) -> Reconstruction:
    """The state in the package's gauge."""
    obj, probe, frame = fix_gauge(state.obj, state.probe, frame, position_m)
    kind = np.complex128 if options.dtype == "complex128" else np.complex64
    return Reconstruction(
        object=obj.astype(kind),
        probe=probe.astype(kind),
        position_m=position_m,
        frame=frame,
        error=state.error,
        geometry=measurement.geometry,
        engine=options.engine,
        options=options.model_dump(),
        run_uid=measurement.run_uid,
        provenance=provenance,
    )


def _check_workers(options: EngineOptions, workers: Workers | None, *state: object) -> None:
    """Refuse what several processes cannot do together.

    Raises
    ------
    InputError
        They are asked for it.
    """
    if (workers or Alone()).count == 1:
        return
    if not isinstance(options, CgOptions):
        raise InputError(f"engine {options.engine} by several workers", "only cg divides a scan", "run one a device")
    if options.correct_positions or options.patience or any(item is not None for item in state):
        raise InputError(
            "positions refined, patience, a state to resume or to write, by several workers",
            "each knows its part only",
            "run one worker, or leave these out",
        )


def _check_state(state: EngineState, options: EngineOptions, frame: ObjectFrame, frames: int) -> None:
    """Refuse a state that belongs to another measurement or engine.

    Raises
    ------
    InputError
        It does.
    """
    if state.options.get("engine") != options.engine:
        raise InputError(f"a state of engine {state.options.get('engine')}", f"the engine is {options.engine}")
    if state.obj.shape != frame.shape or len(state.position_px) != frames:
        raise InputError(
            f"a state of {len(state.position_px)} frames and an object of {state.obj.shape}",
            f"the measurement has {frames} and {frame.shape}",
            "resume the measurement and rows that the state was saved from",
        )


def _starting_object(obj: NDArray[Any] | None, frame: ObjectFrame) -> NDArray[Any]:
    if obj is None:
        return np.ones(frame.shape, dtype=np.complex64)
    if np.shape(obj) != frame.shape:
        raise InputError(f"starting object of shape {np.shape(obj)}", f"the positions ask for {frame.shape}")
    if not np.isfinite(obj).all():
        raise InputError("a starting object that is not finite", "every pixel has a transmission")
    return np.asarray(obj, dtype=np.complex128)


def _provenance(measurement: Measurement, selection: Selection, source: str) -> dict[str, Any]:
    return {
        "frames_used": np.asarray(measurement.frame_index)[selection.used].tolist(),
        "frames_held_out": np.asarray(measurement.frame_index)[selection.held_out].tolist(),
        "frames_excluded": dict(selection.excluded),
        "probe_start": source,
        "gauge": "probe centred, object flat, over the light mean |O|² = 1 and phase of mean O = 0",
        "pixel_size_known": measurement.pixel_size_m is not None,
        "versions": {"ptycho_bluesky": __version__, "torch": torch.__version__, "numpy": np.__version__},
    }


def frame_misfit(
    reconstruction: Reconstruction, measurement: Measurement, rows: NDArray[np.int64], options: EngineOptions
) -> tuple[NDArray[np.float64], Scan]:
    """Squared misfit Σ(|F| − √I)² of some frames with what the reconstruction predicts for them.

    Parameters
    ----------
    reconstruction : Reconstruction
    measurement : Measurement
        Where the frames are; not necessarily the one that was reconstructed.
    rows : ndarray of int64
        Rows of ``measurement`` whose windows lie inside the object.
    options : EngineOptions
        For the treatment of the counts.

    Returns
    -------
    ndarray of float64, shape (len(rows),)
    Scan
        The frames as the engines see them.

    Raises
    ------
    InputError
        A window reaches out of the object.
    """
    scan = prepare_scan(measurement, rows, reconstruction.frame, options)
    last = np.asarray(reconstruction.frame.shape) - scan.size_px
    outside = ((scan.corner < 0) | (scan.corner > last)).any(axis=1)
    if outside.any():
        raise InputError(f"{int(outside.sum())} frames whose window leaves the object", "the object must hold it")
    obj, probe = (
        torch.from_numpy(np.array(a)).to(scan.ramp_row) for a in (reconstruction.object, reconstruction.probe)
    )
    return frame_errors(scan, obj, probe), scan
