"""Where the worker's stages are computed: processes of this machine, or Dask, Parsl or Globus Compute.

Each is a ``concurrent.futures.Executor``; queueing, scheduling and the batch system are the library's business. What is
submitted are plain functions of plain arguments whose products are files, so the folders of the worker and of the
corpus must be seen under the same path wherever a stage runs.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import runpy
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

from ptycho_bluesky.config import WorkerSettings
from ptycho_bluesky.errors import InputError, UnreachableError

__all__ = ["InlineExecutor", "make_executor", "stop_executor", "why_broken"]

logger = logging.getLogger(__name__)

PARENT_POLL_S = 1.0
DASK_TIMEOUT_S = 10.0
"""How long a scheduler may take to answer: the worker asks again by itself, and does not end while it waits."""
LOCAL_HEARTBEAT_S, LOCAL_LOST_S = 5, 30
"""Between the processes of one machine, silence means that the other one is gone."""


class InlineExecutor(Executor):
    """Runs what is submitted at once, in the caller's thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run and return a finished future."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 a future carries whatever its function raised
            future.set_exception(error)
        return future


class DaskExecutor(Executor):
    """Futures of a Dask cluster (``distributed.Client.get_executor``).

    Parameters
    ----------
    options : mapping
        Of ``distributed.Client`` (``address`` or ``scheduler_file``; with neither, a cluster of this machine's
        processes), beside ``submit``: options of each submission, e.g. ``{"resources": {"GPU": 1}}``.

    Raises
    ------
    InputError
        distributed is not installed, or refuses the options.
    UnreachableError
        No scheduler answers.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        try:
            from distributed import Client
        except ImportError as error:
            raise _missing("dask", "dask[distributed]", error) from error
        rest = {"timeout": DASK_TIMEOUT_S, **options}
        submit = rest.pop("submit", {})
        rule, remedy = "a Dask scheduler must answer there", "start it; whoever waits for it then goes on"
        file = rest.get("scheduler_file")
        if file is not None and not Path(file).exists():
            # The client would wait for the file for ever.
            raise UnreachableError(f"worker.executor_options: no scheduler_file {file}", rule, remedy)
        # In two steps: of a client that was not made whole one could not end the thread.
        self.client = Client.__new__(Client)
        try:
            Client.__init__(self.client, **rest)
            self._executor = self.client.get_executor(**submit)
        except (OSError, TimeoutError) as error:
            # Such a client leaves its thread and files open for ever, and the worker may try for days.
            if (runner := getattr(self.client, "_loop_runner", None)) is not None:
                runner.stop()
            raise UnreachableError(f"worker.executor_options {dict(options)}: {error}", rule, remedy) from error
        except (TypeError, ValueError) as error:
            raise InputError(
                f"worker.executor_options {dict(options)}: {error}",
                "the options are those of distributed.Client, beside 'submit'",
                "see its reference",
            ) from error

    @property
    def broken(self) -> str:
        """Why it takes nothing any more, "" while it does.

        A client that has lost its scheduler is "connecting" for its ``timeout``, and closed for good after that.
        """
        status = self.client.status
        return "" if status in ("running", "connecting") else f"the connection to the Dask scheduler is {status}"

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Submit; the same call again is computed again, its product being a file."""
        return self._executor.submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster; one that was started here ends."""
        if self.client.status == "running":
            # Of a scheduler that is gone nothing can be asked.
            self._executor.shutdown(wait=wait and not cancel_futures)
        self.client.close(timeout=10)


class ParslExecutor(Executor):
    """Futures of Parsl: one high-throughput executor on one provider, both configured by Parsl's own options.

    Parameters
    ----------
    options : mapping
        ``provider`` (name of a class of ``parsl.providers``; LocalProvider by default), ``provider_options``,
        ``launcher`` (name of a class of ``parsl.launchers``), ``executor_options`` of ``HighThroughputExecutor``, and
        ``run_dir`` and ``initialize_logging`` of ``parsl.Config``.

    Raises
    ------
    InputError
        parsl is not installed, or refuses the options.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        try:
            import parsl
            from parsl import launchers, providers
            from parsl.concurrent import ParslPoolExecutor
        except ImportError as error:
            raise _missing("parsl", "parsl", error) from error
        general = ("run_dir", "initialize_logging")
        known = {"provider", "provider_options", "launcher", "executor_options", *general}
        if set(options) - known:
            raise InputError(f"worker.executor_options {sorted(set(options) - known)}", f"Parsl takes {sorted(known)}")
        try:
            provider_options = dict(options.get("provider_options", {}))
            if "launcher" in options:
                provider_options["launcher"] = getattr(launchers, options["launcher"])()
            provider = getattr(providers, options.get("provider", "LocalProvider"))(**provider_options)
            usual = {"label": "stages", **_parsl_usual(local=isinstance(provider, providers.LocalProvider))}
            self._stages = parsl.HighThroughputExecutor(
                **{**usual, **options.get("executor_options", {})}, provider=provider
            )
            extra = {name: options[name] for name in general if name in options}
            config = parsl.Config(executors=[self._stages], **extra)
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError(
                f"worker.executor_options: {error}",
                "names and options are those of parsl.providers",
                "see its reference",
            ) from error
        self._pool = ParslPoolExecutor(config=config)

    @property
    def broken(self) -> str:
        """Why it computes nothing any more, "" while it does.

        Parsl itself does not watch its interchange: without it, futures wait for ever.
        """
        if self._stages.bad_state_is_set:
            return f"Parsl gave its executor up: {self._stages.executor_exception}"
        interchange = self._stages.interchange_proc
        if interchange is not None and interchange.poll() is not None:
            return f"Parsl's interchange has ended with code {interchange.returncode}"
        return ""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Submit to the blocks of the provider."""
        return self._pool.submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the interchange and the blocks."""
        if reason := self.broken:
            if not self._stages.bad_state_is_set:
                # Otherwise Parsl asks the interchange, which is gone, for its blocks.
                self._stages.set_bad_state_and_fail_all(RuntimeError(reason))
            # Of an executor in a bad state Parsl leaves the blocks running.
            self._cancel_blocks()
        self._pool.shutdown(wait=wait and not cancel_futures)

    def _cancel_blocks(self) -> None:
        jobs, provider = list(self._stages.blocks_to_job_id.values()), self._stages.provider
        try:
            if provider is not None:
                provider.cancel(jobs)
        except Exception as error:  # noqa: BLE001 whatever the batch system says, the blocks end without interchange
            logger.warning("Parsl's blocks %s are not cancelled: %s", jobs, error)


