"""Free ports for every server of the test session, set before anything imports an EPICS client."""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from ptycho_bluesky.config import EpicsSettings

pytest_plugins = ["beamline_fixtures"]

# The same examples on every machine; HYPOTHESIS_PROFILE=explore draws new ones, to look for what they miss.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


def find_free_ports(count: int) -> list[int]:
    """Ports that are free for TCP and UDP on loopback."""
    ports: list[int] = []
    while len(ports) < count:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        ):
            tcp.bind(("127.0.0.1", 0))
            port = tcp.getsockname()[1]
            try:
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            if port not in ports:
                ports.append(port)
    return ports


_ca, _repeater, _pva, _broadcast = find_free_ports(4)
EPICS = EpicsSettings(
    prefix=f"T{os.getpid()}:",
    ca_server_port=_ca,
    ca_repeater_port=_repeater,
    pva_server_port=_pva,
    pva_broadcast_port=_broadcast,
)
EPICS.apply()
os.environ.setdefault("MPLBACKEND", "Agg")
# Choices of engines of another day must not decide what a test runs.
_cache = tempfile.TemporaryDirectory(prefix="ptycho-test-cache-")
os.environ["XDG_CACHE_HOME"] = _cache.name


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: two processes share the files, and one should not end with minutes of them."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def process_settings() -> Iterator[None]:
    """Put back what a command sets for a process of its own: here it runs in ours, and the next client would search
    on the ports of a real beamline."""
    environment = dict(os.environ)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    on_signal = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    os.environ.clear()
    os.environ.update(environment)
    root.handlers[:] = handlers
    root.setLevel(level)
    for number, handler in on_signal.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def epics_settings() -> EpicsSettings:
    """Ports and prefix of this test session; child processes inherit the environment."""
    return EPICS


@pytest.fixture
def free_ports():
    return find_free_ports


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real measured data; the test skips where it is not at hand."""
    folder = Path(os.environ.get("PTYCHO_BLUESKY_TEST_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))
    if not (folder / "siemens-star-small.npz.bz2").exists():
        pytest.skip(f"real data not found in {folder}; name their folder in PTYCHO_BLUESKY_TEST_DATA")
    return folder
