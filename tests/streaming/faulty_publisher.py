"""Publishes the frames of a simulated run with faults; run as a program by the tests.

Arguments: channel, and a file with ``image``, ``unique_id``, ``timestamp_s``, ``position_m``. Each line of its input is
a JSON list of ``[row, fault]``, published in this order, 1 ms apart; an empty line ends it.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np

from simulated_iocs.publisher import NS, PVA, UNION_FIELDS, fill_array


def main(channel: str, path: str) -> None:
    with np.load(path) as content:
        run = dict(content)
    server = PVA.PvaServer()
    server.addRecord(channel, fill_array(PVA.NtNdArray(), np.zeros_like(run["image"][0]), np.nan, np.nan, np.nan))
    print("READY", flush=True)  # noqa: T201
    for line in sys.stdin:
        if not line.strip():
            break
        for row, fault in json.loads(line):
            server.update(channel, structure(run, row, fault))
            time.sleep(0.001)
        print("DONE", flush=True)  # noqa: T201
    server.stop()


def structure(run, row, fault):
    image = run["image"][row]
    if fault == "shape":
        image = image[:, :-2]
    elif fault == "nan":
        image = image.copy()
        image[3, 3] = np.nan
    array = fill_array(PVA.NtNdArray(), image, *run["position_m"][row].tolist(), 1.0)
    if fault == "truncated":
        array["value"] = {UNION_FIELDS[image.dtype.name]: image.reshape(-1)[:-9]}
    array["uniqueId"] = int(run["unique_id"][row])
    seconds, nanoseconds = divmod(round(float(run["timestamp_s"][row]) * NS), NS)
    array["dataTimeStamp.secondsPastEpoch"], array["dataTimeStamp.nanoseconds"] = seconds, nanoseconds
    return array


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
