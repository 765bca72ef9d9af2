"""The corpus: label sets of finished runs on disk, one HDF5 file a run; splits are by run, never frame by frame."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError, StorageError
from ptycho_bluesky.geometry import Geometry
from ptycho_bluesky.records import LabelSet
from ptycho_bluesky.trust.light import Light, LightScale

__all__ = ["Corpus", "TrainingArrays", "join_label_sets", "read_label_set", "write_label_set"]

ARRAYS = ("image", "phase_rad", "amplitude", "position_m", "frame_index", "probe", "weight")
FORMAT_VERSION = 1
SAME_LIGHT = 0.005
"""Relative difference of a run's light up to which its counts stay as they are."""


@dataclass(frozen=True)
class TrainingArrays:
    """Label sets of several runs, one after the other.

    Attributes
    ----------
    image : ndarray, shape (n, H, W)
        Canonical frames in counts.
    phase_rad, amplitude : ndarray of float32, shape (n, h, w)
    position_m : ndarray of float64, shape (n, 2)
    run : ndarray of int64, shape (n,)
        Index into ``run_uids`` for each frame.
    run_uids : tuple of str
        Oldest first.
    weight : ndarray of float32, shape (h, w)
        Validity by illumination, of the newest run.
    probe : ndarray of complex64, shape (modes, N, N)
        Of the newest run.
    pixel_size_m : float
        NaN when unknown.
    geometry : Geometry or None
    light : dict
        Of the newest run (`ptycho_bluesky.trust.Light`); the other runs' counts are brought to it.
    """

    image: NDArray[Any]
    phase_rad: NDArray[np.float32]
    amplitude: NDArray[np.float32]
    position_m: NDArray[np.float64]
    run: NDArray[np.int64]
    run_uids: tuple[str, ...]
    weight: NDArray[np.float32]
    probe: NDArray[Any]
    pixel_size_m: float
    geometry: Geometry | None
    light: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.run)

    def select(self, rows: NDArray[Any]) -> TrainingArrays:
        """Arrays of some frames (indices or a mask), of the same runs."""
        columns = ("image", "phase_rad", "amplitude", "position_m", "run")
        return replace(self, **{name: getattr(self, name)[rows] for name in columns})


def join_label_sets(label_sets: Sequence[LabelSet]) -> TrainingArrays:
    """Join label sets, oldest first.

    Raises
    ------
    InputError
        None were given, or they differ in shape or pixel size: one network reads one geometry.
    """
    if not label_sets:
        raise InputError("an empty corpus", "training needs at least one label set", "add labels of a run")
    last = label_sets[-1]
    for labels in label_sets:
        same_pixel = np.isclose(labels.pixel_size_m, last.pixel_size_m, rtol=1e-3, equal_nan=True)
        if labels.image.shape[1:] != last.image.shape[1:] or labels.phase_rad.shape[1:] != last.phase_rad.shape[1:]:
            raise InputError(
                f"labels of {labels.run_uid} with frames {labels.image.shape[1:]} and patches "
                f"{labels.phase_rad.shape[1:]}",
                f"those of {last.run_uid} have {last.image.shape[1:]} and {last.phase_rad.shape[1:]}",
                "train each geometry by itself",
            )
        if not same_pixel:
            raise InputError(
                f"labels of {labels.run_uid} at {labels.pixel_size_m:.4g} m a pixel",
                f"those of {last.run_uid} are at {last.pixel_size_m:.4g} m",
                "train each geometry by itself",
            )
    return TrainingArrays(
        image=np.concatenate([_at_light_of(last, labels) for labels in label_sets]),
        phase_rad=np.concatenate([labels.phase_rad for labels in label_sets]).astype(np.float32, copy=False),
        amplitude=np.concatenate([labels.amplitude for labels in label_sets]).astype(np.float32, copy=False),
        position_m=np.concatenate([np.asarray(labels.position_m, dtype=np.float64) for labels in label_sets]),
        run=np.repeat(np.arange(len(label_sets)), [len(labels) for labels in label_sets]),
        run_uids=tuple(labels.run_uid for labels in label_sets),
        weight=np.asarray(last.weight, dtype=np.float32),
        probe=last.probe,
        pixel_size_m=last.pixel_size_m,
        geometry=last.geometry,
        light=dict(last.provenance.get("light") or {}),
    )


