"""A simulated run: documents, stream and file, with every fault that the edge must stand."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ptycho_bluesky.geometry import Geometry, spiral_positions_m
from ptycho_bluesky.io import area_detector
from ptycho_bluesky.streaming.frames import Frame

SIZE = 16
GEOMETRY = Geometry(10_000.0, 1.0, 75e-6, SIZE)
STEP_M = 2 * GEOMETRY.object_pixel_m
T0 = 1_800_000_000.0
PERIOD_S = 0.001


@dataclass
class FakeRun:
    """A run of a fly scan, with what stream and file deliver of it.

    Every frame holds its own index in its first pixel, so that a test can tell whether a frame was joined rightly.
    """

    path: Path
    num_points: int = 40
    pauses: tuple[int, ...] = ()
    first_id: int = 1
    reset: bool = False
    uid: str = "run-1"
    seed: int = 0
    start_s: float = T0
    gap_s: float = 5.0
    positions_in_frames: bool = True
    offset_px: float = 0.0
    """How far the measured positions lie from the planned ones, in object pixels."""
    channel: str = "det"
    dtype: Any = np.uint16
    documents: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.planned_m = spiral_positions_m(self.num_points, STEP_M, (3e-6, -2e-6))
        shift = np.array([self.offset_px, -self.offset_px]) * GEOMETRY.object_pixel_m
        self.position_m = self.planned_m + shift
        rng = np.random.default_rng(self.seed)
        self.image = rng.poisson(20.0, (self.num_points, SIZE, SIZE)).astype(self.dtype)
        self.image[:, 0, 0] = np.arange(self.num_points) % 60_000
        self._build()

    def _build(self) -> None:
        self.head = [("start", self._start()), self._descriptor("trajectory"), self._trajectory()]
        self.head += [self._descriptor("segments"), self._descriptor("segment_ends"), self._descriptor("primary")]
        self.parts: list[dict[str, Any]] = []
        index, next_id, time_s = 0, self.first_id, self.start_s + 1.0
        stops = [*np.cumsum(self.pauses, dtype=int).tolist(), self.num_points]
        for number, stop in enumerate(min(s, self.num_points) for s in stops):
            if self.reset:
                next_id = 1
            segment = {
                "segment_index": number,
                "first_unique_id": next_id,
                "first_frame_index": index,
                "num_frames": self.num_points - index,
                "pva_channel": self.channel,
                "first_file_row": index,
            }
            begun = self._event("segments", segment, number, time_s)
            frames = []
            for i in range(index, stop):
                time_s += PERIOD_S
                y, x = self.position_m[i] if self.positions_in_frames else (np.nan, np.nan)
                frames.append(Frame(next_id, self.image[i], time_s, (y, x), 1.0, np.nan, self.channel))
                next_id += 1
            end = {
                "segment_index": number,
                "frames_generated": stop - index,
                "last_unique_id": next_id - 1,
            }
            ended = self._event("segment_ends", end, number, time_s + 0.001)
            self.parts.append({"begun": begun, "frames": frames, "ended": ended})
            index, time_s = stop, time_s + self.gap_s
        self.frames = [frame for part in self.parts for frame in part["frames"]]
        self.resources = [self._resource(suffix) for suffix in ("image", "unique_id", *area_detector.COLUMNS)]
        self.stop = ("stop", {"uid": self.uid + "-stop", "run_start": self.uid, "exit_status": "success"})

    def datums(self, rows: int, first: int = 0):
        def datum(resource):
            return "stream_datum", {
                "uid": f"{resource['uid']}/{rows}",
                "stream_resource": resource["uid"],
                "descriptor": f"{self.uid}-primary",
                "indices": {"start": first, "stop": rows},
                "seq_nums": {"start": first + 1, "stop": rows + 1},
            }

        return [datum(resource) for _, resource in self.resources]

    def all_documents(self, rows: int | None = None):
        docs = list(self.head)
        for part in self.parts:
            docs += [part["begun"], part["ended"]]
        return [*docs, *self.resources, *self.datums(self.num_points if rows is None else rows), self.stop]

    def write_file(self, keep=None, image=None, swmr: bool = False) -> Path:
        """Write the rows for which ``keep`` is true."""
        keep = np.ones(self.num_points, dtype=bool) if keep is None else np.asarray(keep)
        for part in self.parts:
            data = part["begun"][1]["data"]
            data["first_file_row"] = int(keep[: data["first_frame_index"]].sum())
        image = self.image if image is None else image
        ids = np.array([frame.unique_id for frame in self.frames])
        times = np.array([frame.timestamp_s for frame in self.frames])
        with h5py.File(self.path, "w", libver="latest") as file:
            datasets = area_detector.create_datasets(file, (SIZE, SIZE), image.dtype, geometry=GEOMETRY)
            area_detector.append_rows(
                datasets,
                image[keep],
                ids[keep],
                timestamp_s=times[keep],
                position_y_m=self.position_m[keep, 0],
                position_x_m=self.position_m[keep, 1],
                i0=np.ones(int(keep.sum())),
            )
        return self.path

    def _start(self):
        return {
            "uid": self.uid,
            "time": self.start_s,
            "plan_name": "fly_spiral_ptycho",
            "ptycho": {
                "version": 1,
                "geometry": GEOMETRY.as_dict(),
                "pixel_size_m": GEOMETRY.object_pixel_m,
                "frame_shape": [SIZE, SIZE],
                "scan": {"num_points": self.num_points},
                "detector": {"channel": self.channel, "image_key": "det_image"},
                "purpose": "train",
            },
        }

    def _descriptor(self, name):
        return "descriptor", {"uid": f"{self.uid}-{name}", "run_start": self.uid, "name": name, "data_keys": {}}

    def _event(self, stream, data, number, time_s):
        return "event", {
            "uid": f"{self.uid}-{stream}-{number}",
            "descriptor": f"{self.uid}-{stream}",
            "seq_num": number + 1,
            "time": time_s,
            "data": data,
            "timestamps": {},
        }

    def _trajectory(self):
        planned = {"planned_y_m": self.planned_m[:, 0].tolist(), "planned_x_m": self.planned_m[:, 1].tolist()}
        return self._event("trajectory", planned, 0, self.start_s)

    def _resource(self, suffix):
        dataset = {"image": area_detector.FRAMES, "unique_id": area_detector.UNIQUE_ID, **area_detector.COLUMNS}[suffix]
        return "stream_resource", {
            "uid": f"{self.uid}-{suffix}",
            "run_start": self.uid,
            "data_key": f"det_{suffix}",
            "mimetype": "application/x-hdf5",
            "uri": f"file://localhost{self.path}",
            "parameters": {"dataset": dataset, "chunk_shape": [1, SIZE, SIZE], "swmr": True},
        }


@pytest.fixture
def fake_run(tmp_path):
    """Factory of runs with a file of their own."""
    made = []

    def make(**options):
        options.setdefault("uid", f"run-{len(made)}")
        run = FakeRun(path=tmp_path / f"{options['uid']}.h5", **options)
        made.append(run)
        return run

    return make
