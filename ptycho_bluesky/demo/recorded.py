"""The demo on a recorded scan: trained on part of its area, shown on the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.demo.acquire import Acquisition
from ptycho_bluesky.demo.display import Display
from ptycho_bluesky.demo.facility import Facility, demo_settings
from ptycho_bluesky.demo.options import DemoOptions
from ptycho_bluesky.demo.pictures import draw_curve, draw_panels
from ptycho_bluesky.demo.results import DemoResult, ScanResult
from ptycho_bluesky.demo.score import lit_panel
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.metrics import mosaic_ssim
from ptycho_bluesky.stitching.illumination import illumination, sample_at

if TYPE_CHECKING:
    from ptycho_bluesky.records import LabelSet, Measurement, Mosaic, Reconstruction

__all__ = ["RecordedDemo"]

GAP_PX = 60.0
FRAMES_TO_TRAIN = 8_000
"""Frame-updates on the training area; some 40 s on two cores at 128 pixels."""


class RecordedDemo:
    """Plays a recorded scan three times: whole, the training area, the rest.

    The whole scan is reconstructed and never learned from: it is what the rest is compared with. The training area is
    reconstructed from its own frames alone and learned from. The rest is read live by that model.

    Parameters
    ----------
    options : DemoOptions
        ``recorded`` names the file.
    display : Display
    """

    def __init__(self, options: DemoOptions, display: Display) -> None:
        from ptycho_bluesky.io import read_measurement
        from ptycho_bluesky.simulation.recorded import RecordedScan
        from ptycho_bluesky.training.area_split import split_by_area

        if options.recorded is None:
            raise InputError("no recorded file", "the recorded demo plays one", "name it with --recorded")
        self.options, self.display, self.folder = options, display, options.out
        self.measurement: Measurement = read_measurement(options.recorded)
        self.recording = RecordedScan(self.measurement)
        self.pixel_m = self.recording.pixel_size_m
        self.split = split_by_area(self.recording.planned_position_m / self.pixel_m, GAP_PX)
        self.result = DemoResult(
            f"The closed loop on the recorded scan {options.recorded.name}",
            {"recorded": options.recorded.name, "frames": len(self.recording), "gap_px": round(self.split.gap_px, 1),
             "train_frames": int(self.split.train.sum()), "seed": options.seed, "period_s": options.period_s},
        )  # fmt: skip

    @property
    def steps(self) -> int:
        """Steps of the whole demo."""
        return 5

    def facility(self, *, live_plot: bool) -> Facility:
        """Everything that runs beside this process."""
        flags: dict[str, Any] = {
            "train__seed": self.options.seed,
            "train__frames_per_scan": self.options.frames_per_scan or FRAMES_TO_TRAIN,
            "geometry__object_pixel_m": None if self.recording.geometry else self.pixel_m,
        }
        settings = demo_settings(self.folder, **flags)
        arguments = ["--recorded", str(self.options.recorded), "--size", str(self.recording.frame_shape[0])]
        return Facility(settings, self.folder, arguments, self.display, live_plot=live_plot)

    def run(self, facility: Facility) -> DemoResult:
        """Whole scan, training area, the rest; then compare."""
        acquisition = Acquisition(facility, self.result, self.display)
        everything = np.ones(len(self.recording), dtype=bool)
        self.display.step("whole scan, to be reconstructed")
        whole, _ = self._acquire(acquisition, everything, "reserved", 0, "whole scan")
        self.display.step("training area")
        train, _ = self._acquire(acquisition, self.split.train, "train", 1, "training area")
        store = facility.store
        serving = store.model_store.serving()
        if serving is None:
            raise InputError(
                f"no model was promoted: {train.reason}", "the rest needs one", f"read the logs in {self.folder}"
            )
        facility.wait_model(serving.model_id)
        self.display.step("area never trained on, read live")
        rest, mosaic = self._acquire(acquisition, self.split.held_out, "test", 2, "held-out area")
        self.display.step("comparing")
        self._compare(
            store.read_reconstruction(whole.uid),
            store.read_reconstruction(train.uid),
            mosaic,
            store.read_labels(train.uid, store.read_run(train.uid)),
            store.read_run(rest.uid),
        )
        return self.result

    def _acquire(
        self, acquisition: Acquisition, chosen: NDArray[np.bool_], purpose: str, number: int, title: str
    ) -> tuple[ScanResult, Mosaic]:
        session = acquisition.facility.session
        plan = session.fly_ptycho(
            session.flyer,
            session.stage,
            self.recording.planned_position_m[chosen],
            exposure_s=0.8 * self.options.period_s,
            period_s=self.options.period_s,
            shutter=session.shutter,
            purpose=purpose,
            md={"sample": title},
        )
        return acquisition.scan(plan, number=number, title=title, purpose=purpose)

    def _compare(
        self,
        truth: Reconstruction,
        trained_on: Reconstruction,
        mosaic: Mosaic,
        labels: LabelSet,
        rest: Measurement,
    ) -> None:
        """Score the live mosaic of the rest, and looking up the most similar training frame's label, alike."""
        from ptycho_bluesky.stitching.mosaic import MosaicBuilder
        from ptycho_bluesky.training.area_split import pearson_in_mask, scored_pixel_mask, similarity_lookup

        frame = mosaic.frame
        reference = np.angle(sample_at(truth.object, truth.frame, frame))
        light = (np.abs(truth.probe) ** 2).sum(axis=0)
        mask = scored_pixel_mask(
            frame.shape, frame.to_px(labels.position_m), frame.to_px(rest.position_m), labels.image.shape[1:], light
        )
        mask &= mosaic.coverage > 0
        looked_up, _ = similarity_lookup(np.asarray(labels.image), labels.phase_rad, np.asarray(rest.image))
        builder = MosaicBuilder(frame, labels.phase_rad.shape[1:], labels.weight)
        builder.add(looked_up.astype(np.float32), rest.position_m)
        lookup = builder.snapshot().phase_rad
        ours, theirs, target = (self._flatten(image, mask) for image in (mosaic.phase_rad, lookup, reference))
        lit = illumination(truth.probe, rest.position_m, frame)
        ssim = mosaic_ssim(
            ours,
            target,
            np.where(mask, mosaic.coverage, 0),
            lit,
            probe_width_px=float(np.sqrt(light.sum() / light.max())),
        )
        self.result.heldout = {
            "pearson_heldout": pearson_in_mask(ours, target, mask),
            "pearson_lookup": pearson_in_mask(theirs, target, mask),
            "ssim_heldout": ssim.ssim,
            "ssim_constant_heldout": ssim.constant,
            "ssim_blurred_heldout": ssim.blurred,
            "error_first": float(truth.error[0]),
            "error_last": float(truth.error[-1]),
        }
        self._draw(truth, trained_on, {"reference": target, "live": ours, "lookup": theirs}, mask, mosaic)

    @staticmethod
    def _flatten(phase_rad: NDArray, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Phase about its circular mean in the mask: a constant phase is a gauge."""
        offset = np.angle(np.exp(1j * phase_rad[mask]).mean())
        return np.angle(np.exp(1j * (phase_rad - offset)))

    def _draw(
        self,
        truth: Reconstruction,
        trained_on: Reconstruction,
        images: dict[str, NDArray],
        mask: NDArray[np.bool_],
        mosaic: Mosaic,
    ) -> None:
        folder, result = self.folder, self.result
        whole = []
        for title, item in (("ePIE, whole scan", truth), ("ePIE, training area's frames alone", trained_on)):
            lit = illumination(item.probe, item.position_m, item.frame)
            whole.append(lit_panel(title, np.angle(item.object), lit >= 0.1 * np.median(lit[lit > 0]), item.frame))
        path = draw_panels(folder / "object.png", whole, columns=2)
        result.pictures["Reconstructed object (recorded data; pixel nominal)"] = path
        reference = lit_panel("ePIE of the whole scan", images["reference"], mask, mosaic.frame)
        live = lit_panel(f"live, Pearson {result.heldout['pearson_heldout']:.2f}", images["live"], mask, mosaic.frame,
                         reference.limits)  # fmt: skip
        lookup = lit_panel(f"lookup, Pearson {result.heldout['pearson_lookup']:.2f}", images["lookup"], mask,
                           mosaic.frame, reference.limits)  # fmt: skip
        path = draw_panels(folder / "heldout.png", [reference, live, lookup], columns=3)
        result.pictures["The area never trained on: reconstruction, live image, look-up baseline"] = path
        passes = list(range(1, len(truth.error) + 1))
        path = draw_curve(folder / "error.png", {"whole scan": (passes, truth.error.tolist())}, x_label="pass",
                          y_label="normalised diffraction error", log=True)  # fmt: skip
        result.pictures["Diffraction error of the reconstruction"] = path


def summary(result: DemoResult) -> str:
    """One sentence with the main figures."""
    found = result.heldout
    return (
        f"The area never trained on correlates with its reconstruction at {found['pearson_heldout']:.2f} (Pearson); "
        f"looking up the label of the most similar training frame gives {found['pearson_lookup']:.2f}."
    )
