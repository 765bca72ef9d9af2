"""Which frames a corpus holds already: their hashes in one file, so that no label set is opened to tell."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError, StorageError
from ptycho_bluesky.training.catalog import CatalogEntry
from ptycho_bluesky.training.label_files import stored_hashes

__all__ = ["KnownFrames"]

log = logging.getLogger(__name__)

HASH_FILE = "frames.u64"
HASH_BYTES = 8
LOW_BITS = np.uint64(2**20 - 1)
"""Bits of a hash by which the many known ones are sifted; a table over them stays in the processor's cache."""


class KnownFrames:
    """Hashes of the frames of a corpus. Only who holds the lock of the corpus may use it.

    Parameters
    ----------
    directory : path
        Folder of the corpus.

    Notes
    -----
    The file repeats what the label sets say of themselves. It is made anew from them wherever it does not hold as many
    hashes as the catalog counts frames: it was deleted, a writer died, or a label set was removed.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / HASH_FILE

    def fresh(self, hashes: NDArray[np.uint64], entries: Sequence[CatalogEntry]) -> NDArray[np.bool_]:
        """Which frames are new: neither in the corpus, nor twice in this set.

        Parameters
        ----------
        hashes : ndarray of uint64, shape (n,)
        entries : sequence of CatalogEntry
            Of the label sets that are there.

        Raises
        ------
        InputError
            The hashes are gone, and a label set that tells them is damaged.
        StorageError
            They cannot be written.
        """
        first = np.zeros(len(hashes), dtype=np.bool_)
        first[np.unique(hashes, return_index=True)[1]] = True
        return first & ~_is_known(hashes, self._known(entries))

    def append(self, hashes: NDArray[np.uint64]) -> None:
        """Note the frames of a new label set.

        Raises
        ------
        StorageError
            The file cannot be written.
        """
        try:
            with self.path.open("ab") as file:
                # what a writer left that died within a hash would shift all that follow
                file.truncate(file.tell() // HASH_BYTES * HASH_BYTES)
                file.write(hashes.astype("<u8").tobytes())
        except OSError as error:
            raise StorageError(
                f"hashes {self.path}: {error}", "it must be writable", "free space or name another folder"
            ) from error

    def owner(self, frame: np.uint64, entries: Sequence[CatalogEntry]) -> str:
        """Run that holds a frame; looked up only where a whole run is known already.

        Raises
        ------
        InputError
            None does.
        """
        for entry in reversed(entries):
            if entry.num_frames and (stored_hashes(self.directory / entry.file) == frame).any():
                return entry.run_uid
        raise InputError(
            f"corpus {self.directory}", "the hashes of its frames belong to its files",
            f"delete {HASH_FILE}; it is made anew",
        )  # fmt: skip

    def _known(self, entries: Sequence[CatalogEntry]) -> NDArray[np.uint64]:
        """All hashes, from the file where it can be right, else from the label sets."""
        expected = HASH_BYTES * sum(entry.num_frames for entry in entries)
        found = self.path.stat().st_size if self.path.exists() else 0
        if found == expected:
            return np.fromfile(self.path, dtype="<u8") if found else np.zeros(0, "<u8")
        log.info("%s has %d bytes where %d belong; it is made anew", self.path, found, expected)
        files = [self.directory / entry.file for entry in entries if entry.num_frames]
        known = np.concatenate([np.zeros(0, "<u8"), *map(stored_hashes, files)]).astype("<u8", copy=False)
        temporary = self.path.with_name(f".{HASH_FILE}.{time.time_ns()}")
        try:
            temporary.write_bytes(known.tobytes())
            temporary.replace(self.path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise StorageError(
                f"hashes {self.path}: {error}", "it must be writable", "free space or name another folder"
            ) from error
        return known


def _is_known(hashes: NDArray[np.uint64], known: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which hashes are among millions: `numpy.isin` would sort these, of which a table leaves few to sort."""
    sought = np.zeros(int(LOW_BITS) + 1, dtype=np.bool_)
    sought[hashes & LOW_BITS] = True
    return np.isin(hashes, known[sought[known & LOW_BITS]])
