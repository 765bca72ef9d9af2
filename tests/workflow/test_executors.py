"""One adapter a library: the same stages, chosen by name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ptycho_bluesky.config import WorkerSettings
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.workflow.compute import Compute
from ptycho_bluesky.workflow.executors import make_executor, stop_executor
from ptycho_bluesky.workflow.files import read_json, write_json


def check(executor, folder: Path) -> None:
    """What is submitted lives in the package, as stages do: the processes need not see the tests."""
    try:
        product = folder / "product.json"
        executor.submit(write_json, product, {"a": 1}).result(timeout=120)
        assert executor.submit(read_json, product).result(timeout=120) == {"a": 1}
        assert executor.submit(os.getpid).result(timeout=120) != os.getpid()
        product.write_text("{")
        with pytest.raises(InputError, match="must be JSON"):
            executor.submit(read_json, product).result(timeout=120)
        # The same call is computed again: what counts is its product.
        executor.submit(write_json, product, {"a": 1}).result(timeout=120)
        assert read_json(product) == {"a": 1}
    finally:
        stop_executor(executor, 5.0)


@pytest.mark.slow
def test_processes(tmp_path):
    check(make_executor(WorkerSettings(executor="processes", max_workers=1)), tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_dask(tmp_path):
    distributed = pytest.importorskip("distributed", reason="distributed is not installed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address=None, local_directory=str(tmp_path)
    ) as cluster:
        options = {"address": cluster.scheduler_address, "submit": {"retries": 1}}
        check(make_executor(WorkerSettings(executor="dask", executor_options=options)), tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_parsl(tmp_path):
    pytest.importorskip("parsl", reason="parsl is not installed")
    options = {
        "provider": "LocalProvider",
        "provider_options": {"init_blocks": 1, "max_blocks": 1},
        "executor_options": {"max_workers_per_node": 1, "address": "127.0.0.1", "loopback_address": "127.0.0.1"},
        "run_dir": str(tmp_path / "parsl"),
        "initialize_logging": False,
    }
    check(make_executor(WorkerSettings(executor="parsl", executor_options=options)), tmp_path)


def test_unknown_options_are_named():
    pytest.importorskip("parsl", reason="parsl is not installed")
    with pytest.raises(InputError, match="walltime"):
        make_executor(WorkerSettings(executor="parsl", executor_options={"walltime": "1:00"}))
    with pytest.raises(InputError, match="NoSuchProvider"):
        make_executor(WorkerSettings(executor="parsl", executor_options={"provider": "NoSuchProvider"}))


def test_globus_needs_an_endpoint():
    with pytest.raises(InputError, match=r"endpoint_id|pip install 'globus-compute-sdk'"):
        make_executor(WorkerSettings(executor="globus"))


@pytest.mark.slow
def test_a_broken_pool_is_replaced():
    compute = Compute(lambda: make_executor(WorkerSettings(executor="processes", max_workers=1)))
    try:
        with pytest.raises(Exception, match="terminated abruptly"):
            compute.submit(os._exit, 1).result(timeout=60)
        assert compute.submit(os.getpid).result(timeout=60) != os.getpid()
        assert compute.replaced == 1
    finally:
        compute.stop(2.0)
    with pytest.raises(RuntimeError, match="stopped"):
        compute.submit(os.getpid)
