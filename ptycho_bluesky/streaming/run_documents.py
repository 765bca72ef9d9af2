"""What a run's documents say to the edge: geometry, plan, segments, file; the same document twice changes nothing."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import Geometry
from ptycho_bluesky.records import Segment
from ptycho_bluesky.trust.light import TRANSMISSION_SUFFIX, Light

__all__ = ["COLUMN_SUFFIXES", "FileColumn", "RunDocuments", "SegmentEnd", "SegmentStart"]

logger = logging.getLogger(__name__)

COLUMN_SUFFIXES = ("image", "unique_id", "timestamp_s", "position_y_m", "position_x_m", "i0")
"""Ends of the data keys of the primary stream; longer ones first would matter only if one ended in another."""


@dataclass(frozen=True)
class FileColumn:
    """Where a column of the primary stream lies."""

    path: Path
    dataset: str


@dataclass(frozen=True)
class SegmentStart:
    """A document of the stream ``segments``."""

    segment: Segment
    time_s: float
    channel: str
    first_row: int | None


@dataclass(frozen=True)
class SegmentEnd:
    """A document of the stream ``segment_ends``."""

    index: int
    frames_generated: int
    time_s: float


@dataclass
class RunDocuments:
    """Documents of one run, digested.

    Parameters
    ----------
    start : mapping
        Start document; it must hold ``ptycho``.
    """

    start: Mapping[str, Any]
    planned_m: NDArray[np.float64] | None = None
    columns: dict[str, FileColumn] = field(default_factory=dict)
    rows_announced: int = 0
    stop: Mapping[str, Any] | None = None
    transmission: float | None = None
    _streams: dict[str, str] = field(default_factory=dict)
    _resources: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.start.get("ptycho"), Mapping):
            raise InputError(f"run {self.uid[:8]}", "its start document has no 'ptycho' entry: it is no run of ours")
        Geometry.from_dict(self.ptycho.get("geometry"))

    @property
    def uid(self) -> str:
        """Uid of the run."""
        return str(self.start.get("uid", ""))

    @property
    def ptycho(self) -> Mapping[str, Any]:
        """Entry ``ptycho`` of the start document."""
        return self.start["ptycho"]

    @property
    def geometry(self) -> Geometry | None:
        """Geometry, None when unknown."""
        return Geometry.from_dict(self.ptycho.get("geometry"))

    @property
    def pixel_size_m(self) -> float | None:
        """Pixel at the sample, None when unknown (positions are then in object pixels)."""
        stated = self.ptycho.get("pixel_size_m")
        if stated is not None:
            return float(stated)
        return None if self.geometry is None else self.geometry.object_pixel_m

    @property
    def frame_shape(self) -> tuple[int, int] | None:
        """(H, W) of the detector's frames, None when not stated."""
        shape = self.ptycho.get("frame_shape")
        return None if shape is None else (int(shape[0]), int(shape[1]))

    @property
    def light(self) -> Light:
        """Light of the run: exposure, attenuation, and how the monitor reads."""
        return Light.of_run(self.ptycho, self.transmission)

    @property
    def channel(self) -> str:
        """Channel of the frames on pvAccess, "" when not stated."""
        return str((self.ptycho.get("detector") or {}).get("channel") or "")

    @property
    def image_key(self) -> str:
        """Data key of the frames, "" when not stated."""
        return str((self.ptycho.get("detector") or {}).get("image_key") or "")

    @property
    def num_points(self) -> int | None:
        """Frames that the plan asks for."""
        points = (self.ptycho.get("scan") or {}).get("num_points", self.start.get("num_points"))
        return None if points is None else int(points)

    def stream_of(self, descriptor_uid: str) -> str | None:
        """Name of the stream of a descriptor, None when it is not known."""
        return self._streams.get(descriptor_uid)

    def add_descriptor(self, doc: Mapping[str, Any]) -> None:
        """Take a descriptor."""
        self._streams[str(doc["uid"])] = str(doc.get("name", "primary"))

    def read_event(self, doc: Mapping[str, Any]) -> SegmentStart | SegmentEnd | None:
        """Take an event of a stream that is known; what it says of segments is returned.

        Raises
        ------
        InputError
            It lacks a key, or holds no numbers where it should.
        """
        stream = self._streams.get(str(doc.get("descriptor", "")), "")
        data, time_s = doc.get("data", {}), float(doc.get("time", np.nan))
        try:
            if stream == "trajectory":
                planned = np.stack([_numbers(data["planned_y_m"]), _numbers(data["planned_x_m"])], axis=1)
                self.planned_m = planned
            elif stream == "segments":
                segment = Segment(
                    int(data["segment_index"]),
                    int(data["first_unique_id"]),
                    int(data["first_frame_index"]),
                    int(data["num_frames"]),
                )
                row = data.get("first_file_row")
                channel = str(data.get("pva_channel") or self.channel)
                return SegmentStart(segment, time_s, channel, None if row is None else int(row))
            elif stream == "baseline" and self.transmission is None:
                self.transmission = next((float(v) for k, v in data.items() if k.endswith(TRANSMISSION_SUFFIX)), None)
            elif stream == "segment_ends":
                return SegmentEnd(int(data["segment_index"]), int(data["frames_generated"]), time_s)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"event of stream {stream!r}: {error!r}", "it cannot be read", "check the plan") from error
        return None

    def position_at(self, frame_index: int) -> tuple[float, float]:
        """Planned (y, x) of a frame in m, NaN when there is no plan for it."""
        if self.planned_m is None or not 0 <= frame_index < len(self.planned_m):
            return (np.nan, np.nan)
        y, x = self.planned_m[frame_index].tolist()
        return (y, x)

    def add_resource(self, doc: Mapping[str, Any]) -> None:
        """Take a StreamResource whose data key is one of the columns of the primary stream."""
        key = str(doc.get("data_key", ""))
        for suffix in COLUMN_SUFFIXES:
            if key.endswith("_" + suffix) or key == suffix:
                uri = urlparse(str(doc.get("uri", "")))
                if uri.scheme not in ("file", ""):
                    raise InputError(f"resource {doc.get('uri')}", "frames are read from files", "mount the folder")
                dataset = str((doc.get("parameters") or {}).get("dataset", ""))
                self.columns[suffix] = FileColumn(Path(unquote(uri.path)), dataset)
                self._resources[str(doc["uid"])] = suffix
                return

    def add_datum(self, doc: Mapping[str, Any]) -> bool:
        """Take a StreamDatum; True when it announces rows that were not announced before."""
        if str(doc.get("stream_resource", "")) not in self._resources:
            return False
        rows = int(doc["indices"]["stop"])
        if rows <= self.rows_announced:
            return False
        self.rows_announced = rows
        return True


def _numbers(values: Any) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"shape {array.shape} where a list of numbers is expected")
    return array
