"""What goes wrong in hardware while a scan runs."""

from __future__ import annotations

__all__ = ["HardwareError"]


class HardwareError(RuntimeError):
    """A device reports a fault, or does not do in time what it was told to."""
