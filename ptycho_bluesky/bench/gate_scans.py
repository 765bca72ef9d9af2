"""The simulated experiment of `bench gate`: forty scans during which sample, probe and dose change."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.geometry import ObjectFrame, spiral_positions_m
from ptycho_bluesky.metrics import mosaic_ssim
from ptycho_bluesky.models.export import from_onnx
from ptycho_bluesky.records import Measurement
from ptycho_bluesky.simulation import Area, Experiment, SampleMap, ZonePlate, default_geometry
from ptycho_bluesky.stitching.illumination import illumination, sample_at
from ptycho_bluesky.stitching.mosaic import MosaicBuilder
from ptycho_bluesky.training.evaluate import predict
from ptycho_bluesky.trust.light import Light, LightScale
from ptycho_bluesky.trust.physics import read_physics

__all__ = ["Change", "GateScans", "ScanOptions"]

T0_S = 1_700_000_000.0


@dataclass(frozen=True)
class Change:
    """Something that a model must be told of.

    Attributes
    ----------
    name : str
    scan : int
        First scan that shows it.
    """

    name: str
    scan: int


@dataclass(frozen=True)
class ScanOptions:
    """What is simulated.

    Attributes
    ----------
    size_px : int
        Rows and columns of a frame.
    num_scans, num_points : int
    step_m : float
        Of the spirals.
    exposure_s : float
        Before the dose changes.
    period_s : float
        From the start of a scan to that of the next, on the clock of the experiment.
    sample_change, probe_drift, dose_change : int
        First scan that shows each.
    drift_scans : int
        Scans over which the probe drifts.
    defocus_m : tuple of float
        Before and after the drift.
    dose_factor : float
        Of the exposure at the dose change.
    seed : int
    """

    size_px: int = 64
    num_scans: int = 40
    num_points: int = 260
    step_m: float = 130e-9
    exposure_s: float = 1e-3
    period_s: float = 60.0
    sample_change: int = 12
    probe_drift: int = 21
    dose_change: int = 31
    drift_scans: int = 3
    defocus_m: tuple[float, float] = (0.19e-3, 0.165e-3)
    dose_factor: float = 1 / 16
    seed: int = 7

    @property
    def changes(self) -> tuple[Change, ...]:
        """What changes, and when."""
        return (
            Change("sample", self.sample_change),
            Change("probe", self.probe_drift),
            Change("dose", self.dose_change),
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)


class GateScans:
    """Scans of the experiment, rendered when they are asked for.

    Parameters
    ----------
    options : ScanOptions

    Notes
    -----
    Every scan is of an area of its own: thin letters before the sample changes, thicker random shapes after it. (The
    other way round a model does not get worse by the change, only a retrained one better, and no mismatch tells of it.)
    Frames are simulated, and the reference of `score` is the true object.
    """

    def __init__(self, options: ScanOptions) -> None:
        self.options = options
        self._last: tuple[int, Measurement] | None = None

    def measurement(self, scan: int) -> Measurement:
        """One scan as the worker reads it from Tiled."""
        if self._last is not None and self._last[0] == scan:
            return self._last[1]
        options, experiment = self.options, self._experiment(scan)
        position = spiral_positions_m(options.num_points, options.step_m, (0.0, 0.0))
        exposure_s = self._exposure_s(scan)
        rendered = experiment.render(position, exposure_s, seed=options.seed + 1000 * scan)
        n = len(position)
        light = {"i0": float(rendered.i0.mean()), "exposure_s": exposure_s}
        measurement = Measurement(
            image=rendered.image,
            position_m=rendered.position_m,
            frame_index=np.arange(n),
            unique_id=np.arange(n),
            timestamp_s=np.asarray(self.time_s(scan) + exposure_s * np.arange(n), dtype=np.float64),
            i0=rendered.i0,
            geometry=experiment.geometry,
            pixel_size_m=experiment.geometry.object_pixel_m,
            run_uid=self.uid(scan),
            metadata={"exit_status": "success", "light": light, "simulated": True},
        )
        self._last = (scan, measurement)
        return measurement

    def uid(self, scan: int) -> str:
        """Name of a scan."""
        return f"scan-{scan:03d}"

    def time_s(self, scan: int) -> float:
        """Start of a scan on the clock of the experiment."""
        return T0_S + scan * self.options.period_s

    def score(self, scan: int, model: bytes) -> float:
        """Structural similarity of a model's image of a scan with the true object, the counts scaled as at the edge."""
        measurement, experiment = self.measurement(scan), self._experiment(scan)
        reader, manifest = from_onnx(model)
        physics, _ = read_physics(manifest)
        factor = 1.0
        if physics is not None:
            scale = LightScale(physics.light, Light.from_dict(measurement.metadata["light"]))
            factor = float(np.median(scale.factors(np.asarray(measurement.i0))[0]))
        phase = predict(reader, np.asarray(measurement.image), count_scale=factor)
        patch = (phase.shape[1], phase.shape[2])
        weight = np.asarray(manifest["patch_weight"], dtype=np.float32)
        position = np.asarray(measurement.position_m)
        builder = MosaicBuilder(ObjectFrame.around(position, patch, measurement.step_px_m), patch, weight)
        builder.add(phase, position)
        image = builder.snapshot()
        obj, frame = experiment.truth()
        reference = np.angle(sample_at(obj, frame, image.frame))
        return mosaic_ssim(
            image.phase_rad, reference, image.coverage, illumination(experiment.probe, position, image.frame)
        ).ssim

    def _exposure_s(self, scan: int) -> float:
        changed = scan >= self.options.dose_change
        return self.options.exposure_s * (self.options.dose_factor if changed else 1.0)

    def _experiment(self, scan: int) -> Experiment:
        options = self.options
        done = np.clip((scan - options.probe_drift + 1) / options.drift_scans, 0.0, 1.0)
        first, last = options.defocus_m
        plate = replace(ZonePlate(), defocus_m=float(first + done * (last - first)))
        geometry = default_geometry(options.size_px)
        side = 2 * options.step_m * np.sqrt(options.num_points / np.pi) + 1.5e-6
        letters = scan < options.sample_change
        area = Area("letters" if letters else "shapes", (0.0, 0.0), side, seed=options.seed + scan)
        sample = SampleMap([area], geometry.object_pixel_m, **(self._letters if letters else {}))  # pyright: ignore
        return Experiment.default(options.size_px, sample, plate=plate)

    @cached_property
    def _letters(self) -> dict[str, Any]:
        return {"max_phase_rad": -0.6, "min_amplitude": 0.95, "letter_height_m": 0.8e-6}

    def shuffled(self, image: NDArray[Any], scan: int) -> NDArray[np.int64]:
        """A permutation without fixed order, to poison labels with."""
        return np.random.default_rng(self.options.seed + scan).permutation(len(image))
