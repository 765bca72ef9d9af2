"""One adapter a library: the same stages, chosen by name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest_workflow import wait_for
from test_worker import QuickStages, put_run

from ptycho_bluesky.config import WorkerSettings
from ptycho_bluesky.demo.processes import free_ports
from ptycho_bluesky.errors import InputError, UnreachableError
from ptycho_bluesky.workflow.compute import Compute
from ptycho_bluesky.workflow.executors import make_executor, stop_executor, why_broken
from ptycho_bluesky.workflow.files import read_json, write_json
from ptycho_bluesky.workflow.worker import Worker


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


def parsl_settings(folder: Path) -> WorkerSettings:
    pytest.importorskip("parsl", reason="parsl is not installed")
    options = {
        "provider": "LocalProvider",
        # The stages of the tests are found beside them.
        "provider_options": {
            "init_blocks": 1,
            "max_blocks": 1,
            "worker_init": f"export PYTHONPATH={Path(__file__).parent}:$PYTHONPATH",
        },
        "executor_options": {"max_workers_per_node": 1, "address": "127.0.0.1", "loopback_address": "127.0.0.1"},
        "run_dir": str(folder / "parsl"),
        "initialize_logging": False,
    }
    return WorkerSettings(executor="parsl", executor_options=options)


def never() -> None:
    """Nothing gives these calls up."""


def processes_of(folder: Path) -> list[int]:
    """Processes that name a folder on their command line or were begun in it, beside this one."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(folder).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


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
    check(make_executor(parsl_settings(tmp_path)), tmp_path)


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


def work_on_a_run(settings, executor: WorkerSettings, store, raw_dir: Path, log: Path) -> None:
    """One run through every stage of a worker."""
    settings.worker.executor, settings.worker.executor_options = executor.executor, executor.executor_options
    settings.worker.min_frames = 10
    scan, stages = put_run(store, raw_dir), QuickStages(log)
    Worker(settings, stages).run(threading.Event(), once=True)
    decision = store.decision(scan.uid)
    assert decision["outcome"] == "promoted", decision["reason"]
    assert stages.calls(scan.uid) == ["reconstruct", "label", "validate", "train", "gate"]
    assert store.model_store.serving().model_id == decision["model_id"]
    assert len(store.read_labels(scan.uid)) == 24


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_worker_on_dask(settings, store, raw_dir, tmp_path):
    distributed = pytest.importorskip("distributed", reason="distributed is not installed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address=None, local_directory=str(tmp_path)
    ) as cluster:
        executor = WorkerSettings(executor="dask", executor_options={"address": cluster.scheduler_address})
        work_on_a_run(settings, executor, store, raw_dir, tmp_path / "calls.txt")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_worker_on_parsl(settings, store, raw_dir, tmp_path):
    work_on_a_run(settings, parsl_settings(tmp_path), store, raw_dir, tmp_path / "calls.txt")
    wait_for(lambda: not processes_of(tmp_path / "parsl"), 30)


