"""Making a session; what it imports, it imports when it is called: `import ptycho_bluesky.session` costs nothing."""

from __future__ import annotations

import atexit
import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ptycho_bluesky._version import __version__
from ptycho_bluesky.config import Settings
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.session.scan_ids import ScanIds
from ptycho_bluesky.session.session import Session

if TYPE_CHECKING:
    from bluesky import RunEngine

__all__ = ["make_session"]

logger = logging.getLogger(__name__)

Callback = Callable[[str, dict[str, Any]], Any]


def make_session(
    settings: Settings,
    *,
    live_plot: bool = True,
    subscribe_edge: Callback | None = None,
    use_tiled: bool = True,
    connect_timeout_s: float = 15.0,
) -> Session:
    """Connect the beamline and make a RunEngine that journals, publishes and plots.

    Parameters
    ----------
    settings : Settings
    live_plot : bool
        Draw mosaic and progress; a plot that cannot be made is logged.
    subscribe_edge : callable, optional
        An edge in this process (``EdgeInference``), subscribed behind everything else; its failures never end a scan.
    use_tiled : bool
        Connect to Tiled; when it is away, ``client`` is None, with a warning.
    connect_timeout_s : float
        Deadline for the beamline's process variables.

    Returns
    -------
    Session
        Close it at the end.

    Raises
    ------
    UnreachableError
        Process variables do not answer; the message names them.
    StorageError
        The journal's folder cannot be written.

    Examples
    --------
    >>> session = make_session(load_settings("beamline.yml"))  # doctest: +SKIP
    >>> session.RE(session.fly_spiral(num_points=963, step_m=50e-9))  # doctest: +SKIP
    """
    settings.epics.apply()
    from ptycho_bluesky.callbacks.journal import RunJournal
    from ptycho_bluesky.callbacks.publisher import DocumentPublisher
    from ptycho_bluesky.devices import connect

    _check_control_layer(settings)
    journal = RunJournal(settings.journal_dir)
    journal.check()
    devices = _make_devices(settings)
    connect(*devices.values(), timeout_s=connect_timeout_s)
    publisher = DocumentPublisher(settings.zmq.publish)
    run_engine = _make_run_engine(
        settings, [devices[name] for name in ("stage", "shutter", "attenuator", "energy", "i0")]
    )
    session = Session(settings=settings, RE=run_engine, journal=journal, publisher=publisher, **devices)
    session.closers.append(publisher.close)
    # pvAccess threads that call Python while it is being torn down abort the process
    atexit.register(session.close)
    store = _connect_tiled(settings) if use_tiled else None
    if store is not None:
        session.client, session.raw = store.root, store.raw
        session.closers.append(store.close)
    run_engine.subscribe(journal)
    run_engine.preprocessors.append(journal.preprocessor)
    run_engine.subscribe(publisher)
    if live_plot:
        _add_live_plot(session)
    if subscribe_edge is not None:
        from ptycho_bluesky.callbacks.guard import Guarded

        run_engine.subscribe(Guarded(subscribe_edge, "the edge in this process", "its result can be had by a replay"))
    return session


def _check_control_layer(settings: Settings) -> None:
    """The Channel Access client is chosen when ophyd is first imported, so a late setting is of no effect."""
    import ophyd

    present = getattr(ophyd.cl, "name", settings.epics.control_layer)
    if present != settings.epics.control_layer:
        logger.warning(
            "ophyd was imported before the session and uses %s, not %s; set OPHYD_CONTROL_LAYER in the environment",
            present,
            settings.epics.control_layer,
        )


def _make_devices(settings: Settings) -> dict[str, Any]:
    from ptycho_bluesky.devices import (
        Attenuator,
        BeamlineGeometry,
        DetectorGeometry,
        Energy,
        I0Monitor,
        PtychoDetector,
        PtychoFlyer,
        SampleStage,
        Shutter,
        TrajectoryController,
        set_signal_defaults,
    )

    if not set_signal_defaults():
        logger.debug("signals exist already: their timeouts stay as they are")
    prefix = settings.epics.prefix
    energy = Energy(f"{prefix}energy:", name="energy")
    geometry = BeamlineGeometry(settings.geometry, energy, DetectorGeometry(f"{prefix}det1:", name="detector_geometry"))
    detector = PtychoDetector(
        f"{prefix}det1:", name="det", raw_dir=settings.raw_dir, geometry=geometry, settings=settings.detector
    )
    controller = TrajectoryController(f"{prefix}fly1:", name="trajectory")
    return {
        "stage": SampleStage(prefix, name="stage"),
        "detector": detector,
        "flyer": PtychoFlyer(detector, controller, name="flyer"),
        "shutter": Shutter(f"{prefix}shutter1:", name="shutter"),
        "attenuator": Attenuator(f"{prefix}atten1:", name="attenuator"),
        "energy": energy,
        "i0": I0Monitor(f"{prefix}I0:", name="i0"),
    }


def _make_run_engine(settings: Settings, baseline: list[Any]) -> RunEngine:
    import bluesky
    import ophyd
    from bluesky import RunEngine

    from ptycho_bluesky.plans.baseline import baseline_wrapper

    run_engine = RunEngine({}, scan_id_source=ScanIds(settings.data_dir / "scan_id"))
    run_engine.md["versions"] = {
        "ptycho_bluesky": __version__,
        "bluesky": bluesky.__version__,
        "ophyd": ophyd.__version__,
    }
    run_engine.md["beamline_prefix"] = settings.epics.prefix
    run_engine.preprocessors.append(partial(baseline_wrapper, devices=baseline))
    return run_engine


def _connect_tiled(settings: Settings) -> Any:
    """Store in the Tiled catalogue; None when the server is away."""
    from ptycho_bluesky.workflow.tiled_store import TiledStore

    try:
        return TiledStore.connect(settings.tiled)
    except InputError as error:
        logger.warning("no Tiled client in this session (c and db are None): %s", error)
        return None


def _add_live_plot(session: Session) -> None:
    """Plot, unless it cannot be made: a session without a display scans all the same."""
    import threading

    try:
        import matplotlib
        from bluesky.callbacks.mpl_plotting import initialize_qt_teleporter

        from ptycho_bluesky.callbacks.live_plots import EdgePictures, LiveScan

        if "qt" in matplotlib.get_backend().lower() and threading.current_thread() is threading.main_thread():
            initialize_qt_teleporter()
        pictures = EdgePictures(session.settings.edge.prefix)
        plot = LiveScan(pictures.latest)
    except Exception:  # boundary: no display, no backend, no pvAccess
        logger.exception("no live plot in this session; the scan does not need it")
        return
    session.live_plot = plot
    session.closers += [pictures.close, plot.close]
    session.RE.subscribe(plot)
