"""A run in Tiled, read as one measurement: every frame with its own position, joined on the stored unique id."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import httpx
import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import Geometry
from ptycho_bluesky.io.area_detector import read_rows
from ptycho_bluesky.preprocess import Canonical
from ptycho_bluesky.records import Measurement, Segment
from ptycho_bluesky.trust.light import TRANSMISSION_SUFFIX, Light
from ptycho_bluesky.workflow.client import get_child, jsonable

__all__ = ["frame_indices", "read_measurement", "read_segments"]

logger = logging.getLogger(__name__)

COLUMNS = {"timestamp_s": "timestamp_s", "position_y_m": "position_y_m", "position_x_m": "position_x_m", "i0": "i0"}


def frame_indices(unique_id: NDArray[np.int64], segments: Sequence[Segment]) -> NDArray[np.int64]:
    """Frame index of every row of a file.

    Parameters
    ----------
    unique_id : ndarray of int64, shape (n,)
        Ids in the order of the file's rows; some may be missing, and a counter that was reset at a re-arm makes them
        start again.
    segments : sequence of Segment
        Armings in their order, ``num_frames`` being what was really generated where that is known.

    Returns
    -------
    ndarray of int64, shape (n,)
        -1 for rows that belong to no segment and for repetitions of a frame.

    Notes
    -----
    Rows are appended in time, so the segment of a row never lies before that of the row above it; inside a segment
    ids rise. A row keeps to its segment as long as both hold, else it moves to the next one that holds its id.
    """
    index = np.full(len(unique_id), -1, dtype=np.int64)
    current, last_id = 0, None
    for row, value in enumerate(unique_id.tolist()):
        for number in range(current, len(segments)):
            segment = segments[number]
            offset = value - segment.first_unique_id
            if not 0 <= offset < segment.num_frames or (number == current and last_id is not None and value <= last_id):
                continue
            current, last_id = number, value
            index[row] = segment.first_frame_index + offset
            break
    _, first = np.unique(index, return_index=True)
    repeated = np.ones(len(index), dtype=bool)
    repeated[first] = False
    index[repeated] = -1
    return index


def read_segments(run: Any) -> list[Segment]:
    """Armings of the detector in a run, cut to the frames that were generated; empty if the run states none."""
    table = _events(run, "segments")
    if table is None:
        return []
    ends = _events(run, "segment_ends")
    generated = {}
    if ends is not None:
        generated = dict(
            zip(ends["segment_index"].astype(int).tolist(), ends["frames_generated"].astype(int).tolist(), strict=True)
        )
    segments = []
    for number, first_id, first_index, frames in zip(
        *(
            table[name].astype(int).tolist()
            for name in ("segment_index", "first_unique_id", "first_frame_index", "num_frames")
        ),
        strict=True,
    ):
        segments.append(Segment(number, first_id, first_index, min(frames, generated.get(number, frames))))
    return sorted(segments, key=lambda segment: segment.index)


def _events(run: Any, stream: str) -> dict[str, NDArray[Any]] | None:
    node = get_child(run, stream)
    table = None if node is None else get_child(node.base, "internal")
    if table is None:
        return None
    frame = table.read()
    return {name: frame[name].to_numpy() for name in frame.columns}


def read_measurement(
    run: Any,
    *,
    object_pixel_m: float | None = None,
    prefer_file: bool | None = None,
    limit: int | None = None,
    as_laid: bool = False,
) -> Measurement:
    """Read frames and positions of a run.

    Parameters
    ----------
    run : tiled BlueskyRun
        Its start document must hold ``ptycho``.
    object_pixel_m : float, optional
        Pixel at the sample, used for a run that states neither geometry nor pixel.
    prefer_file : bool, optional
        Read the detector's file itself where it can be opened from here; by default for runs that did not end with
        success, whose file may hold more, or less, than their documents announced.
    limit : int, optional
        Keep the first frames only.
    as_laid : bool
        Leave the frames as the detector laid them, for a calibration; ``metadata["canonical_px"]`` is then the side of
        the canonical ones, to which the pixel size belongs.

    Returns
    -------
    Measurement
        Canonical frames (see `ptycho_bluesky.preprocess`), rows sorted by frame index.

    Raises
    ------
    InputError
        The run is no ptychographic one, holds no frames, or its pixel size is unknown.
    """
    start, stop = run.metadata.get("start", {}), run.metadata.get("stop") or {}
    uid = str(start.get("uid", run.item["id"]))
    ptycho = start.get("ptycho")
    if not ptycho:
        raise InputError(f"run {uid}", "its start document has no 'ptycho' entry", "choose a run of a ptycho plan")
    stream = get_child(run, "primary")
    image_key = str(ptycho.get("detector", {}).get("image_key", ""))
    if stream is None or get_child(stream.base, image_key) is None:
        raise InputError(
            f"run {uid}", f"it holds no frames ('{image_key}' in stream 'primary')", "it was aborted early"
        )
    cut = stop.get("exit_status") != "success"
    columns, source = _read_columns(stream.base, image_key, cut if prefer_file is None else prefer_file, uid)
    segments = read_segments(run)
    index = (
        frame_indices(columns["unique_id"], segments)
        if segments
        else np.arange(len(columns["unique_id"]), dtype=np.int64)
    )
    order = np.argsort(index, kind="stable")[np.count_nonzero(index < 0) :][:limit]
    if not len(order):
        raise InputError(f"run {uid}", "none of its frames belongs to it by unique id", "look at its 'segments' stream")
    geometry = Geometry.from_dict(ptycho.get("geometry"))
    pixel = ptycho.get("pixel_size_m") or (geometry.object_pixel_m if geometry else object_pixel_m)
    if not pixel:
        raise InputError(f"run {uid}", "it states neither geometry nor pixel size", "give --object-pixel-m")
    planned = sum(segment.num_frames for segment in segments) if segments else len(index)
    metadata = {
        "purpose": ptycho.get("purpose", "train"),
        "scan": ptycho.get("scan", {}),
        "sample": _sample_name(start),
        "plan_name": start.get("plan_name", ""),
        "scan_id": start.get("scan_id"),
        "time_s": start.get("time"),
        "exit_status": stop.get("exit_status"),
        "orientation": geometry.orientation if geometry else "identity",
        "source": source,
        "frames_generated": planned,
        "rows": len(index),
        "rows_foreign": int(np.count_nonzero(index < 0)),
    }
    if cut:
        metadata["cut_at_frame"] = int(index.max()) + 1
    metadata["light"] = Light.of_run(ptycho, _transmission(run)).as_dict()
    image, mask = np.asarray(columns["image"][order]), None
    if as_laid:
        canonical = Canonical.from_run(ptycho, (int(image.shape[1]), int(image.shape[2])))
        metadata["canonical_px"] = canonical.num_px
    else:
        image, mask = _canonical(image, ptycho)
    return Measurement(
        image=image,
        position_m=columns["position_m"][order],
        frame_index=index[order],
        unique_id=columns["unique_id"][order],
        timestamp_s=columns["timestamp_s"][order],
        i0=columns["i0"][order],
        geometry=geometry,
        pixel_size_m=float(pixel),
        run_uid=uid,
        mask=mask,
        metadata=jsonable(metadata),
    )


def _sample_name(start: Mapping[str, Any]) -> str:
    """Name of the sample in a start document, where it is a text or, as some beamlines have it, a mapping."""
    sample = start.get("sample", "")
    return str((sample.get("name") if isinstance(sample, Mapping) else sample) or "")


def _canonical(image: NDArray[Any], ptycho: Mapping[str, Any]) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Frames as the edge and the network see them, in their own type, and the pixels that can be trusted in all."""
    canonical = Canonical.from_run(ptycho, (int(image.shape[1]), int(image.shape[2])))
    frames, unusable = canonical.read(image)
    mask = canonical.good if unusable is None else np.asarray(~unusable.any(axis=0))
    return np.ascontiguousarray(frames), None if mask.all() else mask


