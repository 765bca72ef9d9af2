"""`reconstruct`: one function over every engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ptycho_bluesky._version import __version__
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import ObjectFrame
from ptycho_bluesky.reconstruction.forward import Scan
from ptycho_bluesky.reconstruction.gauge import fix_gauge
from ptycho_bluesky.reconstruction.options import EngineOptions, EpieOptions
from ptycho_bluesky.reconstruction.pie import frame_errors, run_epie
from ptycho_bluesky.reconstruction.prepare import Selection, prepare_scan, select_frames, torch_threads
from ptycho_bluesky.reconstruction.starting_probe import ProbeStart, starting_probe
from ptycho_bluesky.records import Measurement, Reconstruction

__all__ = ["Progress", "frame_misfit", "reconstruct"]

Progress = Callable[[int, int, float], None]
"""Called with (passes done, passes in all, error)."""
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
    with torch_threads((options := options or EpieOptions()).threads):
        return _reconstruct(measurement, options, probe, object, rows, progress)


def _reconstruct(
    measurement: Measurement,
    options: EngineOptions,
    probe: NDArray[Any] | None,
    object: NDArray[Any] | None,  # noqa: A002
    rows: ArrayLike | None,
    progress: Progress | None,
) -> Reconstruction:
    started_s, clock = time.time(), time.perf_counter()
    selection = select_frames(measurement, options, rows)
    start = starting_probe(measurement, options, probe=probe, selection=selection)
    size = int(np.shape(measurement.image)[-1])
    # The object holds the windows of the held-out frames too, and stays around them when the gauge shifts it.
    looked_at = np.concatenate([selection.used, selection.held_out])
    frame = ObjectFrame.around(measurement.position_m[looked_at], size, measurement.step_px_m, MARGIN_PX)
    scan = prepare_scan(measurement, selection.used, frame, options)
    wave = torch.from_numpy(start.wave).to(scan.ramp_row)
    obj, modes, error = _engine(options)(scan, _starting_object(object, frame, wave), wave, options, progress)
    if not np.isfinite(error[-1]):
        raise InputError(f"the reconstruction diverged (error {error[-1]})", "", "use smaller steps or another probe")
    position_m = measurement.position_m[selection.used]
    final, fixed, frame = fix_gauge(obj.cpu().numpy(), modes.cpu().numpy(), frame, position_m)
    kind = np.complex128 if options.dtype == "complex128" else np.complex64
    return Reconstruction(
        object=final.astype(kind),
        probe=fixed.astype(kind),
        position_m=position_m,
        frame=frame,
        error=error,
        geometry=measurement.geometry,
        engine=options.engine,
        options=options.model_dump(),
        run_uid=measurement.run_uid,
        provenance={
            **_provenance(measurement, selection, start),
            "started_s": started_s,
            "duration_s": time.perf_counter() - clock,
        },
    )


def _engine(options: EngineOptions) -> Callable[..., tuple[Tensor, Tensor, NDArray[np.float64]]]:
    if isinstance(options, EpieOptions):
        return run_epie
    raise InputError(f"options of type {type(options).__name__}", "no engine takes them", "use EpieOptions")


def _starting_object(obj: NDArray[Any] | None, frame: ObjectFrame, like: Tensor) -> Tensor:
    if obj is None:
        return torch.ones(frame.shape, dtype=like.dtype, device=like.device)
    if np.shape(obj) != frame.shape:
        raise InputError(f"starting object of shape {np.shape(obj)}", f"the positions ask for {frame.shape}")
    if not np.isfinite(obj).all():
        raise InputError("a starting object that is not finite", "every pixel has a transmission")
    return torch.from_numpy(np.array(obj, dtype=np.complex128)).to(like)


def _provenance(measurement: Measurement, selection: Selection, start: ProbeStart) -> dict[str, Any]:
    return {
        "frames_used": np.asarray(measurement.frame_index)[selection.used].tolist(),
        "frames_held_out": np.asarray(measurement.frame_index)[selection.held_out].tolist(),
        "frames_excluded": dict(selection.excluded),
        "probe_start": start.source,
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
