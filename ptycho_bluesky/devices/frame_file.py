"""StreamResource and StreamDatum documents of one detector file: frames and their columns, row by row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from event_model import ComposeStreamResource
from event_model.documents import DataKey, StreamRange

from ptycho_bluesky.io import area_detector as layout

__all__ = ["Column", "FrameFile", "columns"]


@dataclass(frozen=True)
class Column:
    """One dataset of the file under its data key.

    Attributes
    ----------
    suffix : str
        Data key without the detector's name.
    dataset : str
        Path in the file.
    shape : tuple of int
        Of one row.
    dtype_numpy : str
    chunk_shape : tuple of int
        As the file is chunked.
    unit : str
    """

    suffix: str
    dataset: str
    shape: tuple[int, ...]
    dtype_numpy: str
    chunk_shape: tuple[int, ...]
    unit: str = ""

    def data_key(self, source: str) -> DataKey:
        """Describe it as external streaming data."""
        dtype = "array" if self.shape else ("integer" if "i" in self.dtype_numpy else "number")
        key = DataKey(
            source=source, dtype=dtype, shape=list(self.shape), dtype_numpy=self.dtype_numpy, external="STREAM:"
        )
        if self.unit:
            key["units"] = self.unit
        return key


def columns(frame_shape: tuple[int, int], dtype_numpy: str) -> tuple[Column, ...]:
    """Columns of the detector's file; the shape of a frame is (H, W), without a leading 1.

    A data key of shape (1, H, W) cannot be read through Tiled while the file grows.
    """
    rows = (layout.COLUMN_CHUNK_ROWS,)
    return (
        Column("image", layout.FRAMES, frame_shape, dtype_numpy, (1, *frame_shape), "counts"),
        Column("unique_id", layout.UNIQUE_ID, (), "<i8", rows),
        Column("timestamp_s", layout.TIMESTAMP, (), "<f8", rows, "s"),
        Column("position_y_m", layout.POSITION_Y, (), "<f8", rows, "m"),
        Column("position_x_m", layout.POSITION_X, (), "<f8", rows, "m"),
        Column("i0", layout.I0, (), "<f8", rows),
    )


class FrameFile:
    """Documents of one file.

    Parameters
    ----------
    path : path
        As this machine (and the Tiled server) sees it.
    name : str
        Detector's name, prefix of the data keys.
    file_columns : tuple of Column
    """

    def __init__(self, path: Path, name: str, file_columns: tuple[Column, ...]) -> None:
        self.path = path
        self._name, self._columns = name, file_columns
        self._bundles: list[Any] = []
        self.rows_announced = 0

    @property
    def uri(self) -> str:
        """``file://localhost/…``."""
        return f"file://localhost{self.path.absolute()}"

    def documents(self, rows: int) -> Iterator[tuple[str, Any]]:
        """Documents of the rows up to ``rows`` that were not announced yet.

        Parameters
        ----------
        rows : int
            Rows that can be read from the file.

        Yields
        ------
        tuple
            ``("stream_resource", doc)`` before the first rows, then one ``("stream_datum", doc)`` a column.
        """
        if rows <= self.rows_announced:
            return
        if not self._bundles:
            for column in self._columns:
                bundle = ComposeStreamResource()(
                    mimetype="application/x-hdf5",
                    uri=self.uri,
                    data_key=f"{self._name}_{column.suffix}",
                    parameters={"dataset": column.dataset, "chunk_shape": list(column.chunk_shape), "swmr": True},
                )
                self._bundles.append(bundle)
                yield "stream_resource", bundle.stream_resource_doc
        indices = StreamRange(start=self.rows_announced, stop=rows)
        self.rows_announced = rows
        for bundle in self._bundles:
            yield "stream_datum", bundle.compose_stream_datum(indices=StreamRange(**indices))
