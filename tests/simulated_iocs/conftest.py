"""One beamline with a test pattern serves most tests; each test finds it reset."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from ioc_harness import Client, Ioc, running


@pytest.fixture(scope="session")
def ca_context(epics_settings) -> Iterator:
    """A Channel Access client of this process, with a repeater that ends with it."""
    from caproto.threading.client import Context

    # Without one that we start, the client would leave a repeater behind for ever.
    repeater = subprocess.Popen(
        [sys.executable, "-m", "caproto.commandline.repeater", "-q"],
        env=dict(os.environ),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    context = Context()
    yield context
    context.disconnect()
    repeater.terminate()
    repeater.wait(10)


@pytest.fixture(scope="session")
def beamline(epics_settings) -> Iterator[Ioc]:
    prefix = f"{epics_settings.prefix}IOC:"
    with running("--sample", "pattern", epics=epics_settings, prefix=prefix) as ioc:
        yield ioc


@pytest.fixture
def client(beamline, ca_context) -> Iterator[Client]:
    client = Client(beamline.prefix, ca_context)
    client.reset()
    yield client
    client.reset()
