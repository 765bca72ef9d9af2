"""The curve of a training as a table and for TensorBoard, complete after a kill and a resumption too."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from ptycho_bluesky.errors import StorageError

__all__ = ["COLUMNS", "CurveLog", "holds_curve"]

log = logging.getLogger(__name__)

COLUMNS = ("frames", "loss_rad", "learning_rate", "validation_rad")
"""Frame-updates so far; mean training loss since the last line; learning rate; validation loss where it was taken."""


CURVE_FILE = "curve.csv"


def holds_curve(directory: Path | str) -> bool:
    """Whether a folder has a curve with at least one point."""
    path = Path(directory) / CURVE_FILE
    return path.is_file() and path.stat().st_size > len(_line(COLUMNS))


class CurveLog:
    """Writes points to ``curve.csv`` and to TensorBoard's event files in a folder.

    Parameters
    ----------
    directory : path
    points : list of tuple
        Points of a training that is resumed: the table is written anew with them, so that it holds none twice.

    Raises
    ------
    StorageError
        The folder cannot be written.
    """

    def __init__(self, directory: Path | str, points: list[tuple[float, ...]]) -> None:
        self.path = Path(directory) / CURVE_FILE
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text("".join(map(_line, (COLUMNS, *points))))
        except OSError as error:
            raise self._unwritable(error) from error
        self._events = _event_writer(self.path.parent, int(points[-1][0]) + 1 if points else 0)

    def add(self, point: tuple[float, ...]) -> None:
        """Append a point with the values of `COLUMNS`."""
        try:
            with self.path.open("a") as file:
                file.write(_line(point))
        except OSError as error:
            raise self._unwritable(error) from error
        if self._events is not None:
            for name, value in zip(COLUMNS[1:], point[1:], strict=True):
                if not math.isnan(value):  # NaN: not taken at this point
                    self._events.add_scalar(name, value, int(point[0]))

    def close(self) -> None:
        """Write what TensorBoard has not yet."""
        if self._events is not None:
            self._events.close()

    def _unwritable(self, error: OSError) -> StorageError:
        return StorageError(f"curve {self.path}: {error}", "free space or name another folder")


def _line(values: tuple[Any, ...]) -> str:
    return ",".join(value if isinstance(value, str) else f"{value:.9g}" for value in values) + "\n"


def _event_writer(directory: Path, first_step: int) -> Any:
    """TensorBoard's writer, which forgets what an interrupted training wrote beyond its checkpoint; None without it."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.info("TensorBoard is not installed: the curve is in %s/%s alone", directory, CURVE_FILE)
        return None
    return SummaryWriter(str(directory), purge_step=first_step)
