"""Whether the edge notices what its model cannot read: false alarms and detections, on simulated scans."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.bench.corpus import CorpusOptions, SimulatedCorpus
from ptycho_bluesky.bench.rows import Row
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import spiral_positions_m
from ptycho_bluesky.inference import LoadedModel, load_model
from ptycho_bluesky.records import Measurement
from ptycho_bluesky.simulation import Area, DetectorModel, Experiment
from ptycho_bluesky.streaming.replay import replay_run
from ptycho_bluesky.training.physics import stamp_physics
from ptycho_bluesky.trust.disagreement import disagreement
from ptycho_bluesky.trust.flags import Flag, Limits, run_flags
from ptycho_bluesky.trust.light import Light
from ptycho_bluesky.trust.physics import Physics, read_physics
from ptycho_bluesky.trust.residual import ResidualMeter

__all__ = ["TrustBench", "run"]

Progress = Callable[[int, int, str], None]
MAX_FALSE_ALARMS, MIN_DETECTION = 0.02, 0.95
"""What is asked for: frames of the training's kind flagged, scans of a kind that cannot be read flagged."""
USUAL = ("shapes-1", "shapes-2", "shapes-3")
REFERENCE = "shapes-0"
CENTRE_SHIFT_PX = 2
BRIGHT = 40.0
OTHER_SAMPLE_SEED = 1000


@dataclass(frozen=True)
class TrustBench:
    """What is measured.

    Attributes
    ----------
    corpus : CorpusOptions
        What the model was trained on; every scan here is of another sample of that kind.
    test_frames : int
        Frames of each test scan.
    window_frames : int
        Frames that are judged together, as a run.
    reference_frames : int, optional
        Frames of the scan that tells what is usual; a whole scan of ``corpus`` by default.
    """

    corpus: CorpusOptions
    test_frames: int = 400
    window_frames: int = 100
    reference_frames: int | None = None

    @property
    def sample(self) -> SimulatedCorpus:
        """Areas that no training has seen: one for the reference, three of the same kind, and letters."""
        seed = self.corpus.seed + OTHER_SAMPLE_SEED
        return SimulatedCorpus(replace(self.corpus, seed=seed, num_scans=len(USUAL)))


@dataclass(frozen=True)
class _Judged:
    """What the edge said of scans of one kind, by frames and by runs of ``window_frames``."""

    flags: NDArray[np.uint8]
    residual: NDArray[np.float32]
    runs: tuple[Flag, ...]

    @property
    def frame_rate(self) -> float:
        """Part of the frames that have a flag."""
        return float(np.mean(self.flags != 0))

    @property
    def run_rate(self) -> float:
        """Part of the runs that have one."""
        return float(np.mean([bool(flag) for flag in self.runs]))


def run(bench: TrustBench, model: bytes, progress: Progress | None = None) -> list[Row]:
    """Judge scans of every kind by the edge's own path.

    Parameters
    ----------
    bench : TrustBench
    model : bytes
        Trained on shapes of ``bench.corpus``; what is usual is measured anew, on an area that it has not seen.
    progress : callable, optional
        ``progress(done, total, name)``.

    Raises
    ------
    InputError
        The model does not fit the frames, or nothing usual could be measured.
    """
    reference = bench.sample.labels(_area(bench.sample.experiment, REFERENCE), 0, bench.reference_frames)
    light = Light.from_dict(reference.provenance.get("light"))
    loaded = load_model(stamp_physics(model, reference, light), num_threads=1)
    physics, reason = read_physics(loaded.engine.manifest)
    if physics is None or physics.limits is None:
        raise InputError(f"model {loaded.model_id[:12]}", reason or "it has no limits", "train it anew")
    scans = _scans(bench)
    rows: list[Row] = []
    for done, (name, make) in enumerate(scans.items()):
        if progress is not None:
            progress(done, len(scans), name)
        judged = _judge(make(), loaded, physics.limits, bench.window_frames)
        if name == "usual":
            rows += _floor_rows(physics, judged)
            rows.append(Row("ood_false_alarm_rate", "1", "lower", judged.frame_rate, target=MAX_FALSE_ALARMS))
            rows.append(Row("ood_run_false_alarm_rate", "1", "lower", judged.run_rate, target=MAX_FALSE_ALARMS))
            continue
        # letters are new to the network, but it reads them: reported, not asked for
        target = None if name == "letters" else MIN_DETECTION
        rows.append(Row(f"ood_detection_rate_{name}", "1", "higher", judged.run_rate, target=target))
        rows.append(Row(f"ood_frames_flagged_{name}", "1", "higher", judged.frame_rate))
    return [*rows, _cost_row(bench, loaded, physics)]


def _area(experiment: Experiment, name: str) -> Area:
    return next(area for area in experiment.sample_map.areas if area.name == name)


