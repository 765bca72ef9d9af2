"""A server that died between an array's folder and its entry in the catalogue must not stand in its way for ever."""

from __future__ import annotations

import shutil
from contextlib import contextmanager

import numpy as np
import pytest
from conftest_workflow import make_settings
from tiled.client import from_uri

from ptycho_bluesky.workflow.server import start_server
from ptycho_bluesky.workflow.storage_repair import set_orphans_aside


@contextmanager
def opened(settings):
    """The server's root as any client sees it."""
    root = from_uri(settings.tiled.uri, api_key=settings.tiled.api_key.get_secret_value())
    yield root
    root.context.close()


@pytest.mark.slow
def test_an_array_begun_by_a_dead_server_can_be_written(tmp_path):
    settings = make_settings(tmp_path)
    with start_server(settings) as server:
        with opened(settings) as root:
            root.create_container("box").write_array(np.arange(5.0), key="whole")
        server.kill()
        begun = settings.tiled_dir / "arrays" / "box" / "begun"
        shutil.copytree(begun.with_name("whole"), begun)
        server.start()
        assert not begun.exists()
        assert len(list((settings.tiled_dir / "orphans").rglob("begun"))) == 1
        with opened(settings) as root:
            root["box"].write_array(np.arange(3.0), key="begun")
            np.testing.assert_array_equal(root["box/begun"].read(), np.arange(3.0))
            np.testing.assert_array_equal(root["box/whole"].read(), np.arange(5.0))
        assert server.stop() == 0


def test_a_new_folder_has_nothing_to_repair(tmp_path):
    assert set_orphans_aside(tmp_path) == []
    (tmp_path / "arrays").mkdir()
    (tmp_path / "catalog.db").touch()
    assert set_orphans_aside(tmp_path) == []
