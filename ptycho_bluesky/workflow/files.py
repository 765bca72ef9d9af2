"""Small files that survive a crash: written whole or not at all, and a lock that one process holds."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ptycho_bluesky.errors import InputError, StorageError

__all__ = ["exclusive", "read_json", "write_bytes", "write_json"]


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: under another name first, then renamed.

    Raises
    ------
    StorageError
        The disk is full or the directory cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise StorageError(
            f"{path}: {error}", "it must be writable", "free disk space or name another folder"
        ) from error


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all; raises `StorageError` as `write_bytes` does."""
    write_bytes(path, json.dumps(content, indent=1).encode())


def read_json(path: Path, default: Any = None) -> Any:
    """Read JSON; the default where there is no file.

    Raises
    ------
    InputError
        The file is no JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return default
    except ValueError as error:
        raise InputError(f"{path}: {error}", "it must be JSON", "remove it to start afresh") from error


@contextlib.contextmanager
def exclusive(folder: Path, role: str) -> Iterator[None]:
    """Hold a lock on a folder, so that two processes never do one job; it goes with the process that holds it.

    Raises
    ------
    InputError
        Another process holds it.
    StorageError
        The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("a+")
    except OSError as error:
        raise StorageError(f"{folder}: {error}", "it must be writable", "name another --data-dir") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise InputError(
                f"a {role} for {folder} runs already (process {file.read().strip() or 'unknown'})",
                "one is enough, two would do everything twice",
                "stop it first, or give this one another --data-dir",
            ) from error
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield
