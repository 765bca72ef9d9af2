"""What was found out about engines on this machine, kept between starts."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["EngineCache", "cache_directory", "cache_key", "processor"]

logger = logging.getLogger(__name__)

RUNTIMES = ("torch", "onnxruntime", "openvino", "nncf", "tensorrt", "ptycho_bluesky")


def cache_directory() -> Path:
    """Folder of this package under ``XDG_CACHE_HOME``, by default ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "ptycho_bluesky"


def processor() -> str:
    """Name and vector instructions of the processor: what decides which precision is fast."""
    text = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return text
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    vector = sorted(flag for flag in fields.get("flags", "").split() if flag.startswith(("avx", "amx", "fma")))
    return " ".join([fields.get("model name", text), *vector])


def cache_key(**content: Any) -> str:
    """Key of a finding: a hash of what it depends on, of the processor, and of the runtimes' versions."""
    found = {}
    for name in RUNTIMES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    text = json.dumps({**content, "processor": processor(), "versions": found}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class EngineCache:
    """A folder of findings: small JSON entries, and files beside them.

    Parameters
    ----------
    directory : path, optional
        By default `cache_directory`. It is made when something is stored. A cache that cannot be read or written is
        logged and does without: nothing depends on it but time.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = cache_directory() if directory is None else Path(directory)

    def get(self, key: str) -> dict[str, Any] | None:
        """Entry of a key; None when there is none, or it is damaged."""
        path = self.directory / f"{key}.json"
        try:
            content = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            logger.warning("cache entry %s is not used: %s", path, error)
            return None
        return content if isinstance(content, dict) else None

    def put(self, key: str, entry: Mapping[str, Any]) -> None:
        """Store an entry."""
        self._write(f"{key}.json", json.dumps(entry, sort_keys=True).encode())

    def get_file(self, name: str) -> bytes | None:
        """Content of a file beside the entries, None when it is not there."""
        try:
            return (self.directory / name).read_bytes()
        except OSError:
            return None

    def put_file(self, name: str, content: bytes) -> None:
        """Store a file."""
        self._write(name, content)

    def _write(self, name: str, content: bytes) -> None:
        temporary = self.directory / f".{name}.{os.getpid()}"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            temporary.replace(self.directory / name)
        except OSError as error:
            logger.warning("the cache %s cannot be written (%s): engines are measured again next time",
                           self.directory, error)  # fmt: skip
