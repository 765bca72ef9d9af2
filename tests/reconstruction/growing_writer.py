"""Writes a scan into an areaDetector file piece by piece, as a detector would; run as a process of its own."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import h5py
import numpy as np

from ptycho_bluesky.io import area_detector

LONGEST_WAIT_S = 120.0


def main(source: str, target: str, pieces: int, pause_s: float, end: str) -> None:
    """Write the frames in pieces, then close the file, or die; the last piece waits for a file where one is named."""
    scan = np.load(source)
    geometry = area_detector.Geometry(**{name: scan[name].item() for name in ("energy_eV", "distance_m",
                                      "detector_pixel_m", "num_px", "orientation")})  # fmt: skip
    with h5py.File(target, "w", libver="latest") as file:
        datasets = area_detector.create_datasets(file, scan["image"].shape[1:], np.uint16, geometry=geometry)
        file.swmr_mode = True
        for number, rows in enumerate(np.array_split(np.arange(len(scan["image"])), pieces)):
            if number == pieces - 1 and end not in ("close", "die"):
                wait_for(Path(end))
            area_detector.append_rows(
                datasets, scan["image"][rows].astype(np.uint16), rows + 1,
                position_y_m=scan["position_m"][rows, 0], position_x_m=scan["position_m"][rows, 1],
                timestamp_s=rows.astype(float), i0=np.full(len(rows), 5.0),
            )  # fmt: skip
            for dataset in datasets.values():
                dataset.flush()
            time.sleep(pause_s)
        if end == "die":
            os.abort()


def wait_for(path: Path) -> None:
    until = time.monotonic() + LONGEST_WAIT_S
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.05)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), sys.argv[5])
