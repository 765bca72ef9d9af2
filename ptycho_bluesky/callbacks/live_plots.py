"""The live plot of a session: the edge's mosaic beside the scan's progress."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import numpy as np
from bluesky.callbacks.core import make_class_safe
from bluesky.callbacks.mpl_plotting import QtAwareCallback
from event_model.documents import Event, EventDescriptor, EventPage, RunStart, RunStop, StreamDatum
from numpy.typing import NDArray

__all__ = ["EdgePictures", "LiveScan", "PlacedImage", "PvaImage"]

logger = logging.getLogger(__name__)

MAX_LOAD = 0.05
"""Share of the time that drawing may take."""
INTERACTIVE_BACKENDS = ("qt", "tk", "gtk", "wx", "macosx", "nbagg", "ipympl")


@dataclass(frozen=True, eq=False)
class PlacedImage:
    """An image and where it lies.

    Attributes
    ----------
    image : ndarray, shape (rows, cols)
        NaN where there is nothing.
    origin_m : tuple of float
        (y, x) of the centre of pixel ``[0, 0]``.
    pixel_m : float
    run_uid : str
        Run that it belongs to, "" if it is not said.
    title : str
    """

    image: NDArray[Any]
    origin_m: tuple[float, float] = (0.0, 0.0)
    pixel_m: float = 1e-6
    run_uid: str = ""
    title: str = "live phase / rad"

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to see: nothing covered, or the single pixel served before the first run."""
        return self.image.size < 2 or not np.isfinite(self.image).any()

    @property
    def extent_um(self) -> tuple[float, float, float, float]:
        """(left, right, bottom, top) in µm, rows downwards."""
        top, left = (1e6 * (origin - self.pixel_m / 2) for origin in self.origin_m)
        rows, cols = self.image.shape
        return left, left + 1e6 * cols * self.pixel_m, top + 1e6 * rows * self.pixel_m, top


class PvaImage:
    """The newest image on a pvAccess channel; what cannot keep up sees fewer images, never old ones.

    Parameters
    ----------
    channel : str
        Name of an NTNDArray.

    Notes
    -----
    The monitor's thread only keeps the newest structure; `latest` turns it into an array when it is asked for.
    """

    def __init__(self, channel: str) -> None:
        pvaccess: Any = import_module("pvaccess")
        self.channel = channel
        self._lock = threading.Lock()
        self._newest: Any = None
        self._monitor: Any = pvaccess.Channel(channel, pvaccess.PVA)
        self._monitor.monitor(self._keep)

    def _keep(self, structure: Any) -> None:
        with self._lock:
            self._newest = structure

    def latest(self) -> PlacedImage | None:
        """Newest image, None before the first."""
        with self._lock:
            structure = self._newest
        if structure is None:
            return None
        value = next(iter(structure["value"][0].values()), None)
        sizes = [int(dimension["size"]) for dimension in structure["dimension"]]
        if value is None or len(sizes) != 2:
            return None
        image = np.asarray(value).reshape(sizes[1], sizes[0])
        attributes = {entry["name"]: entry["value"][0].get("value") for entry in structure["attribute"]}
        run_uid = str(attributes.get("RunUid", ""))
        if not {"OriginY_m", "OriginX_m", "PixelSize_m"} <= set(attributes):
            return PlacedImage(image, run_uid=run_uid)
        origin = (float(attributes["OriginY_m"]), float(attributes["OriginX_m"]))
        return PlacedImage(image, origin, float(attributes["PixelSize_m"]), run_uid)

    def close(self) -> None:
        """Stop the monitor."""
        self._monitor.stopMonitor()


class EdgePictures:
    """What an edge shows of a run: its phase once a model reads frames, the bright field before.

    Parameters
    ----------
    prefix : str
        Of the edge's process variables.
    """

    def __init__(self, prefix: str) -> None:
        self._phase = PvaImage(f"{prefix}Mosaic:Image")
        self._bright = PvaImage(f"{prefix}Mosaic:BrightField")

    def latest(self) -> PlacedImage | None:
        """Newest picture, None before the first."""
        phase, bright = self._phase.latest(), self._bright.latest()
        if phase is not None and not phase.is_empty and (bright is None or phase.run_uid == bright.run_uid):
            return phase
        if bright is None or bright.is_empty:
            return None
        seen = np.where(bright.image > 0, bright.image, np.nan)  # the grey scale is that of what was seen
        return replace(bright, image=seen, title="bright field / counts")

    def close(self) -> None:
        """Stop the monitors."""
        self._phase.close()
        self._bright.close()


