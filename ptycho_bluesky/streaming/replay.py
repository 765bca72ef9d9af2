"""Playing a stored scan through the edge's own path: join, account, inference, mosaic."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.inference import LoadedModel, ModelSlot, check_model, load_model
from ptycho_bluesky.preprocess import mask_ranges
from ptycho_bluesky.records import FrameBatch, FrameCounts, InferredBatch, Measurement, Mosaic
from ptycho_bluesky.streaming.closing import ClosingOptions, read_file
from ptycho_bluesky.streaming.core import EdgeCore, RunResult
from ptycho_bluesky.streaming.frames import Frame

__all__ = ["measurement_documents", "replay_documents", "replay_run"]

Document = tuple[str, dict[str, Any]]


def measurement_documents(measurement: Measurement) -> Iterator[Document]:
    """Documents of a scan that was read from a file, its rows standing for ids and indices.

    Parameters
    ----------
    measurement : Measurement

    Yields
    ------
    (str, dict)
        Start, one segment and its end; the stop document is left to the caller, after the frames.
    """
    uid = measurement.run_uid or "replay"
    # Frames of a measurement are canonical already: saying how the detector stood would turn them once more.
    canonical = None if measurement.geometry is None else replace(measurement.geometry, orientation="identity")
    geometry = None if canonical is None else canonical.as_dict()
    height, width = measurement.image.shape[1:]
    yield (
        "start",
        {
            "uid": uid,
            "time": 0.0,
            "plan_name": "replay",
            "ptycho": {
                "version": 1,
                "geometry": geometry,
                "pixel_size_m": measurement.pixel_size_m,
                "frame_shape": [height, width],
                "scan": {"num_points": len(measurement)},
                "light": dict(measurement.metadata.get("light") or {}),
                "canonical": {} if measurement.mask is None else {"bad_ranges": mask_ranges(~measurement.mask)},
                "detector": {"channel": "", "image_key": "image"},
            },
        },
    )
    segment = {"segment_index": 0, "first_unique_id": 0, "first_frame_index": 0, "num_frames": len(measurement)}
    end = {"segment_index": 0, "frames_generated": len(measurement), "last_unique_id": len(measurement) - 1}
    y, x = measurement.position_m[:, 0], measurement.position_m[:, 1]
    trajectory = {"planned_y_m": y, "planned_x_m": x}  # so that the first canvas holds the whole scan
    for name, data in (("trajectory", trajectory), ("segments", segment), ("segment_ends", end)):
        yield "descriptor", {"uid": f"{uid}-{name}", "run_start": uid, "name": name}
        yield "event", {"descriptor": f"{uid}-{name}", "time": np.nan, "seq_num": 1, "data": data}


def replay_run(
    measurement: Measurement,
    model: LoadedModel | ModelSlot | bytes | str | Path | None = None,
    *,
    batch_size: int = 32,
    on_batch: Callable[[InferredBatch], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Mosaic, FrameCounts]:
    """Infer and stitch a stored scan.

    Parameters
    ----------
    measurement : Measurement
        Frames and positions; positions in object pixels when the pixel size is unknown.
    model : LoadedModel, ModelSlot, or model file (bytes or path), optional
        None: bright field and centre of mass alone.
    batch_size : int
        Frames read at once.
    on_batch : callable, optional
        ``on_batch(batch)`` after each batch, e.g. to store it.
    progress : callable, optional
        ``progress(done, total)``.

    Returns
    -------
    mosaic : Mosaic
    counts : FrameCounts
        As for a live run whose stream delivered every stored frame.

    Raises
    ------
    InputError
        The scan has no frames, or the model reads frames of another geometry.

    Examples
    --------
    >>> from ptycho_bluesky.io import read_measurement  # doctest: +SKIP
    >>> mosaic, counts = replay_run(read_measurement("scan.h5"), "model.onnx")  # doctest: +SKIP
    """
    if not len(measurement):
        raise InputError(f"scan {measurement.run_uid}", "it holds no frames")
    height, width = measurement.image.shape[1:]
    slot = _slot(model, (min(height, width),) * 2)
    _check(slot, measurement)
    results: list[RunResult] = []
    total, done = len(measurement), 0

    def count(_: Any, batch: InferredBatch) -> None:
        nonlocal done
        done += len(batch.frames)
        if on_batch is not None:
            on_batch(replace(batch, frames=_with_true_names(batch.frames, measurement)))
        if progress is not None:
            progress(done, total)

    core = EdgeCore(
        slot, wall_clock=False, max_batch=batch_size, residual_share=1.0, on_batch=count, on_closed=results.append
    )
    documents = list(measurement_documents(measurement))
    for name, doc in documents:
        core.document(name, doc)
    for start in range(0, total, batch_size):
        rows = range(start, min(start + batch_size, total))
        image = np.asarray(measurement.image[rows.start : rows.stop])
        core.frames([_frame(measurement, row, image[row - start]) for row in rows])
    core.document("stop", {"run_start": documents[0][1]["uid"], "exit_status": "success"})
    _finish(core, results, 1)
    return _with_true_log(results[0].mosaic, measurement), results[0].counts


def _slot(model: LoadedModel | ModelSlot | bytes | str | Path | None, shape: tuple[int, int]) -> ModelSlot:
    if isinstance(model, ModelSlot):
        return model
    if model is None or isinstance(model, LoadedModel):
        return ModelSlot(model)
    return ModelSlot(load_model(model, image_shape=shape))


def _check(slot: ModelSlot, measurement: Measurement) -> None:
    if slot.current is not None:
        side = min(measurement.image.shape[1:])
        check_model(slot.current.engine.manifest, (side, side), measurement.pixel_size_m, slot.model_id)


def _frame(measurement: Measurement, row: int, image: NDArray[Any]) -> Frame:
    y, x = measurement.position_m[row].tolist()
    return Frame(
        unique_id=row,
        image=image,
        timestamp_s=float(measurement.timestamp_s[row]),
        position_m=(y, x),
        i0=float(measurement.i0[row]),
    )


def _with_true_names(frames: FrameBatch, measurement: Measurement) -> FrameBatch:
    """Put the measurement's own indices and ids where rows stood for them."""
    rows = frames.frame_index
    return replace(frames, frame_index=measurement.frame_index[rows], unique_id=measurement.unique_id[rows])


