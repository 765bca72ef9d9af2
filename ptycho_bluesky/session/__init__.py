"""What a person (or a script) scans with: RunEngine, devices, plans, journal, publisher, live plot, Tiled client."""

from ptycho_bluesky.session.builder import make_session
from ptycho_bluesky.session.session import Session

__all__ = ["Session", "make_session"]
