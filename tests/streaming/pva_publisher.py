"""Publishes numbered frames as NTNDArrays; run as a program by the tests.

Reads commands from stdin: ``ID COUNT PERIOD_S`` publishes COUNT frames with ids from ID; an empty line ends it.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import pvaccess as pva
from pvapy.utility.adImageUtility import AdImageUtility


def main(channel: str, size: int) -> None:
    server = pva.PvaServer()
    image = np.zeros((size, size), dtype=np.uint16)
    structure = AdImageUtility.generateNtNdArray2D(0, image)
    structure["attribute"] = [
        pva.NtAttribute("ColorMode", pva.PvInt(0)),
        pva.NtAttribute("SampleY_m", pva.PvDouble(0.0)),
        pva.NtAttribute("SampleX_m", pva.PvDouble(0.0)),
        pva.NtAttribute("I0", pva.PvDouble(1.0)),
    ]
    server.addRecord(channel, structure)
    print("READY", flush=True)  # noqa: T201
    for line in sys.stdin:
        if not line.strip():
            break
        first, count, period_s = line.split()
        publish(server, channel, image, int(first), int(count), float(period_s))
        print("DONE", flush=True)  # noqa: T201
    server.stop()


def publish(server, channel, image, first, count, period_s):
    start_s = time.monotonic()
    for i in range(count):
        image[0, 0] = i % 60_000
        structure = AdImageUtility.generateNtNdArray2D(first + i, image)
        structure["attribute"] = [
            pva.NtAttribute("ColorMode", pva.PvInt(0)),
            pva.NtAttribute("SampleY_m", pva.PvDouble(1e-6 + 1e-8 * (i % 30))),
            pva.NtAttribute("SampleX_m", pva.PvDouble(-2e-6 + 1e-8 * (i // 30))),
            pva.NtAttribute("I0", pva.PvDouble(1.0)),
        ]
        structure["dataTimeStamp"] = pva.PvTimeStamp(time.time())
        server.update(channel, structure)
        wait_s = start_s + (i + 1) * period_s - time.monotonic()
        if wait_s > 0:
            time.sleep(wait_s)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