def _floor_rows(physics: Physics, judged: _Judged) -> list[Row]:
    figures = physics.figures
    ceiling = float(figures["residual_flat"])
    residual = float(np.nanmedian(judged.residual))
    floor = float(figures["residual_label"])
    return [
        Row("residual_floor", "1", "lower", floor, ceiling, "flat patch"),
        Row("residual_model", "1", "lower", residual, ceiling, "flat patch"),
        Row("residual_flat", "1", "higher", ceiling),
    ]


def _scans(bench: TrustBench) -> dict[str, Callable[[], list[Measurement]]]:
    """Test scans by name: the usual ones, and each fault alone."""
    experiment = bench.sample.experiment
    wide = DetectorModel(dtype="uint32", saturation_counts=2**31)
    plate, exposure_s = experiment.plate, bench.corpus.exposure_s
    thick = replace(experiment.sample_map, max_phase_rad=-2.5, min_amplitude=0.6)
    empty = replace(experiment.sample_map, max_phase_rad=0.0, min_amplitude=1.0)

    def scan(area: str = USUAL[0], exposure: float = 1.0, monitor: bool = True, **changes: Any) -> list[Measurement]:
        return [_measure(replace(experiment, **changes), bench, area, exposure_s * exposure, monitor)]

    def changed(change: Callable[[NDArray[Any]], NDArray[Any]]) -> list[Measurement]:
        return [replace(usual, image=np.ascontiguousarray(change(usual.image))) for usual in scan()]

    return {
        "usual": lambda: [each for area in USUAL for each in scan(area)],
        "defocus": lambda: scan(plate=replace(plate, defocus_m=0.5 * plate.defocus_m)),
        "probe": lambda: scan(plate=replace(plate, stop_diameter_m=0.0)),
        "centre": lambda: changed(lambda image: np.roll(image, (CENTRE_SHIFT_PX, -CENTRE_SHIFT_PX), axis=(1, 2))),
        "counts_x40": lambda: scan(exposure=BRIGHT, monitor=False, detector=wide),
        "orientation": lambda: changed(lambda image: np.swapaxes(image, 1, 2)),
        "no_sample": lambda: scan(sample_map=empty),
        "thick_sample": lambda: scan(sample_map=thick),
        "letters": lambda: scan("letters-0"),
    }


def _measure(experiment: Experiment, bench: TrustBench, name: str, exposure_s: float, monitor: bool) -> Measurement:
    """A scan as a file would hold it; without its monitor nothing tells how bright it is."""
    asked = spiral_positions_m(bench.test_frames, bench.corpus.step_m, _area(experiment, name).centre_m)
    scan = experiment.render(asked, exposure_s, seed=bench.corpus.seed)
    n = len(asked)
    index = np.arange(n, dtype=np.int64)
    return Measurement(
        image=scan.image,
        position_m=scan.position_m,
        frame_index=index,
        unique_id=index,
        timestamp_s=np.full(n, np.nan),
        i0=scan.i0 if monitor else np.full(n, np.nan),
        geometry=experiment.geometry,
        pixel_size_m=experiment.geometry.object_pixel_m,
        run_uid="bench",
    )


def _judge(scans: list[Measurement], model: LoadedModel, limits: Limits, window: int) -> _Judged:
    flags, residual, runs = [], [], []
    for scan in scans:
        for start in range(0, len(scan), window):
            mosaic, _ = replay_run(_rows(scan, slice(start, start + window)), model, batch_size=8)
            found = mosaic.frame_log["flag"]
            counted = {flag: int(np.count_nonzero(found & flag)) for flag in Flag if flag}
            spread = disagreement(mosaic.phase_rad, mosaic.variance, mosaic.coverage, mosaic.weight)
            runs.append(run_flags(len(found), counted, spread, limits))
            flags.append(found)
            residual.append(mosaic.frame_log["residual"])
    return _Judged(np.concatenate(flags), np.concatenate(residual), tuple(runs))


def _rows(scan: Measurement, rows: slice) -> Measurement:
    columns = ("image", "position_m", "frame_index", "unique_id", "timestamp_s", "i0")
    return replace(scan, **{name: getattr(scan, name)[rows] for name in columns})


def _cost_row(bench: TrustBench, model: LoadedModel, physics: Physics) -> Row:
    """Processor time of one residual, least of several tries."""
    counts = bench.sample.held_out(16).image.astype(np.float32)
    phase = model.engine.infer(counts)
    meter = ResidualMeter(physics, (phase.shape[1], phase.shape[2]))
    spent = []
    for _ in range(20):
        begun_s = time.thread_time()
        for start in range(0, len(counts), 4):
            meter.measure(counts[start : start + 4], phase[start : start + 4])
        spent.append((time.thread_time() - begun_s) / len(counts))
    return Row("residual_cost_us", "µs", "lower", 1e6 * min(spent))
