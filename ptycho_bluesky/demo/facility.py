"""Every process of the loop on this machine, and a RunEngine session beside them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ptycho_bluesky.config import Settings, load_settings
from ptycho_bluesky.demo.display import Display
from ptycho_bluesky.demo.processes import ProcessSet, free_ports
from ptycho_bluesky.errors import InputError, UnreachableError

if TYPE_CHECKING:
    from ptycho_bluesky.session import Session
    from ptycho_bluesky.workflow.tiled_store import StoredMosaic, TiledStore

__all__ = ["Facility", "demo_settings"]

logger = logging.getLogger(__name__)

POLL_S = 0.2
SWAP_TIMEOUT_S = 60.0
MOSAIC_TIMEOUT_S = 120.0
WORKER_TIMEOUT_S = 600.0


def demo_settings(folder: Path, **flags: Any) -> Settings:
    """Settings of a demo: everything under its folder, on loopback and on ports that are free now.

    Parameters
    ----------
    folder : path
        Holds ``data`` and ``config.yml``.
    **flags
        Further settings, dots written as two underscores.
    """
    ca, repeater, pva, broadcast, tiled, publish, subscribe = free_ports(7)
    settings = load_settings(
        None,
        {
            "data_dir": folder.resolve() / "data",
            "epics.ca_server_port": ca,
            "epics.ca_repeater_port": repeater,
            "epics.pva_server_port": pva,
            "epics.pva_broadcast_port": broadcast,
            "tiled.uri": f"http://127.0.0.1:{tiled}",
            "zmq.publish": f"127.0.0.1:{publish}",
            "zmq.subscribe": f"127.0.0.1:{subscribe}",
            **{key.replace("__", "."): value for key, value in flags.items()},
        },
    )
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    return settings


class Facility:
    """Starts Tiled, beamline, writer, edge and worker, makes a session, and stops everything at the end.

    Parameters
    ----------
    settings : Settings
        Of `demo_settings`.
    folder : path
        Holds ``config.yml`` and ``logs``.
    ioc_arguments : list of str
        Further arguments of ``ptycho-bluesky ioc``.
    display : Display
        Told what is going on.
    live_plot : bool
        Open the session's live plot.
    with_worker : bool
        Start the worker; without it no run is learned from.
    """

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        ioc_arguments: list[str],
        display: Display,
        *,
        live_plot: bool = False,
        with_worker: bool = True,
    ) -> None:
        self.settings, self.folder, self.display = settings, folder, display
        self._with_worker = with_worker
        self.config_file = folder / "config.yml"
        settings.to_yaml(self.config_file)
        self.processes = ProcessSet(folder / "logs", settings.epics.environment())
        self._ioc_arguments, self._live_plot = ioc_arguments, live_plot
        self._store: TiledStore | None = None
        self._session: Session | None = None
        self._channels: dict[str, Any] = {}

    @property
    def session(self) -> Session:
        """RunEngine, devices and plans."""
        if self._session is None:
            raise UnreachableError("no session", "the facility is not started", "use it as a context manager")
        return self._session

    @property
    def store(self) -> TiledStore:
        """What lies in Tiled."""
        if self._store is None:
            raise UnreachableError("no store", "the facility is not started", "use it as a context manager")
        return self._store

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.processes.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            self._session.close()
        with self.display.timed("stopping every process"):
            self.processes.stop()

    def _start(self) -> None:
        common = ("--config", str(self.config_file))
        with self.display.timed("starting Tiled and the simulated beamline"):
            self.processes.start("tiled", "tiled", *common)
            self.processes.start("ioc", "ioc", *common, *self._ioc_arguments)
            for child in self.processes.children.values():
                child.wait_ready()
        with self.display.timed("starting writer, edge and worker"):
            self.processes.start("writer", "writer", *common)
            self.processes.start("edge", "edge", *common)
            # The edge must keep pace with the detector; the worker may wait.
            if self._with_worker:
                self.processes.start("worker", "worker", *common, niceness=5)
            for child in self.processes.children.values():
                child.wait_ready()
        with self.display.timed("connecting the session"):
            self.settings.epics.apply()
            from ptycho_bluesky.session import make_session
            from ptycho_bluesky.workflow.tiled_store import TiledStore

            self._store = TiledStore.connect(self.settings.tiled, wait_s=30.0)
            self._session = make_session(self.settings, live_plot=self._live_plot)

    def edge_value(self, name: str) -> Any:
        """Value of one of the edge's process variables (``Model:Id``, ``State``, ``Counts:Missed``, …)."""
        pvaccess: Any = import_module("pvaccess")
        if name not in self._channels:
            channel = pvaccess.Channel(self.settings.edge.prefix + name, pvaccess.PVA)
            channel.setTimeout(2.0)
            self._channels[name] = channel
        return self._channels[name].get("field(value)")["value"]

    def wait(self, what: str, condition: Callable[[], Any], timeout_s: float) -> Any:
        """Poll until the condition is true and return it.

        Raises
        ------
        UnreachableError
            It did not come true in time, or a process has ended.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            found = condition()
            if found:
                return found
            self.processes.check_alive()
            time.sleep(POLL_S)
        raise UnreachableError(
            f"waited {timeout_s:.0f} s for {what}", "it should have come by then", f"read the logs in {self.folder}"
        )

    def wait_edge_ready(self) -> None:
        """Wait until the edge can take a run."""
        self.wait("the edge to be ready", self._edge_is_ready, SWAP_TIMEOUT_S)

    def _edge_is_ready(self) -> bool:
        return self._edge_value_or_none("State") == "ready"

    def _edge_value_or_none(self, name: str) -> Any:
        pvaccess: Any = import_module("pvaccess")
        try:
            return self.edge_value(name)
        except pvaccess.PvaException as error:
            logger.debug("edge's %s: %s", name, error)
            self._channels.pop(name, None)
            return None

    def wait_model(self, model_id: str) -> None:
        """Wait until the edge serves the model."""
        self.wait(f"the edge to serve model {model_id[:8]}", lambda: self._edge_value_or_none("Model:Id") == model_id,
                  SWAP_TIMEOUT_S)  # fmt: skip

    def scan(self, plan: Any) -> str:
        """Run a plan and return the uid of its run."""
        uids = self.session.RE(plan)
        return uids[0] if isinstance(uids, tuple) else uids.run_start_uids[0]

    def wait_mosaic(self, uid: str) -> StoredMosaic:
        """Wait for the final mosaic of a run."""
        self.wait("the run's final mosaic", lambda: self._survive(lambda: self.store.has_final_mosaic(uid)),
                  MOSAIC_TIMEOUT_S)  # fmt: skip
        return self.store.read_mosaic(uid)

    def wait_stored(self, uid: str) -> dict[str, Any]:
        """Wait until a run is complete in Tiled and return its stop document."""

        def stop_document() -> dict[str, Any] | None:
            try:
                return self.store.run(uid).metadata.get("stop")
            except InputError as error:  # not written yet, or Tiled is away
                logger.debug("%s", error)
                return None

        return self.wait("the run in Tiled", stop_document, MOSAIC_TIMEOUT_S)

    def wait_decision(self, uid: str) -> dict[str, Any]:
        """Wait for the worker's decision on a run, showing the stage that it is in."""

        def decided() -> dict[str, Any] | None:
            self.display.stage(self._worker_stage(uid))
            return self._survive(lambda: self.store.decision(uid))

        return self.wait("the worker's decision", decided, WORKER_TIMEOUT_S)

    def _survive(self, ask: Callable[[], Any]) -> Any:
        """Ask Tiled; None while it is away (it is killed once in a disturbed demo)."""
        try:
            return ask()
        except UnreachableError as error:
            logger.debug("Tiled: %s", error)
            return None

    def _worker_stage(self, uid: str) -> str:
        from ptycho_bluesky.workflow.worker import read_stage

        return read_stage(self.settings, uid) or "waiting for the worker"
