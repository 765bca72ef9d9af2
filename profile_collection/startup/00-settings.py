"""Settings of the beamline: the YAML file that PTYCHO_BLUESKY_CONFIG names, the environment, or the defaults."""

from ptycho_bluesky.config import load_settings
from ptycho_bluesky.session import logs

logs.to_terminal()
settings = load_settings()