@make_class_safe(logger=logger)
class LiveScan(QtAwareCallback):
    """One figure a session: the mosaic as the edge has it, and which points of the scan have been taken.

    Parameters
    ----------
    mosaic : callable, optional
        Returns the newest mosaic or None; `EdgePictures.latest`, or a hook of an edge in this process.
    period_s : float
        Least time between two drawings; they take at most a twentieth of the time in all.

    Notes
    -----
    Errors are logged and never reach the RunEngine. With a Qt backend everything happens on the main thread; call
    `bluesky.callbacks.mpl_plotting.initialize_qt_teleporter` there first (a session does).
    """

    def __init__(self, mosaic: Callable[[], PlacedImage | None] | None = None, *, period_s: float = 0.5) -> None:
        super().__init__()
        self._mosaic = mosaic
        self.period_s = period_s
        self.figure: Any = None
        self._axes: Any = None
        self._artists: dict[str, Any] = {}
        self._timer: Any = None
        self._next_draw_s = 0.0
        self._streams: dict[str, str] = {}
        self._title = ""
        self._planned = np.empty((0, 2))
        self._total = 0
        self._taken = 0

    def follow(self, mosaic: Callable[[], PlacedImage | None]) -> None:
        """Show another mosaic from now on, e.g. that of an edge in this process."""
        self._mosaic = mosaic

    def start(self, doc: RunStart) -> None:
        """Open the figure with the first run, clear it with every other."""
        content: dict[str, Any] = dict(doc)
        scan = content.get("ptycho", {}).get("scan", {})
        self._streams.clear()
        self._planned = np.empty((0, 2))
        self._total, self._taken = int(scan.get("num_points") or 0), 0
        self._title = f"scan {content.get('scan_id', '')} {content.get('plan_name', '')}"
        if self.figure is None:
            self._set_up()
        self._draw()

    def descriptor(self, doc: EventDescriptor) -> None:
        """Note which stream is which."""
        self._streams[doc["uid"]] = doc.get("name", "")

    def event(self, doc: Event) -> Event:
        """Take the planned positions."""
        if self._streams.get(doc["descriptor"]) == "trajectory":
            data = doc["data"]
            self._planned = 1e6 * np.stack([data["planned_y_m"], data["planned_x_m"]], axis=1)
            self._total = len(self._planned)
            self._draw()
        return doc

    def event_page(self, doc: EventPage) -> EventPage:
        """Nothing here comes in pages."""
        return doc

    def stream_datum(self, doc: StreamDatum) -> None:
        """Count frames and draw, if it is time."""
        self._taken = max(self._taken, int(doc["indices"]["stop"]))
        if time.monotonic() >= self._next_draw_s:
            self._draw()

    def stop(self, doc: RunStop) -> None:
        """Draw the end."""
        self._title += f" ({doc.get('exit_status', '')})"
        self._draw()

    def refresh(self) -> None:
        """Draw again: the mosaic still gains frames when the scan is over."""
        if self.figure is not None:
            self._draw()

    def close(self) -> None:
        """Close the figure."""
        if self.figure is not None:
            import matplotlib.pyplot as plt

            if self._timer is not None:
                self._timer.stop()
            plt.close(self.figure)
            self.figure = None

    def _set_up(self) -> None:
        import matplotlib
        import matplotlib.pyplot as plt

        self.figure, self._axes = plt.subplots(1, 2, figsize=(11, 5), num="ptycho_bluesky live", layout="constrained")
        image_axes, scan_axes = self._axes
        image_axes.set_xlabel("x / µm")
        image_axes.set_ylabel("y / µm")
        scan_axes.set_xlabel("x / µm")
        scan_axes.set_ylabel("y / µm")
        scan_axes.set_aspect("equal", adjustable="datalim")
        scan_axes.invert_yaxis()
        self._artists["planned"] = scan_axes.plot([], [], ".", color="0.8", markersize=2)[0]
        self._artists["taken"] = scan_axes.plot([], [], ".", color="C0", markersize=3)[0]
        if any(name in matplotlib.get_backend().lower() for name in INTERACTIVE_BACKENDS):
            self.figure.show()
            self._timer = self.figure.canvas.new_timer(interval=int(1000 * self.period_s))
            self._timer.add_callback(self._refresh_safely)
            self._timer.start()

    def _refresh_safely(self) -> None:
        try:
            self.refresh()
        except Exception:  # boundary to the GUI's event loop
            logger.exception("live plot")

    def _draw(self) -> None:
        begun = time.monotonic()
        self._draw_mosaic()
        for name, rows in (("planned", self._planned), ("taken", self._planned[: self._taken])):
            self._artists[name].set_data(rows[:, 1], rows[:, 0])
        scan_axes = self._axes[1]
        scan_axes.set_title(f"{self._title}: {self._taken} of {self._total} frames")
        scan_axes.relim()
        scan_axes.autoscale_view()
        self.figure.canvas.draw()
        now = time.monotonic()
        self._next_draw_s = now + max(self.period_s, (now - begun) / MAX_LOAD)

    def _draw_mosaic(self) -> None:
        placed = None if self._mosaic is None else self._mosaic()
        if placed is None or placed.is_empty:
            return
        image, artist = placed.image, self._artists.get("mosaic")
        if artist is None:
            artist = self._axes[0].imshow(image, cmap="gray", interpolation="nearest", extent=placed.extent_um)
            self._artists["mosaic"] = artist
        artist.set_data(image)
        artist.set_extent(placed.extent_um)
        self._axes[0].set_title(placed.title)
        low, high = np.nanpercentile(image, (1, 99))
        artist.set_clim(low, high if high > low else low + 1e-6)
