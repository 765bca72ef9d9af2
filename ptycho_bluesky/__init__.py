"""Live ptychographic imaging for Bluesky beamlines."""

from ptycho_bluesky._version import __version__

__all__ = ["__version__"]
