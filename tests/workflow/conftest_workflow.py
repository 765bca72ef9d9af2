"""Settings of one installation in a folder, on free ports."""

from __future__ import annotations

from pathlib import Path

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
