from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest_workflow import make_settings

from ptycho_bluesky.config import Settings
from ptycho_bluesky.workflow.server import ServerProcess, start_server
from ptycho_bluesky.workflow.tiled_store import TiledStore


@pytest.fixture(scope="session")
def served(tmp_path_factory) -> tuple[Settings, ServerProcess]:
    settings = make_settings(tmp_path_factory.mktemp("workflow"))
    with start_server(settings) as process:
        yield settings, process


@pytest.fixture
def settings(served, tmp_path) -> Settings:
    """Settings on the shared server, with containers and directories of the test's own."""
    shared, _ = served
    tag = uuid.uuid4().hex[:8]
    own = shared.model_copy(deep=True)
    own.data_dir = tmp_path
    for name in ("raw", "results", "labels", "models", "decisions"):
        setattr(own.tiled, name, f"{name}_{tag}")
    return own


@pytest.fixture
def raw_dir(served) -> Path:
    """Where the shared server may read files."""
    return served[0].raw_dir


@pytest.fixture
def store(settings) -> Iterator[TiledStore]:
    with TiledStore.connect(settings.tiled) as opened:
        yield opened
