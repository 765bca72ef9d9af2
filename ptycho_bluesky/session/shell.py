"""Starting a session in a terminal: interactively in IPython, or for one script."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from ptycho_bluesky.config import Settings
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.session.builder import make_session
from ptycho_bluesky.session.session import Session

__all__ = ["banner", "enable_plots", "run_code", "run_shell"]

logger = logging.getLogger(__name__)


def banner(session: Session) -> str:
    """What a person who has just opened a session wants to know."""
    lines = [
        f"ptycho_bluesky session on {session.settings.epics.prefix}* ({session.settings.epics.control_layer})",
        "RE, stage, detector, flyer, shutter, attenuator, energy, i0, fly_spiral, spiral; c (Tiled), db (runs)",
        "e.g. RE(fly_spiral(num_points=963, step_m=50e-9, exposure_s=0.4e-3, period_s=0.5e-3))",
    ]
    if session.client is None:
        lines.append("Tiled is away: c and db are None; documents are in the journal and go in later")
    return "\n".join(lines)


def enable_plots(shell: Any) -> None:
    """Let IPython run the event loop of matplotlib's windows, where there is a display."""
    if "MPLBACKEND" in os.environ or not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return
    try:
        shell.enable_matplotlib()
    except Exception:  # boundary: a backend that does not import; scans need none
        logger.exception("no interactive plots")


def run_code(settings: Settings, *, script: Path | None, code: str | None, live_plot: bool) -> None:
    """Run a script, then code, in the namespace of a session; an exception passes through.

    Parameters
    ----------
    settings : Settings
    script : path or None
    code : str or None
    live_plot : bool

    Raises
    ------
    InputError
        The script cannot be read.
    """
    pieces: list[CodeType] = []
    if script is not None:
        try:
            pieces.append(compile(script.read_text(), str(script), "exec"))
        except (OSError, SyntaxError) as error:
            raise InputError(f"script {script}: {error}", "it must be a readable Python file") from error
    if code is not None:
        try:
            pieces.append(compile(code, "<code>", "exec"))
        except SyntaxError as error:
            raise InputError(f"code: {error}", "it must be Python") from error
    session = make_session(settings, live_plot=live_plot)
    namespace = {**session.namespace(), "__name__": "__main__"}
    try:
        with _end_on_sigterm(session):
            for piece in pieces:
                exec(piece, namespace)
    finally:
        session.close()


@contextmanager
def _end_on_sigterm(session: Session) -> Iterator[None]:
    """End a scan cleanly when the process is told to end: the run is stopped as by a user, hardware safe."""

    def end(number: int, frame: FrameType | None) -> None:
        del number, frame
        logger.warning("told to end")
        if session.RE.state != "idle":
            # not here: the RunEngine waits for its loop, which may wait for this thread
            threading.Thread(target=session.RE.abort, args=("the process was told to end",), daemon=True).start()
        else:
            raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_shell(settings: Settings, *, live_plot: bool) -> None:
    """Open IPython with the session's names.

    Raises
    ------
    InputError
        IPython is not installed.
    """
    try:
        from IPython.terminal.ipapp import TerminalIPythonApp
    except ImportError as error:
        raise InputError(
            "IPython is not installed", "an interactive session needs it", 'pip install "ptycho_bluesky[session]"'
        ) from error
    session = make_session(settings, live_plot=live_plot)
    try:
        application = TerminalIPythonApp.instance()
        application.display_banner = False
        application.initialize(argv=[])
        shell = application.shell
        assert shell is not None  # made by initialize
        shell.user_ns.update(session.namespace())
        enable_plots(shell)
        sys.stdout.write(banner(session) + "\n")
        application.start()
    finally:
        session.close()
