"""Checkpoints of a training, so that one that was stopped goes on where it was."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch

from ptycho_bluesky.errors import StorageError

__all__ = ["Checkpoint"]

log = logging.getLogger(__name__)


class Checkpoint:
    """One file that holds the state of one training.

    Parameters
    ----------
    directory : path
        Made when it does not exist.
    fingerprint : str
        What is being trained (corpus, options, parent); a checkpoint of something else is not resumed.
    """

    def __init__(self, directory: Path | str, fingerprint: str) -> None:
        self.path = Path(directory) / "training.pt"
        self.fingerprint = fingerprint

    def save(self, state: dict[str, Any]) -> None:
        """Write the state; the file appears whole or not at all.

        Raises
        ------
        StorageError
            The folder cannot be written.
        """
        temporary = self.path.with_name(f".training.{os.getpid()}.pt")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torch.save({**state, "fingerprint": self.fingerprint}, temporary)
            temporary.replace(self.path)
        except (OSError, RuntimeError) as error:
            temporary.unlink(missing_ok=True)
            raise StorageError(f"checkpoint {self.path}: {error}", "free space or name another folder") from error

    def load(self) -> dict[str, Any] | None:
        """State to go on from; None when there is none of this training, or it is damaged (logged)."""
        if not self.path.exists():
            return None
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # noqa: BLE001 - a damaged file raises whatever its bytes provoke
            log.warning("checkpoint %s cannot be read (%s); training starts from its beginning", self.path, error)
            return None
        if state.get("fingerprint") != self.fingerprint:
            log.info("checkpoint %s belongs to another training; this one starts from its beginning", self.path)
            return None
        return state

    def remove(self) -> None:
        """Delete the file, when its training has ended."""
        self.path.unlink(missing_ok=True)
