"""What the live bench's detector streams: frames of a simulated scan, rendered beforehand, and the run's documents."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.bench.corpus import CorpusOptions, SimulatedCorpus
from ptycho_bluesky.geometry import Geometry, spiral_positions_m

__all__ = ["LiveScene", "RunOfFrames"]

STEP_M = 50e-9
"""Step of the spiral: 4096 points stay inside one area of the sample."""

Document = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class LiveScene:
    """Frames of one scan.

    Attributes
    ----------
    image : ndarray of uint16, shape (n, size, size)
        Counts, with photon noise.
    position_m : ndarray of float64, shape (n, 2)
    i0 : ndarray of float64, shape (n,)
    geometry : Geometry
    exposure_s : float
    """

    image: NDArray[Any]
    position_m: NDArray[np.float64]
    i0: NDArray[np.float64]
    geometry: Geometry
    exposure_s: float

    @classmethod
    def render(cls, size_px: int = 128, num_frames: int = 4096) -> LiveScene:
        """Render a spiral on the area of the bench's sample that no network learns from."""
        corpus = SimulatedCorpus(CorpusOptions(size_px=size_px))
        experiment = corpus.experiment
        area = next(area for area in experiment.sample_map.areas if area.name == "shapes-0")
        exposure_s = corpus.options.exposure_s
        scan = experiment.render(spiral_positions_m(num_frames, STEP_M, area.centre_m), exposure_s, seed=7)
        return cls(scan.image, scan.position_m, np.asarray(scan.i0), experiment.geometry, exposure_s)

    def save(self, path: Path) -> None:
        """Write what `simulated_iocs.stream` reads."""
        np.savez(path, image=self.image, position_m=self.position_m, i0=self.i0)


@dataclass(frozen=True)
class RunOfFrames:
    """A run that repeats the scene's scan until it has its number of frames.

    Attributes
    ----------
    scene : LiveScene
    uid, channel : str
    first_id, count : int
        Unique id of the first frame, and frames.
    """

    scene: LiveScene
    uid: str
    channel: str
    first_id: int
    count: int

    def opening(self) -> Iterator[Document]:
        """Documents before the first frame."""
        scene = self.scene
        ptycho = {
            "version": 1,
            "geometry": scene.geometry.as_dict(),
            "pixel_size_m": scene.geometry.object_pixel_m,
            "frame_shape": list(scene.image.shape[1:]),
            "scan": {"num_points": self.count, "exposure_s": scene.exposure_s},
            "detector": {"channel": self.channel, "image_key": "det_image"},
            "purpose": "bench",
        }
        yield "start", {"uid": self.uid, "time": time.time(), "plan_name": "bench_live", "ptycho": ptycho}
        for name in ("trajectory", "segments", "segment_ends"):
            yield "descriptor", {"uid": f"{self.uid}-{name}", "run_start": self.uid, "name": name, "data_keys": {}}
        once = scene.position_m[: self.count]  # repeats lie where the first pass does: the canvas needs no more
        yield self._event("trajectory", {"planned_y_m": once[:, 0].tolist(), "planned_x_m": once[:, 1].tolist()})
        segment = {"segment_index": 0, "first_unique_id": self.first_id, "first_frame_index": 0}
        yield self._event("segments", {**segment, "num_frames": self.count, "pva_channel": self.channel})

    def closing(self) -> Iterator[Document]:
        """Documents after the last frame."""
        end = {"segment_index": 0, "frames_generated": self.count, "last_unique_id": self.first_id + self.count - 1}
        yield self._event("segment_ends", end)
        yield "stop", {"uid": f"{self.uid}-stop", "run_start": self.uid, "exit_status": "success", "time": time.time()}

    def _event(self, stream: str, data: dict[str, Any]) -> Document:
        return "event", {
            "uid": f"{self.uid}-{stream}-event",
            "descriptor": f"{self.uid}-{stream}",
            "seq_num": 1,
            "time": time.time(),
            "data": data,
            "timestamps": {},
        }
