"""RunEngine, devices, plans, live plot and Tiled client under the names that scans use."""

from ptycho_bluesky.session import make_session
from ptycho_bluesky.session.shell import banner, enable_plots

enable_plots(get_ipython())  # noqa: F821
session = make_session(settings)  # noqa: F821
globals().update(session.namespace())
