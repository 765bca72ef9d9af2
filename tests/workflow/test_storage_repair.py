"""A server that died between an array's folder and its entry in the catalogue must not stand in its way for ever."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from conftest_workflow import make_settings

from ptycho_bluesky.workflow.server import start_server
from ptycho_bluesky.workflow.storage_repair import set_orphans_aside
from ptycho_bluesky.workflow.tiled_store import TiledStore


@pytest.mark.slow
def test_an_array_begun_by_a_dead_server_can_be_written(tmp_path):
    settings = make_settings(tmp_path)
    arrays = settings.tiled_dir / "arrays"
    with start_server(settings) as server:
        with TiledStore.connect(settings.tiled) as store:
            store.raw.create_container("some_run").write_array(np.arange(5.0), key="whole")
        server.kill()
        begun = arrays / settings.tiled.raw / "some_run" / "begun"
        shutil.copytree(begun.with_name("whole"), begun)
        server.start()
        assert not begun.exists()
        assert len(list((settings.tiled_dir / "orphans").rglob("begun"))) == 1
        with TiledStore.connect(settings.tiled) as store:
            run = store.raw["some_run"]
            run.write_array(np.arange(3.0), key="begun")
            np.testing.assert_array_equal(run["begun"].read(), np.arange(3.0))
            np.testing.assert_array_equal(run["whole"].read(), np.arange(5.0))
        assert server.stop() == 0


def test_a_new_folder_has_nothing_to_repair(tmp_path):
    assert set_orphans_aside(tmp_path) == []
    (tmp_path / "arrays").mkdir()
    (tmp_path / "catalog.db").touch()
    assert set_orphans_aside(tmp_path) == []