def _parsl_usual(*, local: bool) -> dict[str, Any]:
    """Options of the executor where the settings name no others.

    Parsl looks for its own scripts on PATH, where an environment that was not activated is not, so they are named by
    their path beside this Python. On other machines, whose paths may differ, ``worker_init`` of the provider sees to
    its workers. The interchange ends with this process, and the pools, which then hear no heartbeat, end after it:
    Parsl's own would wait for ever for a process that was killed.
    """
    from parsl.executors.high_throughput.executor import DEFAULT_LAUNCH_CMD

    folder = Path(sys.executable).parent
    interchange, pool = folder / "interchange.py", folder / "process_worker_pool.py"
    usual: dict[str, Any] = {}
    if interchange.exists():
        code = f"from {__name__} import run_with_parent; run_with_parent()"
        usual["interchange_launch_cmd"] = [sys.executable, "-c", code, str(os.getpid()), str(interchange)]
    if local and pool.exists():
        usual["launch_cmd"] = DEFAULT_LAUNCH_CMD.replace(pool.name, shlex.quote(str(pool)), 1)
    if local:
        usual |= {"heartbeat_period": LOCAL_HEARTBEAT_S, "heartbeat_threshold": LOCAL_LOST_S}
    return usual


class GlobusExecutor(Executor):
    """Futures of a Globus Compute endpoint.

    Parameters
    ----------
    options : mapping
        ``endpoint_id`` and further options of ``globus_compute_sdk.Executor``.

    Raises
    ------
    InputError
        globus-compute-sdk is not installed, or no endpoint is named.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        try:
            import globus_compute_sdk
        except ImportError as error:
            raise _missing("globus", "globus-compute-sdk", error) from error
        if not options.get("endpoint_id"):
            raise InputError(
                "worker.executor_options without endpoint_id", "stages are sent to one endpoint", "name its uuid"
            )
        self._executor = globus_compute_sdk.Executor(**options)

    @property
    def broken(self) -> str:
        """Why it takes nothing any more, "" while it does."""
        # The library shuts an executor down whose connection to the service failed, and says so nowhere else.
        stopped = getattr(self._executor, "_stopped", False)
        return "the executor of Globus Compute has lost its service and ended" if stopped else ""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Submit to the endpoint."""
        return self._executor.submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the connection to the service."""
        self._executor.shutdown(wait=wait, cancel_futures=cancel_futures)


def _missing(name: str, package: str, error: ImportError) -> InputError:
    return InputError(f"worker.executor = {name!r}: {error}", f"it needs {package}", f"pip install '{package}'")


def make_executor(settings: WorkerSettings) -> Executor:
    """Executor that the settings name.

    Raises
    ------
    InputError
        Its library is not installed, or refuses the options.
    UnreachableError
        What is to compute does not answer.
    """
    if settings.executor == "inline":
        return InlineExecutor()
    if settings.executor == "dask":
        return DaskExecutor(settings.executor_options)
    if settings.executor == "parsl":
        return ParslExecutor(settings.executor_options)
    if settings.executor == "globus":
        return GlobusExecutor(settings.executor_options)
    return ProcessPoolExecutor(
        settings.max_workers,
        # Spawned, not forked: the worker has threads, and torch does not survive a fork of them.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_initialise,
        initargs=(os.getpid(),),
    )


def why_broken(executor: Executor) -> str:
    """Why an executor has lost what computes for it and will not get it back, "" while it has not.

    A pool of processes is not asked: it tells by `concurrent.futures.BrokenExecutor`.
    """
    return str(getattr(executor, "broken", ""))


def stop_executor(executor: Executor, wait_s: float) -> None:
    """End an executor; processes that are still computing after a time are killed, their products being restartable."""
    processes = list((getattr(executor, "_processes", None) or {}).values())
    executor.shutdown(wait=False, cancel_futures=True)
    deadline = time.monotonic() + wait_s
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join(5.0)


def _initialise(parent: int) -> None:
    """Set up a process of the pool: signals are the worker's business, and it ends when the worker is killed."""
    logging.basicConfig(level=logging.WARNING)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()


def run_with_parent() -> None:
    """Run the script named on the command line, and end when the process named before it has ended."""
    parent, *command = sys.argv[1:]
    threading.Thread(target=_end_with_parent, args=(int(parent),), daemon=True).start()
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_S)
    os._exit(1)
