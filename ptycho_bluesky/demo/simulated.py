"""The demo on a simulated sample: scans of random shapes, then one of letters."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ptycho_bluesky.demo.acquire import Acquisition
from ptycho_bluesky.demo.display import Display
from ptycho_bluesky.demo.facility import Facility, demo_settings
from ptycho_bluesky.demo.options import DemoOptions
from ptycho_bluesky.demo.pictures import Panel, draw_curve, draw_panels
from ptycho_bluesky.demo.results import DemoResult, FixedPoint, ScanResult
from ptycho_bluesky.demo.score import Reference
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import overlap

if TYPE_CHECKING:
    from ptycho_bluesky.records import Measurement, Mosaic
    from ptycho_bluesky.simulation.experiment import Experiment
    from ptycho_bluesky.simulation.sample_map import Area

__all__ = ["SimulatedDemo"]

TITLES = {"letters": "letters", "test": "fixed", "reserved": "gate"}
"""How the report calls what is no scan of shapes that is learned from."""
DISTURBED = ("edge", "worker", "writer", "tiled")


class SimulatedDemo:
    """Scans a simulated sample area by area, and measures how the live image gets better.

    Parameters
    ----------
    options : DemoOptions
    display : Display
    """

    def __init__(self, options: DemoOptions, display: Display) -> None:
        from ptycho_bluesky.simulation.experiment import Experiment, default_geometry
        from ptycho_bluesky.simulation.sample_map import demo_map

        self.options, self.display, self.folder = options, display, options.out
        geometry = default_geometry(options.size)
        # Two areas of shapes are never learned from: the gate decides on one, the figures are taken on the other, so
        # that a promotion is not chosen by the figure that reports it. Letters lie in an area of their own.
        self.sample = demo_map(options.scans + 2, pixel_size_m=geometry.object_pixel_m, seed=options.seed)
        self.experiment: Experiment = Experiment.default(options.size, self.sample)
        obj, frame = self.experiment.truth()
        pixel_m = geometry.object_pixel_m
        self.reference = Reference(obj, frame, self.experiment.probe, self.experiment.beam_m / pixel_m)
        self._check_gaps()
        self.result = DemoResult(
            "The closed loop on a simulated sample",
            {**options.model_dump(exclude={"out", "recorded"}), "overlap": round(self._overlap, 3)},
        )
        self._disturb_next = list(DISTURBED) if options.disturb else []
        self._panels: list[Panel] = []
        self._fixed_panels: list[Panel] = []

    @property
    def _overlap(self) -> float:
        return float(overlap(self.options.step_m, self.experiment.beam_m))

    def _check_gaps(self) -> None:
        if self.sample.smallest_gap_m() < self.experiment.beam_m:
            raise InputError(
                f"areas {self.sample.smallest_gap_m() * 1e6:.2f} µm apart",
                f"they must be separate by at least the probe's diameter, {self.experiment.beam_m * 1e6:.2f} µm",
            )

    def facility(self, *, live_plot: bool) -> Facility:
        """Everything that runs beside this process."""
        sample_file = self.folder / "sample.json"
        sample_file.write_text(json.dumps(self.experiment.as_dict(), indent=1))
        flags = {"train__seed": self.options.seed, "train__frames_per_scan": self.options.frames_per_scan}
        settings = demo_settings(self.folder, **flags)
        arguments = ["--sample", str(sample_file), "--size", str(self.options.size), "--seed", str(self.options.seed)]
        return Facility(settings, self.folder, arguments, self.display, live_plot=live_plot)

    @property
    def steps(self) -> int:
        """Steps of the whole demo."""
        return self.options.scans + 5

    def run(self, facility: Facility) -> DemoResult:
        """Put two scans aside, learn scan by scan, finish with letters."""
        areas = {area.name: area for area in self.sample.areas}
        acquisition = Acquisition(facility, self.result, self.display)
        acquisition.between = lambda: self._disturb(acquisition)
        self.display.step("scan to measure by, never learned from")
        fixed = self._acquire(acquisition, areas["shapes-0"], "test", 0)
        fixed_run = facility.store.read_run(fixed.uid)
        self.display.step("scan for the gate, never learned from")
        self._acquire(acquisition, areas[f"shapes-{self.options.scans + 1}"], "reserved", 0)
        for number in range(1, self.options.scans + 1):
            self.display.step(f"scan {number} of {self.options.scans}")
            scan = self._acquire(acquisition, areas[f"shapes-{number}"], "train", number)
            self._follow_model(acquisition, scan, fixed_run)
        self.display.step("letters")
        self._acquire(acquisition, areas["letters-0"], "test", self.options.scans + 1)
        self.display.step("pictures")
        self._draw()
        return self.result

    def _acquire(self, acquisition: Acquisition, area: Area, purpose: str, number: int) -> ScanResult:
        session, options = acquisition.facility.session, self.options
        plan = session.fly_spiral_ptycho(
            session.flyer,
            session.stage,
            num_points=options.num_points,
            step_m=options.step_m,
            beam_m=self.experiment.beam_m,
            centre_m=area.centre_m,
            exposure_s=0.8 * options.period_s,
            period_s=options.period_s,
            shutter=session.shutter,
            purpose=purpose,
            md={"sample": area.name},
        )
        title = TITLES.get(purpose if number == 0 else area.kind, area.name)
        scan, mosaic = acquisition.scan(plan, number=number, title=title, purpose=purpose, score=self.reference.score)
        self._keep_panels(scan, mosaic)
        return scan

    def _keep_panels(self, scan: ScanResult, mosaic: Mosaic) -> None:
        shown = scan.title == "letters" or scan.number in {2, (self.options.scans + 2) // 2, self.options.scans}
        if scan.ssim is not None and shown:
            title = f"{scan.title} live, SSIM {scan.ssim.ssim:.2f}"
            truth, image = self.reference.panels(mosaic, title)
            truth.title = f"{scan.title}, truth (simulated)"
            self._panels += [truth, image]

    def _follow_model(self, acquisition: Acquisition, scan: ScanResult, fixed_run: Measurement) -> None:
        """Wait until the edge serves what was promoted, then read the fixed scan with it."""
        from ptycho_bluesky.streaming.replay import replay_run

        facility = acquisition.facility
        serving = facility.store.model_store.serving()
        if serving is None:
            return
        with acquisition.timing("swap"):
            facility.wait_model(serving.model_id)
        with acquisition.timing("replay_fixed"):
            _, content = facility.store.model_store.get(serving.model_id)
            mosaic, _ = replay_run(fixed_run, content)
        point = FixedPoint(scan.number, serving.model_id, self.reference.score(mosaic))
        self.result.fixed.append(point)
        truth, image = self.reference.panels(mosaic, f"fixed scan after scan {scan.number}")
        self._fixed_panels = [truth, image]
        self.display.note(f"   fixed scan read by the new model: SSIM {point.ssim.ssim:.3f}")

    def _disturb(self, acquisition: Acquisition) -> None:
        if self._disturb_next and len(self.result.scans) > 1:
            name = self._disturb_next.pop(0)
            with acquisition.timing(f"restart_{name}"):
                acquisition.facility.processes.restart_after_kill(name)
            self.display.note(f"   killed and restarted: {name}")
            self.result.remarks.append(
                f"{name} was killed and restarted after scan {len(self.result.scans)} on request."
            )

    def _draw(self) -> None:
        result, folder = self.result, self.folder
        if self._panels:
            path = draw_panels(folder / "mosaics.png", self._panels)
            result.pictures["Truth and live mosaics of scans that the model had never seen"] = path
        if result.fixed:
            last = result.fixed[-1].ssim
            live = [(s.number, s.ssim.ssim) for s in result.scans if s.ssim is not None and s.purpose == "train"]
            letters = [(s.number, s.ssim.ssim) for s in result.scans if s.ssim is not None and s.title == "letters"]
            curves = {
                "fixed scan, each promoted model": (
                    [p.number for p in result.fixed],
                    [p.ssim.ssim for p in result.fixed],
                ),
                "live mosaic of each new scan": tuple(map(list, zip(*live, strict=True))) if live else ([], []),
                "letters, live": tuple(map(list, zip(*letters, strict=True))) if letters else ([], []),
            }
            levels = {"constant image": last.constant, "truth blurred to the probe": last.blurred}
            path = draw_curve(folder / "learning.png", curves, x_label="scans seen", y_label="SSIM with the truth",
                              levels=levels)  # fmt: skip
            result.pictures["SSIM against scans seen (simulated)"] = path
            path = draw_panels(folder / "fixed.png", self._fixed_panels)
            result.pictures["The fixed scan, read by the last model"] = path


def summary(result: DemoResult) -> str:
    """One sentence with the main figures."""
    generated = sum(scan.counts.generated for scan in result.scans)
    lost = sum(scan.counts.lost for scan in result.scans)
    if not result.fixed:
        return f"{generated} frames, {lost} lost; no model was promoted."
    first, last = result.fixed[0].ssim.ssim, result.fixed[-1].ssim.ssim
    return (
        f"{generated} frames in {len(result.scans)} scans, {lost} lost. A scan never learned from is read at "
        f"SSIM {first:.2f} after the first scan and {last:.2f} after scan {result.fixed[-1].number} "
        f"(a constant image scores {result.fixed[-1].ssim.constant:.2f})."
    )