@contextmanager
def dask_processes(port: int, folder: Path) -> Iterator[None]:
    """A scheduler and one process that computes; both are killed without warning."""
    python, quiet = [sys.executable, "-m"], {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    scheduler = ["distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]
    worker = ["distributed.cli.dask_worker", f"tcp://127.0.0.1:{port}", "--nthreads", "1", "--no-nanny"]
    processes = [
        subprocess.Popen([*python, *arguments], **quiet) for arguments in (scheduler, [*worker, "--no-dashboard"])
    ]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait(10)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_scheduler_that_was_killed_is_waited_for(tmp_path):
    pytest.importorskip("distributed", reason="distributed is not installed")
    (port,) = free_ports(1)
    options = {"address": f"127.0.0.1:{port}", "timeout": 2}
    # The worker may be started before the scheduler is.
    compute = Compute(lambda: make_executor(WorkerSettings(executor="dask", executor_options=options)))
    try:
        with pytest.raises(UnreachableError, match="the executor is away"):
            compute.submit(os.getpid).result(timeout=30)
        with dask_processes(port, tmp_path):
            first = compute.result(compute.submit(os.getpid), never)
            assert first != os.getpid()
            before = compute.replaced
            begun, ended = tmp_path / "begun", threading.Event()
            stage = compute.submit(subprocess.run, ["sh", "-c", f"echo >> {begun}; sleep 3"])
            results: list[Any] = []

            def wait() -> None:
                results.append(compute.result(stage, never))
                ended.set()

            thread = threading.Thread(target=wait)
            thread.start()
            wait_for(begun.exists)
        time.sleep(4.0)  # longer than the client tries by itself
        assert not ended.is_set()
        with pytest.raises(UnreachableError, match="the executor is away"):
            compute.submit(os.getpid).result(timeout=30)

        def tired() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            compute.result(compute.submit(os.getpid), tired)
        with dask_processes(port, tmp_path):
            thread.join(90)
            # In the same call, so no attempt of the run was spent.
            assert ended.is_set()
            assert results[0].returncode == 0
            assert begun.read_text() == "\n\n"
            assert compute.replaced == before + 1
            assert compute.result(compute.submit(os.getpid), never) not in (first, os.getpid())
            # What a stage raises is the stage's.
            with pytest.raises(InputError, match="must be JSON"):
                compute.result(compute.submit(read_json, begun), never)
            compute.stop(2.0)
    finally:
        compute.stop(2.0)


@pytest.mark.filterwarnings("ignore")
def test_trying_in_vain_leaves_nothing_open(tmp_path):
    pytest.importorskip("distributed", reason="distributed is not installed")
    (port,) = free_ports(1)
    silent, absent = {"address": f"127.0.0.1:{port}", "timeout": 0.5}, {"scheduler_file": str(tmp_path / "none.json")}
    left = []
    for _ in range(3):
        with pytest.raises(UnreachableError, match="a Dask scheduler must answer"):
            make_executor(WorkerSettings(executor="dask", executor_options=silent))
        left.append(threading.active_count())
    assert left[0] == left[-1]
    with pytest.raises(UnreachableError, match="no scheduler_file"):
        make_executor(WorkerSettings(executor="dask", executor_options=absent))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_an_interchange_that_was_killed_is_replaced(tmp_path):
    settings, made = parsl_settings(tmp_path), []

    def make() -> Executor:
        made.append(make_executor(settings))
        return made[-1]

    compute = Compute(make)
    try:
        assert compute.result(compute.submit(os.getpid), never) != os.getpid()
        stage = compute.submit(subprocess.run, ["sleep", "2"])
        os.kill(made[0]._stages.interchange_proc.pid, signal.SIGKILL)
        # Parsl leaves this future waiting for ever.
        assert compute.result(stage, never).returncode == 0
        assert compute.replaced == 1
        assert "interchange" in why_broken(made[0]) or "gave its executor up" in why_broken(made[0])
    finally:
        compute.stop(2.0)
    wait_for(lambda: not processes_of(tmp_path / "parsl"), 30)


@pytest.mark.slow
def test_a_killed_process_leaves_nothing_of_parsl(tmp_path):
    settings = parsl_settings(tmp_path)
    code = (
        "import os, sys, time\n"
        "from ptycho_bluesky.config import WorkerSettings\n"
        "from ptycho_bluesky.workflow.executors import make_executor\n"
        "executor = make_executor(WorkerSettings.model_validate_json(sys.argv[1]))\n"
        "print(executor.submit(os.getpid).result(timeout=120), executor._stages.interchange_proc.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, settings.model_dump_json()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=tmp_path, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.kill()
    left = [int(pid) for pid in line.split()]
    assert len(left) == 2

    def alive() -> list[int]:
        return [pid for pid in left if Path(f"/proc/{pid}").exists()] + processes_of(tmp_path / "parsl")

    try:
        wait_for(lambda: not alive(), 90)
    finally:
        for pid in alive():
            os.kill(pid, signal.SIGKILL)


def test_calls_go_to_the_next_executor_when_one_is_lost():
    """Without a library: an executor that loses what it was given, and one that cannot be made at once."""

    class Lossy(Executor):
        broken = ""

        def submit(self, fn, /, *args, **kwargs):
            future: Future[Any] = Future()
            if len(made) == 1:
                self.broken = "its service is gone"
            else:
                future.set_result(fn(*args, **kwargs))
            return future

        def shutdown(self, wait=True, *, cancel_futures=False):
            raise ConnectionError("nobody is there to shut down")

    made: list[Lossy] = []
    refusals = [RuntimeError("no route")]

    def make() -> Executor:
        if made and refusals:
            raise refusals.pop()
        made.append(Lossy())
        return made[-1]

    compute = Compute(make)
    assert compute.result(compute.submit(abs, -1), never) == 1
    assert (len(made), compute.replaced) == (2, 1)
    with pytest.raises(TypeError):
        compute.submit(abs, "a").result()


def test_a_connection_of_globus_that_ended_is_broken(monkeypatch):
    sdk = pytest.importorskip("globus_compute_sdk", reason="globus-compute-sdk is not installed")
    monkeypatch.setattr(sdk, "Executor", lambda **_: SimpleNamespace(_stopped=False))
    executor: Any = make_executor(WorkerSettings(executor="globus", executor_options={"endpoint_id": "0"}))
    assert not why_broken(executor)
    executor._executor._stopped = True
    assert "lost its service" in why_broken(executor)
