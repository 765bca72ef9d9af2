"""A detector that does nothing but stream: frames rendered beforehand, on pvAccess, on a clock that waits for nobody.

For measurements, where the control layer and the file of the whole simulated beamline would take cores that the edge
needs. Run as ``python -m simulated_iocs.stream CHANNEL FRAMES.npz``; it prints a line of JSON when it is ready and
then obeys lines of JSON on its standard input (`StreamCommand`), answering each when its last frame has left
(`StreamReport`). An empty line, or the end of the input, ends it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simulated_iocs.publisher import NS, PVA, fill_array

__all__ = ["FrameStream", "StreamCommand", "StreamReport", "main"]

SHORTEST_SLEEP_S = 0.001
"""The clock sleeps no shorter: above 1 kHz frames leave a few at a time, each with the time stamp of its own end."""


@dataclass(frozen=True)
class StreamCommand:
    """What to stream.

    Attributes
    ----------
    first_id : int
        Unique id of the first frame.
    count : int
        Frames; those that were rendered are repeated.
    period_s : float
        Between two frames.
    """

    first_id: int
    count: int
    period_s: float


@dataclass(frozen=True)
class StreamReport:
    """What was streamed, by the detector's own count and clock.

    Attributes
    ----------
    count : int
    begun_s : float
        Begin of the first exposure, seconds since the epoch; frame k was stamped (k + 1) periods later.
    seconds : float
        From there to the last frame's publication.
    latest_s : float
        By how much the worst frame left after its time.
    cpu_s : float
        CPU time of the process.
    """

    count: int
    begun_s: float
    seconds: float
    latest_s: float
    cpu_s: float


class FrameStream:
    """One NTNDArray channel with an array of its own for every rendered frame.

    Parameters
    ----------
    server : pvaccess.PvaServer
    channel : str
    image : ndarray of unsigned int, shape (n, H, W)
        Counts.
    position_m : ndarray of float64, shape (n, 2)
        Readback (y, x) of each.
    i0 : ndarray of float64, shape (n,)
        Beam monitor of each.
    """

    def __init__(self, server: Any, channel: str, image: Any, position_m: Any, i0: Any) -> None:
        self._server, self._channel = server, channel
        self._arrays = [
            fill_array(PVA.NtNdArray(), frame, y_m, x_m, monitor)
            for frame, (y_m, x_m), monitor in zip(image, position_m.tolist(), i0.tolist(), strict=True)
        ]
        # the record publishes whatever is assigned to the array that it was made with: it gets one of its own
        server.addRecord(channel, fill_array(PVA.NtNdArray(), np.zeros_like(image[0]), np.nan, np.nan, np.nan))

    def run(self, command: StreamCommand) -> StreamReport:
        """Stream; a frame that is late leaves at once, none waits for a client."""
        clock, cpu_s = time.perf_counter, time.process_time()
        begun_s, start = time.time(), clock()
        begun_ns, period_ns = round(begun_s * NS), command.period_s * NS
        latest_s = 0.0
        for k in range(command.count):
            wait_s = start + (k + 1) * command.period_s - clock()
            if wait_s > 0:
                time.sleep(max(wait_s, SHORTEST_SLEEP_S))
            else:
                latest_s = max(latest_s, -wait_s)
            self._publish(k, command.first_id + k, begun_ns + round((k + 1) * period_ns))
        return StreamReport(command.count, begun_s, clock() - start, latest_s, time.process_time() - cpu_s)

    def _publish(self, k: int, unique_id: int, stamp_ns: int) -> None:
        array = self._arrays[k % len(self._arrays)]
        seconds, nanoseconds = divmod(stamp_ns, NS)
        array["uniqueId"] = unique_id
        array["dataTimeStamp.secondsPastEpoch"] = seconds
        array["dataTimeStamp.nanoseconds"] = nanoseconds
        array["timeStamp.secondsPastEpoch"] = seconds
        array["timeStamp.nanoseconds"] = nanoseconds
        self._server.updateUnchecked(self._channel, array)


def main(channel: str, path: Path) -> None:
    """Serve a channel until the input ends."""
    with np.load(path, allow_pickle=False) as content:
        image, position_m, i0 = content["image"], content["position_m"], content["i0"]
    server = PVA.PvaServer()
    stream = FrameStream(server, channel, image, position_m, i0)
    _answer({"ready": True, "frames": len(image)})
    for line in sys.stdin:
        if not line.strip():
            break
        _answer(asdict(stream.run(StreamCommand(**json.loads(line)))))
    server.stop()


def _answer(content: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(content) + os.linesep)
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
