"""Where the worker's stages are computed: processes of this machine, or Dask, Parsl or Globus Compute.

Each is a ``concurrent.futures.Executor``; queueing, scheduling and the batch system are the library's business. What is
submitted are plain functions of plain arguments whose products are files, so the folders of the worker and of the
corpus must be seen under the same path wherever a stage runs.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
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
from ptycho_bluesky.errors import InputError

__all__ = ["InlineExecutor", "make_executor", "stop_executor"]

logger = logging.getLogger(__name__)

PARENT_POLL_S = 1.0


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
        distributed is not installed, or no scheduler answers.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        try:
            from distributed import Client
        except ImportError as error:
            raise _missing("dask", "dask[distributed]", error) from error
        rest = dict(options)
        submit = rest.pop("submit", {})
        try:
            self.client = Client(**rest)
        except (OSError, TimeoutError, TypeError, ValueError) as error:
            raise InputError(
                f"worker.executor_options {rest}: {error}", "a Dask scheduler must answer there", "start it first"
            ) from error
        self._executor = self.client.get_executor(**submit)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Submit; the same call again is computed again, its product being a file."""
        return self._executor.submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster; one that was started here ends."""
        self._executor.shutdown(wait=wait and not cancel_futures)
        self.client.close(timeout=10)


def _parsl(options: Mapping[str, Any]) -> Executor:
    """Futures of Parsl: one high-throughput executor on one provider, both configured by Parsl's own options.

    Parameters
    ----------
    options : mapping
        ``provider`` (name of a class of ``parsl.providers``; LocalProvider by default), ``provider_options``,
        ``launcher`` (name of a class of ``parsl.launchers``), ``executor_options`` of ``HighThroughputExecutor``, and
        ``run_dir`` and ``initialize_logging`` of ``parsl.Config``.
    """
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
        usual = {"label": "stages", **_parsl_commands(local=isinstance(provider, providers.LocalProvider))}
        executor = parsl.HighThroughputExecutor(**{**usual, **options.get("executor_options", {})}, provider=provider)
        extra = {name: options[name] for name in general if name in options}
        config = parsl.Config(executors=[executor], **extra)
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"worker.executor_options: {error}", "names and options are those of parsl.providers", "see its reference"
        ) from error
    return ParslPoolExecutor(config=config)


def _parsl_commands(*, local: bool) -> dict[str, Any]:
    """Parsl's own scripts by their path beside this Python.

    Parsl looks for them on PATH, where an environment that was not activated is not. On other machines, whose paths may
    differ, ``worker_init`` of the provider sees to its workers.
    """
    from parsl.executors.high_throughput.executor import DEFAULT_LAUNCH_CMD

    folder = Path(sys.executable).parent
    interchange, pool = folder / "interchange.py", folder / "process_worker_pool.py"
    commands: dict[str, Any] = {}
    if interchange.exists():
        commands["interchange_launch_cmd"] = [str(interchange)]
    if local and pool.exists():
        commands["launch_cmd"] = DEFAULT_LAUNCH_CMD.replace(pool.name, shlex.quote(str(pool)), 1)
    return commands


def _globus(options: Mapping[str, Any]) -> Executor:
    """Futures of a Globus Compute endpoint; ``endpoint_id`` and further options of its ``Executor``."""
    try:
        from globus_compute_sdk import Executor as GlobusExecutor
    except ImportError as error:
        raise _missing("globus", "globus-compute-sdk", error) from error
    if not options.get("endpoint_id"):
        raise InputError(
            "worker.executor_options without endpoint_id", "stages are sent to one endpoint", "name its uuid"
        )
    return GlobusExecutor(**options)


def _missing(name: str, package: str, error: ImportError) -> InputError:
    return InputError(f"worker.executor = {name!r}: {error}", f"it needs {package}", f"pip install '{package}'")


def make_executor(settings: WorkerSettings) -> Executor:
    """Executor that the settings name.

    Raises
    ------
    InputError
        Its library is not installed, or refuses the options.
    """
    if settings.executor == "inline":
        return InlineExecutor()
    if settings.executor == "dask":
        return DaskExecutor(settings.executor_options)
    if settings.executor == "parsl":
        return _parsl(settings.executor_options)
    if settings.executor == "globus":
        return _globus(settings.executor_options)
    return ProcessPoolExecutor(
        settings.max_workers,
        # Spawned, not forked: the worker has threads, and torch does not survive a fork of them.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_initialise,
        initargs=(os.getpid(),),
    )


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


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_S)
    os._exit(1)
