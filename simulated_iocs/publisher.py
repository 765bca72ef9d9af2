"""Frames on pvAccess as NTNDArray, one publication a frame."""

from __future__ import annotations

import logging
import queue
import threading
import time
from typing import Any

import numpy as np
import pvaccess
from numpy.typing import NDArray

from simulated_iocs.faults import Corrupter, Dice, Faults
from simulated_iocs.frames import Frame

__all__ = ["NS", "PVA", "FramePublisher", "fill_array"]

logger = logging.getLogger(__name__)

PVA: Any = pvaccess
"""The pvAccess library; an extension module without type information."""

UNION_FIELDS = {
    "uint8": "ubyteValue",
    "uint16": "ushortValue",
    "uint32": "uintValue",
    "int32": "intValue",
    "float32": "floatValue",
}
"""Member of the NTNDArray's value that holds each dtype."""
NS = 1_000_000_000


class FramePublisher:
    """One NTNDArray channel.

    The same object is filled anew for every frame: building one costs four times as much as filling it. The server
    copies what it must when it queues an update for a slow client.

    Parameters
    ----------
    server : pvaccess.PvaServer
    channel : str
        Name of the channel.
    frame_shape : tuple of int
        (H, W).
    dtype : str
        Of the frames.
    faults : Faults
        Looked at for every frame.
    seed : int
        Of the faults' dice.

    Notes
    -----
    `publish` is called by the detector's clock alone. It returns without waiting for any client.
    """

    def __init__(
        self,
        server: Any,
        channel: str,
        frame_shape: tuple[int, int],
        dtype: str,
        faults: Faults,
        seed: int = 0,
    ) -> None:
        self.channel, self.enabled = channel, True
        self._server, self._faults = server, faults
        self.published = self.dropped = 0
        self._lock = threading.Lock()
        # The record keeps the object it is made with: filling that one would publish every field on its own.
        first = self._array = PVA.NtNdArray()
        self._shape: tuple[int, int] | None = None
        self._corrupter = Corrupter()
        self._held: queue.SimpleQueue[tuple[float, Frame] | None] = queue.SimpleQueue()
        self._holder: threading.Thread | None = None
        self.reseed(seed)
        self._fill(Frame(np.zeros(frame_shape, dtype=dtype), 0, time.time(), np.nan, np.nan, np.nan))
        server.addRecord(channel, first)
        self._array, self._shape = PVA.NtNdArray(), None

    def reseed(self, seed: int) -> None:
        """Throw the dice anew."""
        self._dice = {name: Dice(seed, k) for k, name in enumerate(("drop", "duplicate", "corrupt"))}

    def publish(self, frame: Frame) -> None:
        """Publish a frame, or what the faults make of it."""
        if not self.enabled:
            return
        delay_s = self._faults.delay_s
        if delay_s > 0.0 or self._holder is not None:
            # Once there is a holding thread everything goes through it, so that frames keep their order.
            self._hold(frame, delay_s)
        else:
            self._send(frame)

    def _hold(self, frame: Frame, delay_s: float) -> None:
        self._held.put((time.monotonic() + delay_s, frame))
        if self._holder is None:
            self._holder = threading.Thread(target=self._send_held, name="pva-delay", daemon=True)
            self._holder.start()

    def _send_held(self) -> None:
        while (item := self._held.get()) is not None:
            due, frame = item
            time.sleep(max(0.0, due - time.monotonic()))
            self._send(frame)

    def _send(self, frame: Frame) -> None:
        faults, dice = self._faults, self._dice
        with self._lock:
            if dice["drop"].roll(faults.drop):
                self.dropped += 1
                return
            self._fill(frame, spoil=dice["corrupt"].roll(faults.corrupt))
            for _ in range(2 if dice["duplicate"].roll(faults.duplicate) else 1):
                self._server.updateUnchecked(self.channel, self._array)
            self.published += 1

    def _fill(self, frame: Frame, *, spoil: bool = False) -> None:
        flat: NDArray[Any] = frame.image.reshape(-1)
        shape: tuple[int, int] = (frame.image.shape[0], frame.image.shape[1])
        if spoil:
            flat, shape = self._corrupter(frame.image)
        array = self._array
        if shape != self._shape:
            array["dimension"] = [PVA.PvDimension(size, 0, size, 1, False) for size in reversed(shape)]
            self._shape = shape
        array["value"] = {UNION_FIELDS[flat.dtype.name]: flat}
        array["compressedSize"] = array["uncompressedSize"] = flat.nbytes
        array["uniqueId"] = frame.unique_id
        seconds, nanoseconds = divmod(round(frame.timestamp_s * NS), NS)
        for stamp in ("dataTimeStamp", "timeStamp"):
            array[f"{stamp}.secondsPastEpoch"] = seconds
            array[f"{stamp}.nanoseconds"] = nanoseconds
        array["attribute"] = [
            _attribute("SampleY_m", frame.position_y_m),
            _attribute("SampleX_m", frame.position_x_m),
            _attribute("I0", frame.i0),
        ]

    def close(self, timeout_s: float = 2.0) -> None:
        """Send what is held back and stop."""
        if self._holder is not None:
            self._held.put(None)
            self._holder.join(timeout_s)


def _attribute(name: str, value: float) -> dict[str, Any]:
    # A dictionary is filled in five times faster than an NtAttribute object is built.
    return {"name": name, "value": ({"value": value}, {"value": PVA.DOUBLE}), "source": "simulation"}


def fill_array(array: Any, image: NDArray[Any], y_m: float, x_m: float, i0: float) -> Any:
    """Put a frame (H, W), its position and its beam monitor into an NTNDArray, and return it.

    Number and time are left to the moment of publication.
    """
    flat = np.ascontiguousarray(image).reshape(-1)
    array["dimension"] = [PVA.PvDimension(size, 0, size, 1, False) for size in reversed(image.shape)]
    array["value"] = {UNION_FIELDS[flat.dtype.name]: flat}
    array["compressedSize"] = array["uncompressedSize"] = flat.nbytes
    array["attribute"] = [_attribute("SampleY_m", y_m), _attribute("SampleX_m", x_m), _attribute("I0", i0)]
    return array
