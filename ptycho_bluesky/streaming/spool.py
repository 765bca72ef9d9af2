"""Final results on local disk: written whole or not at all, kept until the store has them."""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ptycho_bluesky.errors import InputError, StorageError
from ptycho_bluesky.geometry import Geometry, ObjectFrame
from ptycho_bluesky.records import FrameCounts, Mosaic
from ptycho_bluesky.streaming.core import RunResult

__all__ = ["Spool"]

ARRAYS = ("phase_rad", "weight", "coverage", "variance")


class Spool:
    """A folder with one ``.npz`` file for each result that still has to be stored elsewhere.

    Parameters
    ----------
    directory : path
        It is made when it is needed.
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory)

    def path(self, uid: str) -> Path:
        """File of a run's result."""
        return self.directory / f"{uid}.npz"

    def uids(self) -> list[str]:
        """Runs whose results lie here, oldest first."""
        if not self.directory.is_dir():
            return []
        files = sorted(self.directory.glob("*.npz"), key=lambda path: path.stat().st_mtime)
        return [path.stem for path in files]

    def write(self, result: RunResult) -> Path:
        """Write a result.

        Raises
        ------
        StorageError
            The disk is full or the folder cannot be written.
        """
        mosaic = result.mosaic
        header = {
            "run_uid": mosaic.run_uid,
            "frame": mosaic.frame.as_dict(),
            "model_ids": list(mosaic.model_ids),
            "counts": result.counts.as_dict(),
            "geometry": None if result.geometry is None else asdict(result.geometry),
            "complete": result.complete,
            "metadata": result.metadata,
        }
        arrays: dict[str, Any] = {name: getattr(mosaic, name) for name in ARRAYS}
        arrays |= {f"map.{name}": array for name, array in mosaic.maps.items()}
        arrays |= {f"log.{name}": column for name, column in mosaic.frame_log.items()}
        arrays["header"] = np.frombuffer(json.dumps(header, default=str).encode(), dtype=np.uint8)
        path = self.path(mosaic.run_uid)
        part = path.with_suffix(".part")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                np.savez(file, **arrays)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError as error:
            raise StorageError(f"{path}: {error}", "the edge's folder must be writable", "free space there") from error
        return path

    def read(self, uid: str) -> RunResult:
        """Read a result.

        Raises
        ------
        InputError
            There is none, or the file is damaged.
        """
        path = self.path(uid)
        try:
            with np.load(path, allow_pickle=False) as content:
                header = json.loads(bytes(content["header"]))
                arrays = {name: content[name] for name in content.files if name != "header"}
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise InputError(f"{path}: {error}", "it must be a result of the edge") from error
        mosaic = Mosaic(
            **{name: arrays[name] for name in ARRAYS},
            frame=ObjectFrame.from_dict(header["frame"]),
            run_uid=header["run_uid"],
            frame_log=_part(arrays, "log."),
            model_ids=tuple(header["model_ids"]),
            maps=_part(arrays, "map."),
        )
        geometry = Geometry.from_dict(header["geometry"])
        return RunResult(mosaic, FrameCounts(**header["counts"]), geometry, header["complete"], header["metadata"])

    def remove(self, uid: str) -> None:
        """Remove a result that is stored elsewhere."""
        self.path(uid).unlink(missing_ok=True)

    def set_aside(self, uid: str) -> None:
        """Rename a damaged file so that it is not tried again."""
        path = self.path(uid)
        if path.exists():
            path.replace(path.with_suffix(".damaged"))


def _part(arrays: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