def _transmission(run: Any) -> float | None:
    """Transmission of the attenuator when the run began, from its baseline."""
    table = _events(run, "baseline")
    for name, values in ({} if table is None else table).items():
        if name.endswith(TRANSMISSION_SUFFIX) and len(values):
            return float(values[0])
    return None


def _read_columns(stream: Any, image_key: str, prefer_file: bool, uid: str) -> tuple[dict[str, NDArray[Any]], str]:
    """Columns of the primary stream and where they were read: through Tiled, or from the file that it points to."""
    path = _local_file(get_child(stream, image_key))
    if prefer_file and path is not None:
        try:
            return read_rows(path), str(path)
        except InputError as error:
            logger.warning("run %s: %s; reading through Tiled", uid, error)
    try:
        return _read_through_tiled(stream, image_key), "tiled"
    except httpx.HTTPStatusError as error:
        # The catalogue claims more rows than a file holds whose writer died before its last flush.
        if path is None:
            raise InputError(
                f"run {uid}: Tiled cannot read its frames ({error.response.status_code})",
                "the file must lie in the server's readable_storage and hold what the documents announced",
                "start the server with --readable FOLDER",
            ) from error
        logger.warning("run %s: Tiled cannot read its frames (%s); reading %s", uid, error, path)
        return read_rows(path), str(path)


def _read_through_tiled(stream: Any, image_key: str) -> dict[str, NDArray[Any]]:
    prefix = image_key.removesuffix("_image")
    image = np.asarray(stream[image_key].read())
    if image.ndim == 4 and image.shape[1] == 1:
        image = image[:, 0]
    n = len(image)
    table = get_child(stream, "internal")
    internal = None if table is None else table.read()

    def column(name: str) -> NDArray[Any] | None:
        key = f"{prefix}_{name}"
        node = get_child(stream, key)
        if node is not None:
            return np.asarray(node.read()).reshape(-1)
        if internal is not None and key in internal.columns:
            return internal[key].to_numpy()
        return None

    unique_id = column("unique_id")
    if unique_id is None:
        raise InputError(f"stream without {prefix}_unique_id", "frames are joined by their stored unique id")
    floats = {name: column(name) for name in COLUMNS}
    n = min([n, len(unique_id), *(len(values) for values in floats.values() if values is not None)])
    filled = {
        name: np.full(n, np.nan) if values is None else values[:n].astype(np.float64) for name, values in floats.items()
    }
    return {
        "image": image[:n],
        "unique_id": unique_id[:n].astype(np.int64),
        "timestamp_s": filled["timestamp_s"],
        "position_m": np.stack([filled["position_y_m"], filled["position_x_m"]], axis=1),
        "i0": filled["i0"],
    }


def _local_file(node: Any) -> Path | None:
    """The one detector file behind a node, if it can be seen from here."""
    uris = {asset.data_uri for source in node.data_sources() or [] for asset in source.assets}
    if len(uris) != 1:
        return None
    parts = urlparse(uris.pop())
    path = Path(unquote(parts.path))
    return path if parts.scheme == "file" and path.is_file() else None
