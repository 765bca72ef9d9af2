"""The corpus: label sets of finished runs on disk, one HDF5 file a run, and a catalog of them."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError, StorageError
from ptycho_bluesky.geometry import Geometry
from ptycho_bluesky.records import LabelSet
from ptycho_bluesky.training.catalog import COUNTED_FRAMES, Catalog, CatalogEntry, FileCatalog, describe
from ptycho_bluesky.training.known_frames import KnownFrames
from ptycho_bluesky.training.label_files import (
    COLUMNS,
    frame_hashes,
    read_header,
    read_label_set,
    stored_hashes,
    sweep,
    write_label_set,
)
from ptycho_bluesky.trust.light import Light, LightScale

__all__ = ["Corpus", "TrainingArrays", "join_label_sets", "light_factor", "read_label_set", "write_label_set"]

log = logging.getLogger(__name__)

LOCK_FILE = ".lock"
MAX_NAME = 100
"""Characters of a uid in the name of its file."""
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
        same_pixel = np.isclose(labels.pixel_size_m, last.pixel_size_m, rtol=1e-3, atol=0.0, equal_nan=True)
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


def light_factor(stated: Mapping[str, Any] | None, reference: Mapping[str, Any] | None) -> float:
    """Factor that brings counts to the light of others, as the edge scales a run's before the network sees them.

    Parameters
    ----------
    stated, reference : mapping or None
        Light of the counts, and the light wanted (`ptycho_bluesky.trust.light.Light`).

    Returns
    -------
    float
        1 where they hardly differ.
    """
    light, wanted = Light.from_dict(stated), Light.from_dict(reference)
    i0 = np.array([np.nan if light.i0 is None else light.i0])
    factor = float(LightScale(wanted, light).factors(i0)[0][0])
    return 1.0 if abs(factor - 1.0) < SAME_LIGHT else factor


def _at_light_of(reference: LabelSet, labels: LabelSet) -> NDArray[Any]:
    factor = light_factor(labels.provenance.get("light"), reference.provenance.get("light"))
    return labels.image if factor == 1.0 else labels.image.astype(np.float32) * np.float32(factor)


class Corpus:
    """A folder of label sets that only grows.

    One HDF5 file a run (`ptycho_bluesky.training.label_files`), and a catalog that tells run, area, geometry, regime,
    dose and acceptance of each, so that a corpus of millions of frames is opened without opening its files.

    Parameters
    ----------
    directory : path
        Made when it does not exist.
    catalog : Catalog, optional
        By default a file in the folder.

    Notes
    -----
    Several processes may add at once. Whoever dies while adding leaves either nothing or a file without an entry,
    which the next one that looks enters. A folder that cannot be written is read as it is.
    """

    def __init__(self, directory: Path | str, catalog: Catalog | None = None) -> None:
        self.directory = Path(directory)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"corpus {self.directory}: {error}", "it must be writable") from error
        self.catalog: Catalog = catalog or FileCatalog(self.directory)
        self._known_frames = KnownFrames(self.directory)
        self._seen_only: dict[str, CatalogEntry] = {}  # of files in a folder that cannot be written

    def add(
        self, labels: LabelSet, *, regime: Mapping[str, Any] | None = None, acceptance: Mapping[str, Any] | None = None
    ) -> bool:
        """Add the labels of a run; adding the same run again changes nothing.

        Frames that the corpus has under another run (data that were ingested twice) are not stored a second time.

        Parameters
        ----------
        labels : LabelSet
        regime : mapping, optional
            What a model trained on them is for; JSON-able.
        acceptance : mapping, optional
            Verdict on the labels; JSON-able.

        Returns
        -------
        bool
            False when the run was there already.

        Raises
        ------
        InputError
            Labels without run or frames.
        StorageError
            The folder cannot be written, or the run's file is there with another run's labels.
        """
        if not labels.run_uid:
            raise InputError("labels without a run uid", "the corpus is kept by run", "set run_uid")
        if not len(labels):
            raise InputError(f"labels of {labels.run_uid}", "a label set holds at least one frame")
        stated = dict(regime or {}), dict(acceptance or {})
        description = {"regime": stated[0], "acceptance": stated[1]}
        with self._locked(f"adding {labels.run_uid}"):
            known = self._entries(locked=True)
            if labels.run_uid in {entry.run_uid for entry in known}:
                return False
            hashes = frame_hashes(labels)
            fresh = self._known_frames.fresh(hashes, known)
            if not fresh.any():
                owner = self._known_frames.owner(hashes[0], known)
                log.info("run %s holds the frames of run %s; they are not stored again", labels.run_uid, owner)
                entry = describe(labels, "", *stated, time.time(), owner)
                self.catalog.append(replace(entry, num_frames=0))
                return True
            if not fresh.all():
                log.info("run %s: %d frames are known and left out", labels.run_uid, np.count_nonzero(~fresh))
            kept = _rows_of(labels, np.flatnonzero(fresh))
            path = self._free_path(labels.run_uid)
            write_label_set(path, kept, description)
            self._note(describe(kept, path.name, *stated, time.time()), hashes[fresh])
        return True

    def set_regime(self, runs: Sequence[str], regime: Mapping[str, Any]) -> int:
        """Enter what runs are for, which is known only after their labels are there; the catalog gets new lines.

        Parameters
        ----------
        runs : sequence of str
            Those that the corpus does not have are passed over.
        regime : mapping
            See `add`.

        Returns
        -------
        int
            Runs of which it was not known.
        """
        wanted = set(runs)
        if all(entry.regime == regime for entry in self.entries() if entry.run_uid in wanted):
            return 0
        with self._locked("entering a regime"):
            found = [entry for entry in self._entries(locked=True) if entry.run_uid in wanted]
            changed = [entry for entry in found if entry.regime != regime]
            for entry in changed:
                self.catalog.append(replace(entry, regime=dict(regime)))
        return len(changed)

    def entries(self) -> list[CatalogEntry]:
        """What the catalog knows, in the order in which runs were added."""
        return self._entries()

    def runs(self) -> tuple[str, ...]:
        """Uids of the runs with frames of their own, in the order in which they were added."""
        return tuple(entry.run_uid for entry in self._entries() if entry.num_frames)

    def files(self) -> list[Path]:
        """Files of the runs, in the order in which they were added."""
        return [self.directory / entry.file for entry in self._entries() if entry.num_frames]

    def select(self, runs: Sequence[str] | None = None) -> list[CatalogEntry]:
        """Entries of runs (all by default) in the order given, each label set once.

        Raises
        ------
        InputError
            A run is not in the corpus.
        """
        entries = {entry.run_uid: entry for entry in self._entries()}
        if runs is None:
            return [entry for entry in entries.values() if entry.num_frames]
        found: dict[str, CatalogEntry] = {}
        for uid in runs:
            if uid not in entries:
                raise InputError(f"run {uid}", f"it has no labels in {self.directory}")
            entry = entries[entries[uid].duplicate_of or uid]
            found[entry.run_uid] = entry
        return list(found.values())

    def read(self, run_uid: str, rows: NDArray[np.int64] | None = None) -> LabelSet:
        """Labels of one run, or some frames of them."""
        entry = self.select([run_uid])[0]
        return read_label_set(self.directory / entry.file, rows)

    def load(
        self, runs: Sequence[str] | None = None, rows: Mapping[str, NDArray[np.int64]] | None = None
    ) -> TrainingArrays:
        """Join the labels of runs (all by default), in the order given; see `join_label_sets`.

        Parameters
        ----------
        runs : sequence of str, optional
        rows : mapping, optional
            Rows to read of some runs (`ptycho_bluesky.training.splits.rehearsal_rows`); of the others all.
        """
        chosen = [entry.run_uid for entry in self.select(runs)]
        wanted = {} if rows is None else rows
        return join_label_sets([self.read(uid, wanted.get(uid)) for uid in chosen])

    @contextmanager
    def _locked(self, purpose: str) -> Iterator[None]:
        """One process adds at a time."""
        try:
            with (self.directory / LOCK_FILE).open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                sweep(self.directory)
                yield
        except OSError as error:
            raise StorageError(
                f"corpus {self.directory}, {purpose}: {error}",
                "the folder must stay where it is, and be writable",
                "free space, change its mode, or name another folder",
            ) from error

    def _entries(self, *, locked: bool = False) -> list[CatalogEntry]:
        """Entries whose files are there; files without an entry are entered first."""
        present = {path.name for path in self.directory.glob("*.h5")}
        listed = self.catalog.entries()
        missing = present - {entry.file for entry in listed}
        if not missing:
            return _present(listed, present)
        if not locked:
            try:
                with self._locked("cataloguing"):
                    return self._entries(locked=True)
            except StorageError as error:  # who only reads need not write
                log.info("label sets are read that are in no catalog: %s", error)
                return _present([*listed, *self._unentered(missing)], present)
        for path in self._by_age(missing):
            self._note(*_described(path))
        return _present(self.catalog.entries(), present)

    def _by_age(self, names: Iterable[str]) -> list[Path]:
        return sorted((self.directory / name for name in names), key=_written_s)

    def _unentered(self, names: set[str]) -> list[CatalogEntry]:
        """Entries of files that no catalog takes; each file is looked at once."""
        for path in self._by_age(names - set(self._seen_only)):
            self._seen_only[path.name] = _described(path)[0]
        return [self._seen_only[name] for name in sorted(names)]

    def _note(self, entry: CatalogEntry, hashes: NDArray[np.uint64]) -> None:
        """Enter a file; hashes that are missing behind an entry are made up for."""
        self.catalog.append(entry)
        self._known_frames.append(hashes)

    def _free_path(self, run_uid: str) -> Path:
        """Path for the file of a new run; two runs never share one."""
        name = re.sub(r"[^A-Za-z0-9._-]", "_", run_uid)[:MAX_NAME]
        if name != run_uid:  # another uid may read like this
            name += "-" + hashlib.blake2b(run_uid.encode(errors="backslashreplace"), digest_size=4).hexdigest()
        path = self.directory / f"{name}.h5"
        if path.exists():
            raise StorageError(
                f"file {path} of run {run_uid}",
                "another run's labels are in it",
                "give it another name that ends in .h5; it is found by that",
            )
        return path


def _present(listed: Sequence[CatalogEntry], files: set[str]) -> list[CatalogEntry]:
    """Entries of these files, and of duplicates whose frames are in one of them, by age.

    Of two runs for one file, or two files for one run, the later one counts.
    """
    holder = {entry.file: entry.run_uid for entry in listed}
    stored = {entry.run_uid: entry for entry in listed if entry.file in files and holder[entry.file] == entry.run_uid}
    duplicates = {entry.run_uid: entry for entry in listed if entry.duplicate_of in stored}
    return sorted({**duplicates, **stored}.values(), key=lambda entry: entry.written_s)


def _rows_of(labels: LabelSet, rows: NDArray[np.int64]) -> LabelSet:
    if len(rows) == len(labels):
        return labels
    return replace(labels, **{name: np.asarray(getattr(labels, name))[rows] for name in COLUMNS})


def _described(path: Path) -> tuple[CatalogEntry, NDArray[np.uint64]]:
    """Entry and hashes of a file that has none in the catalog; of its frames a part is read."""
    with h5py.File(path, "r") as file:
        header = read_header(file)
        position_m = np.asarray(file["position_m"])
    part = read_label_set(path, np.arange(0, len(position_m), max(1, len(position_m) // COUNTED_FRAMES)))
    stated = {"regime": {}, "acceptance": {}, **header.get("description", {})}
    entry = describe(
        part, path.name, stated["regime"], stated["acceptance"], float(header["written_s"]), position_m=position_m
    )
    return entry, stored_hashes(path)


def _written_s(path: Path) -> float:
    try:
        with h5py.File(path, "r") as file:
            return float(read_header(file)["written_s"])
    except (OSError, KeyError) as error:
        raise InputError(
            f"label set {path}: {error}", "an HDF5 file written by this package is needed", "remove the file"
        ) from error
