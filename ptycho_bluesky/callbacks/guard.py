"""Callbacks that may fail without ending a scan."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

__all__ = ["Guarded"]

logger = logging.getLogger(__name__)


class Guarded:
    """Calls a callback; a failure is logged once a run and never reaches the RunEngine.

    Parameters
    ----------
    callback : callable
        Takes ``(name, doc)``.
    what : str
        For the message.
    remedy : str
        What the user can do about a failure.
    """

    def __init__(self, callback: Callable[[str, dict[str, Any]], Any], what: str, remedy: str = "") -> None:
        self.callback, self.what, self.remedy = callback, what, remedy
        self._failed = False
        self.failures = 0

    def __call__(self, name: str, doc: dict[str, Any]) -> None:
        """Pass the document on."""
        if name == "start":
            self._failed = False
        try:
            self.callback(name, doc)
        except Exception as error:  # boundary to the RunEngine: an exception here would abort the scan
            self.failures += 1
            if not self._failed:
                self._failed = True
                logger.exception("%s failed (%s); the scan goes on. %s", self.what, error, self.remedy)
