"""A scan whose file is still being written, read piece by piece."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.io.area_detector import FRAMES, NO_ID, UNIQUE_ID, num_rows
from ptycho_bluesky.io.hdf5 import dataset, has_dataset, is_unclosed, open_file
from ptycho_bluesky.io.measurement import read_measurement
from ptycho_bluesky.records import Measurement

__all__ = ["GrowingFile"]


class GrowingFile:
    """What comes to an areaDetector file, from one look to the next.

    Parameters
    ----------
    path : path
        It need not be there yet.
    **how
        Arguments of `ptycho_bluesky.io.read_measurement`, except limit and rows.

    Attributes
    ----------
    ended : bool
        Whether the writer has closed the file and everything in it was given out.

    Notes
    -----
    A row counts when all its columns are flushed. Rows that were made but never written are passed over as soon as a
    later one is there.
    """

    def __init__(self, path: str | Path, **how: Any) -> None:
        self._path, self._how, self._next_row = Path(path), how, 0
        self.ended = False

    def new(self) -> Measurement | None:
        """Frames that came since the last look, None where none did.

        Raises
        ------
        InputError
            The file is no areaDetector file, or cannot be read; one that is not there yet, or whose writer has not got
            to its frames, is waited for.
        """
        if not self._path.exists():
            return None
        # Asked before the rows: what comes between the two is there at the next look.
        closed = not is_unclosed(self._path)
        if not self._has_more(closed):
            self.ended = closed
            return None
        found = read_measurement(self._path, first_row=self._next_row, all_placed=False, **self._how)
        self._next_row = int(found.metadata["next_row"])
        return found

    def _has_more(self, closed: bool) -> bool:
        try:
            with open_file(self._path) as file:
                if closed and not has_dataset(file, FRAMES):
                    raise InputError(
                        f"{self._path} has no {FRAMES}", "only an areaDetector file grows", "read it whole"
                    )
                ids = dataset(file, UNIQUE_ID)[self._next_row : num_rows(file)]
                return bool((ids != NO_ID).any())
        except InputError:
            if closed:
                raise
            # Its writer is still laying it out.
            return False