def _with_true_log(mosaic: Mosaic, measurement: Measurement) -> Mosaic:
    rows = mosaic.frame_log["frame_index"]
    order = np.argsort(measurement.frame_index[rows], kind="stable")
    log = {name: column[order] for name, column in mosaic.frame_log.items()}
    log["frame_index"] = measurement.frame_index[rows][order]
    log["unique_id"] = measurement.unique_id[rows][order]
    return replace(mosaic, frame_log=log)


def replay_documents(
    documents: Iterable[Document],
    model: LoadedModel | ModelSlot | bytes | str | Path | None = None,
    *,
    closing: ClosingOptions | None = None,
    on_batch: Callable[[InferredBatch], None] | None = None,
) -> list[RunResult]:
    """Play the documents of finished runs: every frame comes from the files that they name.

    Parameters
    ----------
    documents : iterable of (str, dict)
        E.g. ``run.documents()`` of Tiled, or a journal.
    model : LoadedModel, ModelSlot, or model file (bytes or path), optional
    closing : ClosingOptions, optional
        How long files that are still written are waited for.
    on_batch : callable, optional
        ``on_batch(batch)`` after each batch.

    Returns
    -------
    list of RunResult
        One for each run that has a stop document, in the order of these.
    """
    results: list[RunResult] = []
    slot = model if isinstance(model, ModelSlot) else None
    if slot is None:
        slot = _slot(model, (0, 0)) if not isinstance(model, (bytes, str, Path)) else ModelSlot(load_model(model))
    core = EdgeCore(
        slot,
        closing=closing,
        wall_clock=False,
        residual_share=1.0,
        on_batch=None if on_batch is None else (lambda _, batch: on_batch(batch)),
        on_closed=results.append,
    )
    expected = 0
    for name, doc in documents:
        core.document(name, doc, live=False)
        expected += name == "stop" and str(doc.get("run_start", "")) in core.runs
    _finish(core, results, expected)
    return results


def _finish(core: EdgeCore, results: list[RunResult], expected: int) -> None:
    """Drive a core until its stopped runs are closed; every wait inside it is bounded."""
    while len(results) < expected:
        core.tick(stream_empty=True)
        if not core.requests and len(results) < expected:
            time.sleep(0.01)
        while core.requests:
            core.file_reply(read_file(core.requests.popleft()))
