"""Frames from pvAccess: a queued monitor that loses nothing at kilohertz, and says so when it does."""

from __future__ import annotations

import atexit
import logging
import math
import threading
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.streaming.codecs import decompress, missing_libraries, original_dtype
from ptycho_bluesky.streaming.frames import Frame

__all__ = ["PvaFrameSource", "frame_of"]

logger = logging.getLogger(__name__)

CLIENT_QUEUE = 20_000
SERVER_QUEUE = 1000
GET_TIMEOUT_S = 0.2
NAP_S = 0.002
"""Pause after frames were taken: at kilohertz they then come a few at a time, and waking up costs less for each."""
MAX_AT_ONCE = 256
POSITION_Y, POSITION_X, BEAM = "SampleY_m", "SampleX_m", "I0"


def frame_of(structure: Any, channel: str, arrival_s: float) -> Frame | None:
    """Make a frame of an NTNDArray; one that is corrupt says so in ``fault``.

    Parameters
    ----------
    structure : pvaccess.PvObject
        An NTNDArray, possibly compressed.
    channel : str
    arrival_s : float
        This machine's time.

    Returns
    -------
    Frame or None
        None for a structure that holds no image at all (a channel before its first frame).
    """
    timestamp_s = structure["dataTimeStamp.secondsPastEpoch"] + 1e-9 * structure["dataTimeStamp.nanoseconds"]
    sizes = [dimension["size"] for dimension in structure["dimension"]]
    value = structure["value"][0]
    if not sizes and not value:
        return None
    # each entry is a name beside a variant that holds a structure with the value
    attributes = {entry["name"]: entry["value"][0].get("value") for entry in structure["attribute"]}
    image, fault = _image(structure, value, sizes)
    return Frame(
        unique_id=structure["uniqueId"],
        image=image,
        timestamp_s=timestamp_s if timestamp_s > 0 else np.nan,
        position_m=(_number(attributes.get(POSITION_Y)), _number(attributes.get(POSITION_X))),
        i0=_number(attributes.get(BEAM)),
        arrival_s=arrival_s,
        channel=channel,
        fault=fault,
    )


def _image(structure: Any, value: dict[str, Any], sizes: list[int]) -> tuple[np.ndarray, str]:
    nothing = np.zeros((0, 0), dtype=np.uint8)
    try:
        flat = np.asarray(next(iter(value.values()), nothing))
        codec = structure["codec.name"]
        if codec:
            flat = decompress(codec, flat, original_dtype(structure["codec.parameters"]), math.prod(sizes))
    except InputError as error:
        return nothing, f"cannot be decompressed: {error}"
    if len(sizes) != 2:
        return nothing, f"{len(sizes)} dimensions instead of 2"
    columns, rows = sizes
    if flat.size != rows * columns:
        return nothing, f"truncated: {flat.size} of {rows * columns} pixels"
    return flat.reshape(rows, columns), ""


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


class PvaFrameSource:
    """Monitors channels of NTNDArrays for as long as it lives.

    Parameters
    ----------
    take : callable
        ``take(frames)`` with the frames that came together, in their order; called from the channel's thread.
    share : tuple of int
        ``(k, n)``: only frames whose unique id is k modulo n are read, the others are left to other edges.

    Notes
    -----
    The monitor is queued on both sides (``record[queueSize=…]`` at the server, a `PvObjectQueue` here): pvapy's plain
    ``subscribe`` loses 1–8 % of the frames at 2 kHz. A channel is opened once and kept, so that no frame is missed
    between two runs; it reconnects by itself when its server comes back. No Python function is called from the
    library's own threads, and the threads here end before the interpreter does: it would take the process down.
    """

    def __init__(self, take: Callable[[list[Frame]], Any], share: tuple[int, int] = (0, 1)) -> None:
        self._pva: Any = import_module("pvaccess")
        for codec, library in missing_libraries().items():
            logger.warning(
                "frames compressed with %s will be rejected: %s is not installed (pip install ptycho_bluesky[codecs])",
                codec,
                library,
            )
        self._take, self._share = take, share
        self._channels: dict[str, tuple[Any, Any]] = {}
        self._threads: list[threading.Thread] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.received = 0
        self.faulty = 0

    def open(self, channel: str) -> None:
        """Monitor a channel from now on, whether it is there yet or not; one that is open stays open."""
        with self._lock:
            if not channel or channel in self._channels or self._stop.is_set():
                return
            pva_queue = self._pva.PvObjectQueue(CLIENT_QUEUE)
            connection = self._pva.Channel(channel, self._pva.PVA)
            connection.qMonitor(pva_queue, f"record[queueSize={SERVER_QUEUE}]field()")
            self._channels[channel] = (connection, pva_queue)
            arguments = (channel, connection, pva_queue)
            thread = threading.Thread(target=self._run, args=arguments, name=f"pva-{channel}", daemon=True)
            if not self._threads:
                atexit.register(self.close)
            self._threads.append(thread)
        thread.start()

    def counters(self) -> tuple[int, int]:
        """Frames that wait in the queues here, and frames that the monitors lost."""
        waiting, lost = 0, 0
        with self._lock:
            for connection, pva_queue in self._channels.values():
                waiting += len(pva_queue)
                lost += int(pva_queue.getCounters().get("nRejected", 0))
                lost += int(connection.getMonitorCounters().get("nOverruns", 0))
        return waiting, lost

    def close(self, timeout_s: float = 3.0) -> None:
        """Stop every monitor."""
        self._stop.set()
        with self._lock:
            channels, self._channels = self._channels, {}
        for connection, _ in channels.values():
            connection.stopMonitor()
        for thread in self._threads:
            thread.join(timeout_s)
        atexit.unregister(self.close)

    def _run(self, channel: str, connection: Any, pva_queue: Any) -> None:
        connected = False
        while not self._stop.is_set():
            structures = self._drain(pva_queue)
            if bool(structures) != connected and connection.isConnected() != connected:
                connected = not connected
                logger.info("%s %s", channel, "connected" if connected else "disconnected")
            frames = self._frames(channel, structures)
            if frames:
                self._take(frames)
                time.sleep(NAP_S)

    def _drain(self, pva_queue: Any) -> list[Any]:
        """Everything that waits, or the next that comes."""
        waiting = len(pva_queue)
        try:
            if not waiting:
                return [pva_queue.get(GET_TIMEOUT_S)]
            return [pva_queue.get() for _ in range(min(waiting, MAX_AT_ONCE))]
        except self._pva.QueueEmpty:
            return []

    def _frames(self, channel: str, structures: list[Any]) -> list[Frame]:
        frames, arrival_s = [], time.time()
        k, n = self._share
        for structure in structures:
            try:
                if n > 1 and structure["uniqueId"] % n != k:
                    continue
                frame = frame_of(structure, channel, arrival_s)
            except Exception:  # one structure that cannot be read must not end the stream
                logger.exception("a structure on %s is skipped", channel)
                continue
            if frame is not None:
                self.faulty += bool(frame.fault)
                frames.append(frame)
        self.received += len(frames)
        return frames
