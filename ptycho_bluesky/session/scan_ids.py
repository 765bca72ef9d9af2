"""Scan numbers that go on from session to session."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

__all__ = ["ScanIds"]

logger = logging.getLogger(__name__)


class ScanIds:
    """Source of scan numbers for a RunEngine, kept in a small file.

    Parameters
    ----------
    path : path
        Text file with the last number; a file that cannot be read or written is logged, numbers then count from 1 in
        this session.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last = 0

    def __call__(self, md: MutableMapping[str, Any]) -> int:
        """Next number."""
        try:
            self._last = max(self._last, int(self.path.read_text()))
        except FileNotFoundError:
            logger.debug("%s: first scan", self.path)
        except (OSError, ValueError) as error:
            logger.warning("scan numbers: %s", error)
        self._last += 1
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(str(self._last))
        except OSError as error:
            logger.warning("scan numbers: %s", error)
        return self._last