def _at_light_of(reference: LabelSet, labels: LabelSet) -> NDArray[Any]:
    """Frames of labels at the light of others: the edge scales a run's counts likewise before the network sees them."""
    light, wanted = (Light.from_dict(each.provenance.get("light")) for each in (labels, reference))
    i0 = np.array([np.nan if light.i0 is None else light.i0])
    factor = float(LightScale(wanted, light).factors(i0)[0][0])
    if abs(factor - 1.0) < SAME_LIGHT:
        return labels.image
    return labels.image.astype(np.float32) * np.float32(factor)


def write_label_set(path: Path | str, labels: LabelSet) -> None:
    """Write a label set to an HDF5 file, which appears whole or not at all.

    Raises
    ------
    StorageError
        The file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{time.time_ns()}")
    try:
        with h5py.File(temporary, "w") as file:
            for name in ARRAYS:
                file.create_dataset(name, data=np.asarray(getattr(labels, name)))
            header = {
                "format_version": FORMAT_VERSION,
                "run_uid": labels.run_uid,
                "pixel_size_m": None if np.isnan(labels.pixel_size_m) else float(labels.pixel_size_m),
                "geometry": labels.geometry.as_dict() if labels.geometry else None,
                "provenance": dict(labels.provenance),
                "written_s": time.time(),
            }
            file.attrs["header"] = json.dumps(header, default=str)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(f"label set {path}: {error}", "free space or name another folder") from error


def read_label_set(path: Path | str) -> LabelSet:
    """Read what `write_label_set` wrote.

    Raises
    ------
    InputError
        The file is missing, damaged, or of a newer format.
    """
    try:
        with h5py.File(path, "r") as file:
            header = _header(file)
            if header["format_version"] > FORMAT_VERSION:
                raise InputError(f"label set {path}", "its format is newer than this software", "upgrade")
            pixel_size_m = header["pixel_size_m"]
            arrays: dict[str, Any] = {name: np.asarray(file[name]) for name in ARRAYS}
            return LabelSet(
                **arrays,
                pixel_size_m=float("nan") if pixel_size_m is None else float(pixel_size_m),
                geometry=Geometry.from_dict(header["geometry"]),
                run_uid=header["run_uid"],
                provenance=header["provenance"],
            )
    except (OSError, KeyError) as error:
        raise InputError(f"label set {path}: {error}", "an HDF5 file written by this package is needed") from error


def _header(file: h5py.File) -> dict[str, Any]:
    return json.loads(str(file.attrs["header"]))


class Corpus:
    """A folder of label sets.

    Parameters
    ----------
    directory : path
        Made when it does not exist.
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"corpus {self.directory}: {error}", "it must be writable") from error

    def add(self, labels: LabelSet) -> bool:
        """Add the labels of a run; adding the same run again changes nothing.

        Returns
        -------
        bool
            False when the run was there already.
        """
        if not labels.run_uid:
            raise InputError("labels without a run uid", "the corpus is kept by run", "set run_uid")
        if not len(labels):
            raise InputError(f"labels of {labels.run_uid}", "a label set holds at least one frame")
        path = self._path(labels.run_uid)
        if path.exists():
            return False
        write_label_set(path, labels)
        return True

    def runs(self) -> tuple[str, ...]:
        """Uids of the runs, in the order in which they were added."""
        return tuple(uid for _, uid, _ in self._entries())

    def files(self) -> list[Path]:
        """Files of the runs, in the order in which they were added."""
        return [path for _, _, path in self._entries()]

    def _entries(self) -> list[tuple[float, str, Path]]:
        entries = []
        for path in self.directory.glob("*.h5"):
            try:
                with h5py.File(path, "r") as file:
                    header = _header(file)
                    entries.append((float(header["written_s"]), str(header["run_uid"]), path))
            except (OSError, KeyError) as error:
                raise InputError(
                    f"label set {path}: {error}", "an HDF5 file written by this package is needed", "remove the file"
                ) from error
        return sorted(entries)

    def read(self, run_uid: str) -> LabelSet:
        """Labels of one run."""
        if not self._path(run_uid).exists():
            raise InputError(f"run {run_uid}", f"it has no labels in {self.directory}")
        return read_label_set(self._path(run_uid))

    def load(self, runs: Sequence[str] | None = None) -> TrainingArrays:
        """Join the labels of runs (all by default), in the order given; see `join_label_sets`."""
        return join_label_sets([self.read(uid) for uid in (self.runs() if runs is None else runs)])

    def _path(self, run_uid: str) -> Path:
        return self.directory / f"{re.sub(r'[^A-Za-z0-9._-]', '_', run_uid)}.h5"
