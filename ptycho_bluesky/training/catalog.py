"""What is known of the label sets of a corpus without opening their files."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import scipy.spatial
from numpy.typing import NDArray

from ptycho_bluesky.errors import StorageError
from ptycho_bluesky.records import LabelSet

__all__ = ["Catalog", "CatalogEntry", "FileCatalog", "describe"]

log = logging.getLogger(__name__)

CATALOG_FILE = "catalog.jsonl"
COUNTED_FRAMES = 100
"""Frames whose counts are averaged for an entry."""


@dataclass(frozen=True)
class CatalogEntry:
    """One label set.

    Attributes
    ----------
    run_uid : str
    file : str
        Name in the folder of the corpus.
    num_frames : int
    image_shape, patch_shape : tuple of int
        (H, W) of frames and (h, w) of labels.
    pixel_size_m : float or None
        Of the labels.
    geometry : dict or None
    regime : dict
        What the model is for, as the caller states it.
    dose : dict
        ``mean_counts`` of a frame; ``counts_per_nm2`` over the area that the positions enclose, None where they
        enclose none or the pixel is unknown; ``light`` as the labels state it.
    area : dict
        ``y_m``, ``x_m``: least and largest position; ``sample``: name of the sample, "" when unknown.
    acceptance : dict
        Verdict on the labels, as the caller states it.
    written_s : float
        Seconds since the epoch.
    duplicate_of : str
        Run whose frames these are; this run then has no file of its own.
    """

    run_uid: str
    file: str
    num_frames: int
    image_shape: tuple[int, int]
    patch_shape: tuple[int, int]
    pixel_size_m: float | None
    geometry: Mapping[str, Any] | None = None
    regime: Mapping[str, Any] = field(default_factory=dict)
    dose: Mapping[str, Any] = field(default_factory=dict)
    area: Mapping[str, Any] = field(default_factory=dict)
    acceptance: Mapping[str, Any] = field(default_factory=dict)
    written_s: float = 0.0
    duplicate_of: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> CatalogEntry:
        """Inverse of `as_dict`; keys of later versions are left out."""
        known = {name: content[name] for name in cls.__dataclass_fields__ if name in content}
        for name in ("image_shape", "patch_shape"):
            known[name] = (int(known[name][0]), int(known[name][1]))
        return cls(**known)

    @property
    def image_bytes(self) -> int:
        """Memory of its frames and phases, uncompressed, in bytes: counts of two bytes, phases of four."""
        return self.num_frames * (2 * int(np.prod(self.image_shape)) + 4 * int(np.prod(self.patch_shape)))


class Catalog(Protocol):
    """Where entries are kept: a file beside the label sets, or a data service."""

    def entries(self) -> list[CatalogEntry]:
        """Every entry, in the order in which they were appended."""
        ...

    def append(self, entry: CatalogEntry) -> None:
        """Keep an entry; nothing is ever changed or removed."""
        ...


class FileCatalog:
    """A catalog of one JSON line an entry.

    Parameters
    ----------
    directory : path
        Folder of the corpus.

    Notes
    -----
    A line that was cut (a writer that died) is left out; the corpus then finds its file without an entry and makes the
    entry anew.
    """

    def __init__(self, directory: Path | str) -> None:
        self.path = Path(directory) / CATALOG_FILE

    def entries(self) -> list[CatalogEntry]:
        """Every entry, in the order in which they were appended.

        Raises
        ------
        StorageError
            The file cannot be read.
        """
        try:
            with self.path.open(encoding="utf-8", errors="replace") as lines:
                return list(self._parse(lines))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StorageError(f"catalog {self.path}: {error}", "it must be readable", "change its mode") from error

    def _parse(self, lines: Iterable[str]) -> Iterable[CatalogEntry]:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield CatalogEntry.from_dict(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                log.warning("%s, line %d is left out (%s); its label set is catalogued anew", self.path, number, error)

    def append(self, entry: CatalogEntry) -> None:
        """Keep an entry.

        Raises
        ------
        StorageError
            The file cannot be written.
        """
        line = json.dumps(entry.as_dict(), default=str) + "\n"
        try:
            with self.path.open("a+b") as file:
                if file.tell():
                    file.seek(-1, 2)
                    line = line if file.read(1) == b"\n" else "\n" + line
                file.write(line.encode())
        except OSError as error:
            raise StorageError(
                f"catalog {self.path}: {error}", "it must be writable", "free space or name another folder"
            ) from error


def describe(
    labels: LabelSet,
    file: str,
    regime: Mapping[str, Any],
    acceptance: Mapping[str, Any],
    written_s: float,
    duplicate_of: str = "",
    position_m: NDArray[np.float64] | None = None,
) -> CatalogEntry:
    """Entry of a label set.

    Parameters
    ----------
    labels : LabelSet
        All of it, or some of its frames with the positions of all.
    file, regime, acceptance, written_s, duplicate_of
        See `CatalogEntry`.
    position_m : ndarray of float64, shape (n, 2), optional
        Of every frame; by default those of the labels.
    """
    position = np.asarray(labels.position_m if position_m is None else position_m, dtype=np.float64)
    every = max(1, len(labels) // COUNTED_FRAMES)
    counts = [float(np.sum(frame, dtype=np.float64)) for frame in labels.image[::every]]
    mean_counts = float(np.mean(counts)) if counts else 0.0
    known = not np.isnan(labels.pixel_size_m)
    area_nm2 = _enclosed_m2(position) * 1e18 if known else 0.0
    image, patch = np.shape(labels.image), np.shape(labels.phase_rad)
    return CatalogEntry(
        run_uid=labels.run_uid,
        file=file,
        num_frames=len(position),
        image_shape=(int(image[1]), int(image[2])),
        patch_shape=(int(patch[1]), int(patch[2])),
        pixel_size_m=float(labels.pixel_size_m) if known else None,
        geometry=labels.geometry.as_dict() if labels.geometry else None,
        regime=dict(regime),
        dose={
            "mean_counts": mean_counts,
            "counts_per_nm2": mean_counts * len(position) / area_nm2 if area_nm2 > 0 else None,
            "light": dict(labels.provenance.get("light") or {}),
        },
        area={
            "y_m": [float(position[:, 0].min()), float(position[:, 0].max())] if len(position) else [0.0, 0.0],
            "x_m": [float(position[:, 1].min()), float(position[:, 1].max())] if len(position) else [0.0, 0.0],
            "sample": str(labels.provenance.get("sample", "")),
        },
        acceptance=dict(acceptance),
        written_s=written_s,
        duplicate_of=duplicate_of,
    )


def _enclosed_m2(position_m: NDArray[np.float64]) -> float:
    """Area of the convex hull of positions; 0 where they enclose none."""
    span = np.ptp(position_m, axis=0) if len(position_m) >= 3 else np.zeros(2)
    if not (span > 0).all():
        return 0.0
    try:
        return float(scipy.spatial.ConvexHull(position_m / span).volume * span.prod())
    except scipy.spatial.QhullError:  # all on one line
        return 0.0
