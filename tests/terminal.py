"""A program in a terminal of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pexpect.fdpexpect import fdspawn


@contextmanager
def python_in_terminal(arguments: list[str], environment: Mapping[str, str], timeout_s: float) -> Iterator[fdspawn]:
    """Python with these arguments; what is sent is typed, what it prints is expected, ``send("\\x03")`` interrupts.

    ``pexpect.spawn`` copies this process to start another. After runtimes of networks have run here with threads of
    their own, the copy ends with a segmentation fault before it becomes Python; `subprocess` starts without a copy.
    """
    ours, theirs = os.openpty()
    mode = termios.tcgetattr(theirs)
    mode[3] &= ~termios.ECHO
    termios.tcsetattr(theirs, termios.TCSANOW, mode)
    # a new session takes the first terminal that it opens for its own: the shell opens it, and becomes Python
    process = subprocess.Popen(
        ["sh", "-c", 'exec "$0" "$@" <"$TERMINAL" >"$TERMINAL" 2>&1', sys.executable, *arguments],
        env={**environment, "TERMINAL": os.ttyname(theirs)},
        start_new_session=True,
    )
    shell = fdspawn(ours, timeout=timeout_s, encoding="utf-8")
    try:
        # held open until the program has it: with no one at the other end, reading would end at once
        shell.expect(r".")
        os.close(theirs)
        theirs = -1
        yield shell
    finally:
        if theirs >= 0:
            os.close(theirs)
        if process.poll() is None:
            process.kill()
        process.wait(20)
        shell.close()
