"""Settings of one installation in a folder, on free ports."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ptycho_bluesky.config import Settings
from ptycho_bluesky.demo.processes import free_ports


def make_settings(folder: Path, **options) -> Settings:
    tiled_port, publish, subscribe = free_ports(3)
    return Settings(
        data_dir=folder,
        tiled={"uri": f"http://127.0.0.1:{tiled_port}", "api_key": "testsecret", "timeout_s": 20.0},
        zmq={"publish": f"127.0.0.1:{publish}", "subscribe": f"127.0.0.1:{subscribe}"},
        **options,
    )


def wait_for(condition: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return found
