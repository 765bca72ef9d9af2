"""Errors that name the value, the rule it breaks and the remedy."""

from __future__ import annotations

__all__ = ["InputError", "StorageError", "UnreachableError"]


class InputError(ValueError):
    """A value that cannot be worked with.

    Parameters
    ----------
    what : str
        The offending value, with its name and unit.
    rule : str
        The rule that it breaks.
    remedy : str
        What the user can do about it.
    """

    def __init__(self, what: str, rule: str = "", remedy: str = "") -> None:
        self.what, self.rule, self.remedy = what, rule, remedy
        parts = [what, rule, f"Remedy: {remedy}" if remedy else ""]
        super().__init__(". ".join(part.rstrip(".") for part in parts if part) + ".")


class StorageError(InputError):
    """A disk that is full or a directory that cannot be written."""


class UnreachableError(InputError):
    """A server or process variable that does not answer."""
