"""Mosaic, frames and counters on pvAccess, served by the edge."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.geometry import ObjectFrame
from ptycho_bluesky.records import FrameCounts
from ptycho_bluesky.streaming.core import RunResult
from ptycho_bluesky.streaming.sinks import EdgeStatus, EdgeUpdate, Picture

__all__ = ["PvaSink", "id_ranges"]

logger = logging.getLogger(__name__)

COUNTS = tuple(FrameCounts().as_dict())
NUMBERS = ("Queue:Depth", "Queue:Dropped", "Queue:Overruns", "Documents:Bad")
FIGURES = ("Rate:FramesPerSecond", "Latency:P50_ms", "Latency:P99_ms", "Residual")
TEXTS = ("Model:Id", "State", "Run:Uid", "Trust:Flags")

FIGURE_PERIOD_S = 0.2
"""Least time between two publications of counters and of the last frame while nothing but they changes."""


def id_ranges(unique_id: NDArray[np.int64]) -> str:
    """Ids as text, runs of successive ones shortened: ``"17-24,26"``."""
    ids = np.unique(unique_id)
    if not len(ids):
        return ""
    cuts = np.flatnonzero(np.diff(ids) != 1)
    first = ids[np.concatenate([[0], cuts + 1])].tolist()
    last = ids[np.concatenate([cuts, [len(ids) - 1]])].tolist()
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(first, last, strict=True))


class PvaSink:
    """Serves the edge's process variables.

    Parameters
    ----------
    prefix : str
        Of every name.

    Notes
    -----
    ``Mosaic:Image`` and ``Mosaic:BrightField`` are NTNDArrays that any areaDetector viewer opens; their attributes hold
    the placement of the canvas. ``NewUniqueIds`` of ``Mosaic:Image`` lists the frames that came in since the image
    before; the bright field follows less often. The server's thread takes the newest update only, so a slow client sees
    fewer images, never old ones.
    """

    def __init__(self, prefix: str) -> None:
        self._pva: Any = import_module("pvaccess")
        self.prefix = prefix
        self._server = self._pva.PvaServer()
        self._numbers: dict[str, Any] = {}
        self._values: dict[str, Any] = {}
        self._published = 0
        self._shown_state: tuple[str, ...] = ()
        self._next_figures_s = 0.0
        self._condition = threading.Condition()
        self._update: EdgeUpdate | None = None
        self._unlisted: list[NDArray[np.int64]] = []
        self._untimed: list[NDArray[np.float64]] = []
        self._stopping = False
        self._make_records()
        self._thread = threading.Thread(target=self._serve, name="edge-pva", daemon=True)
        self._thread.start()

    def update(self, update: EdgeUpdate) -> None:
        """Publish an update, unless a newer one comes first; what it lists is then listed by the newer one."""
        with self._condition:
            self._update = _with_waiting_image(update, self._update)
            self._unlisted.append(update.new_ids)
            self._untimed.append(update.new_timestamps_s)
            self._condition.notify()

    def finish(self, result: RunResult) -> None:
        """Nothing to do: the last update of a run holds its final mosaic and counts."""

    def close(self) -> None:
        """Stop serving."""
        with self._condition:
            if self._stopping:
                return
            self._stopping = True
            self._condition.notify()
        self._thread.join(5.0)
        self._server.stop()

    def _make_records(self) -> None:
        pva = self._pva
        for name in (*(f"Counts:{name.capitalize()}" for name in COUNTS), *NUMBERS):
            self._add(name, {"value": pva.LONG}, 0)
        for name in FIGURES:
            self._add(name, {"value": pva.DOUBLE}, float("nan"))
        for name in TEXTS:
            self._add(name, {"value": pva.STRING}, "starting" if name == "State" else "")
        blank = np.zeros((1, 1), dtype=np.float32)
        for name in ("Mosaic:Image", "Mosaic:BrightField", "Frame:Image"):
            self._server.addRecord(self.prefix + name, self._image(blank, 0, {}))

    def _add(self, name: str, structure: dict[str, Any], value: Any) -> None:
        self._server.addRecord(self.prefix + name, self._pva.PvObject(structure, {"value": value}))
        # a second object: what is assigned to the one that the record was made with is published by itself
        self._numbers[name] = self._pva.PvObject(structure)

    def _serve(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._update is not None or self._stopping)
                if self._update is None:
                    return
                update, self._update = self._update, None
                ids, times = self._unlisted, self._untimed
                if update.has_image:
                    self._unlisted, self._untimed = [], []
            try:
                self._publish(update, ids, times)
            except Exception:  # a value that cannot be served costs its publication, not the server
                logger.exception("pvAccess publication failed")

    def _publish(self, update: EdgeUpdate, ids: list[NDArray[np.int64]], times: list[NDArray[np.float64]]) -> None:
        if update.has_image:
            self._put_images(update, id_ranges(np.concatenate(ids)))
            update.published(np.concatenate(times))
        status = update.status
        state = (status.state, status.run_uid, status.model_id, status.flags)
        now_s = time.monotonic()
        # figures are read by people: the image goes out more often
        if update.complete or state != self._shown_state or now_s >= self._next_figures_s:
            self._shown_state, self._next_figures_s = state, now_s + FIGURE_PERIOD_S
            if update.frame is not None:
                self._server.update(self.prefix + "Frame:Image", self._image(update.frame, update.frame_id, {}))
            self._put_counts(update.counts)
            self._put_status(status)

    def _put_counts(self, counts: FrameCounts) -> None:
        for name, value in counts.as_dict().items():
            self._put(f"Counts:{name.capitalize()}", value)

    def _put_status(self, status: EdgeStatus) -> None:
        values = {
            "Queue:Depth": status.queue_depth,
            "Queue:Dropped": status.dropped,
            "Queue:Overruns": status.overruns,
            "Documents:Bad": status.bad_documents,
            "Rate:FramesPerSecond": status.frames_per_s,
            "Latency:P50_ms": status.latency_p50_ms,
            "Latency:P99_ms": status.latency_p99_ms,
            "Residual": status.residual,
            "Model:Id": status.model_id,
            "Run:Uid": status.run_uid,
            "State": status.state,
            "Trust:Flags": status.flags,
        }
        for name, value in values.items():
            self._put(name, value)

    def _put(self, name: str, value: Any) -> None:
        if self._values.get(name) == value:
            return
        self._values[name] = value
        record = self._numbers[name]
        record["value"] = value
        self._server.update(self.prefix + name, record)

    def _put_images(self, update: EdgeUpdate, new_ids: str) -> None:
        """Publish the phase, and the bright field when there is a whole mosaic; the phase lists the new frames."""
        self._published += 1
        picture, mosaic = update.picture, update.mosaic
        if picture is None and mosaic is not None:
            phase = np.where(mosaic.coverage > 0, mosaic.phase_rad, np.nan).astype(np.float32)
            model_id = mosaic.model_ids[-1] if mosaic.model_ids else ""
            picture = Picture(phase, mosaic.frame, mosaic.run_uid, model_id)
        if picture is not None:
            attributes = _attributes(picture.run_uid, picture.frame, update.complete, new_ids, picture.model_id)
            image = self._image(picture.phase_rad, self._published, attributes)
            self._server.update(self.prefix + "Mosaic:Image", image)
        if mosaic is not None:
            model_id = mosaic.model_ids[-1] if mosaic.model_ids else ""
            attributes = _attributes(mosaic.run_uid, mosaic.frame, update.complete, new_ids, model_id)
            bright = np.asarray(mosaic.maps["bright_field"], dtype=np.float32)
            self._server.update(self.prefix + "Mosaic:BrightField", self._image(bright, self._published, attributes))

    def _image(self, image: NDArray[Any], unique_id: int, attributes: dict[str, Any]) -> Any:
        utility = import_module("pvapy.utility.adImageUtility").AdImageUtility
        structure = utility.generateNtNdArray2D(unique_id, np.ascontiguousarray(image))
        pva = self._pva
        kinds = {int: pva.PvInt, float: pva.PvDouble, str: pva.PvString}
        structure["attribute"] = [
            pva.NtAttribute("ColorMode", pva.PvInt(0)),
            *(pva.NtAttribute(name, kinds[type(value)](value)) for name, value in attributes.items()),
        ]
        return structure


def _attributes(run_uid: str, frame: ObjectFrame, complete: bool, new_ids: str, model_id: str) -> dict[str, Any]:
    return {
        "RunUid": run_uid,
        "Complete": int(complete),
        "NewUniqueIds": new_ids,
        "ModelId": model_id,
        "OriginY_m": frame.origin_m[0],
        "OriginX_m": frame.origin_m[1],
        "PixelSize_m": frame.pixel_size_m,
    }


def _with_waiting_image(update: EdgeUpdate, waiting: EdgeUpdate | None) -> EdgeUpdate:
    """An image that waits goes out with the newer figures, unless there is a newer one."""
    if waiting is None or not waiting.has_image:
        return update
    if not update.has_image:
        return replace(update, mosaic=waiting.mosaic, picture=waiting.picture, complete=waiting.complete)
    picture, mosaic = update.picture, waiting.mosaic
    if update.mosaic is None and picture is not None and mosaic is not None and picture.run_uid == mosaic.run_uid:
        return replace(update, mosaic=mosaic)
    return update
