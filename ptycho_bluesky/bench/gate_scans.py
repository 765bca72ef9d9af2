"""The simulated experiment of `bench gate`: scans that a model is made from, then forty in which things change."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

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
LETTER_HEIGHT_M = 0.8e-6


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
class _Etched:
    """Transmission where the sample is thickest."""

    max_phase_rad: float
    min_amplitude: float


THIN, DEEP = _Etched(-0.6, 0.95), _Etched(-1.0, 0.9)


@dataclass(frozen=True)
class ScanOptions:
    """What is simulated.

    Attributes
    ----------
    size_px : int
        Rows and columns of a frame.
    num_before, num_scans : int
        Scans before anything changes, from which the model and the corpus come that every learner starts with; and
        those of the experiment.
    num_points : int
    step_m : float
        Of the spirals.
    exposure_s : float
        Before the dose changes.
    period_s : float
        From the start of a scan to that of the next, on the clock of the experiment.
    sample_change, probe_drift, dose_change : int
        First scan of the experiment that shows each.
    after : {"deeper", "shapes"}
        What the sample changes to, from letters: the same kind, etched 1.7 times as deep, or deeper random shapes, of
        which a model takes tens of scans to learn all it can.
    drift_scans : int
        Scans over which the probe drifts.
    defocus_m : tuple of float
        Before and after the drift.
    dose_factor : float
        Of the exposure at the dose change.
    seed : int
    """

    size_px: int = 64
    num_before: int = 8
    num_scans: int = 40
    num_points: int = 260
    step_m: float = 130e-9
    exposure_s: float = 4e-3
    period_s: float = 60.0
    sample_change: int = 12
    probe_drift: int = 21
    dose_change: int = 31
    drift_scans: int = 2
    defocus_m: tuple[float, float] = (0.19e-3, 0.15e-3)
    dose_factor: float = 1 / 16
    after: Literal["deeper", "shapes"] = "deeper"
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
    Scans are numbered from 0, those before the experiment first. Every one is of an area of its own: thin letters
    before the sample changes. (From shapes to letters a model does not get worse, only a retrained one better, and no
    mismatch tells of it.) Frames are simulated, and the reference of `score` is the true object.
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
        rendered = experiment.render(position, exposure_s, seed=1000 * options.seed + scan)
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
        changed = self._number(scan) >= self.options.dose_change
        return self.options.exposure_s * (self.options.dose_factor if changed else 1.0)

    def _experiment(self, scan: int) -> Experiment:
        options = self.options
        done = np.clip((self._number(scan) - options.probe_drift + 1) / options.drift_scans, 0.0, 1.0)
        first, last = options.defocus_m
        plate = replace(ZonePlate(), defocus_m=float(first + done * (last - first)))
        geometry = default_geometry(options.size_px)
        side = 2 * options.step_m * np.sqrt(options.num_points / np.pi) + 1.5e-6
        changed = self._number(scan) >= options.sample_change
        shapes = changed and options.after == "shapes"
        area = Area("shapes" if shapes else "letters", (0.0, 0.0), side, seed=1000 * options.seed + scan)
        etched = DEEP if changed else THIN
        sample = SampleMap(
            (area,),
            geometry.object_pixel_m,
            letter_height_m=LETTER_HEIGHT_M,
            max_phase_rad=etched.max_phase_rad,
            min_amplitude=etched.min_amplitude,
        )
        return Experiment.default(options.size_px, sample, plate=plate)

    def _number(self, scan: int) -> int:
        """Number of a scan in the experiment; negative before it."""
        return scan - self.options.num_before
