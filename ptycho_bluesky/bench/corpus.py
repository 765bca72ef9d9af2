"""Simulated scans with known objects: what the models of the benches learn from and are judged by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from ptycho_bluesky.geometry import ObjectFrame, spiral_positions_m
from ptycho_bluesky.metrics import SsimResult, mosaic_ssim
from ptycho_bluesky.records import LabelSet
from ptycho_bluesky.simulation import Area, Experiment, default_geometry, demo_map
from ptycho_bluesky.stitching import MosaicBuilder, disc_weight
from ptycho_bluesky.stitching.illumination import illumination, sample_at

__all__ = ["CorpusOptions", "SimulatedCorpus"]


@dataclass(frozen=True)
class CorpusOptions:
    """What is simulated: the experiment of the demo, on another sample.

    Attributes
    ----------
    size_px : int
        Rows and columns of a frame.
    num_scans : int
        Scans to learn from, each on an area of random shapes of its own.
    num_points : int
        Frames of a scan.
    step_m : float
        Step of the spirals.
    exposure_s : float
        Of a frame.
    seed : int
        Of the sample and of the photons.
    """

    size_px: int = 128
    num_scans: int = 8
    num_points: int = 963
    step_m: float = 100e-9
    exposure_s: float = 4e-3
    seed: int = 128

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)


class SimulatedCorpus:
    """Scans of one sample; area 0 is never learned from.

    Parameters
    ----------
    options : CorpusOptions, optional

    Notes
    -----
    Labels are the true object, not a reconstruction: a comparison of networks on the same labels is not about the
    labels. Their phase has the circular mean 0 over a scan's patches, as those of reconstructions have.
    """

    def __init__(self, options: CorpusOptions | None = None) -> None:
        self.options = options or CorpusOptions()
        geometry = default_geometry(self.options.size_px)
        sample = demo_map(self.options.num_scans + 1, pixel_size_m=geometry.object_pixel_m, seed=self.options.seed)
        self.experiment: Experiment = Experiment.default(self.options.size_px, sample)
        self._areas = {area.name: area for area in sample.areas}

    def training(self, progress: Callable[[int, int], None] | None = None) -> list[LabelSet]:
        """Label sets to learn from, one a scan."""
        sets = []
        for number in range(1, self.options.num_scans + 1):
            sets.append(self.labels(self._areas[f"shapes-{number}"], seed=number))
            if progress is not None:
                progress(number, self.options.num_scans)
        return sets

    def held_out(self, num_frames: int | None = None) -> LabelSet:
        """Label set of the scan that is never learned from, or of its first frames (its centre)."""
        return self.labels(self._areas["shapes-0"], seed=0, num_frames=num_frames)

    def letters(self, num_frames: int | None = None) -> LabelSet:
        """Label set of a scan of letters, which no network here has seen."""
        return self.labels(self._areas["letters-0"], seed=999, num_frames=num_frames)

    def labels(self, area: Area, seed: int, num_frames: int | None = None) -> LabelSet:
        """Scan an area and cut the true object at every frame's position."""
        options, experiment = self.options, self.experiment
        asked = spiral_positions_m(num_frames or options.num_points, options.step_m, area.centre_m)
        scan = experiment.render(asked, options.exposure_s, seed=options.seed + 1000 * seed)
        patches = self._true_patches(scan.position_m)
        light = (np.abs(experiment.probe) ** 2).astype(np.float32)
        return LabelSet(
            image=scan.image,
            phase_rad=np.angle(patches),
            amplitude=np.abs(patches),
            position_m=scan.position_m,
            frame_index=np.arange(len(asked)),
            probe=experiment.probe[None],
            weight=light / light.max(),
            pixel_size_m=experiment.geometry.object_pixel_m,
            geometry=experiment.geometry,
            run_uid=f"simulated-{options.seed}-{area.name}",
            provenance={
                "labels": "true object",
                "simulated": True,
                "light": {"i0": float(scan.i0.mean()), "exposure_s": options.exposure_s},
                **options.as_dict(),
            },
        )

    def _true_patches(self, position_m: NDArray[np.float64]) -> NDArray[np.complex64]:
        obj, frame = self.experiment.truth()
        size = self.options.size_px
        parts = [scipy.ndimage.spline_filter(part, 3).astype(np.float32) for part in (obj.real, obj.imag)]
        steps = np.arange(size) - size // 2
        patches = np.empty((len(position_m), size, size), dtype=np.complex64)
        for patch, (row, col) in zip(patches, frame.to_px(position_m), strict=True):
            # a window of the spline's coefficients at one sub-pixel shift: far cheaper than a map of coordinates
            corner = np.floor([row, col]).astype(int)
            window = tuple(slice(first + steps[0] - 3, first + steps[-1] + 5) for first in corner)
            shift = (row - corner[0], col - corner[1])
            patch.real, patch.imag = (_spline_shift(part[window], shift, size) for part in parts)
        light = np.abs(self.experiment.probe) ** 2
        mean = np.angle(np.sum(light * patches / np.maximum(np.abs(patches), 1e-6), axis=(1, 2)).mean())
        patches *= np.exp(-1j * mean).astype(np.complex64)
        return patches

    def score(
        self,
        phase_rad: NDArray[np.float32],
        labels: LabelSet,
        weight: NDArray[np.float32],
        patch_px: int | None = None,
        solve_offsets: bool = False,
    ) -> SsimResult:
        """Structural similarity of stitched patches with the true object.

        Parameters
        ----------
        phase_rad : ndarray of float32, shape (n, h, w)
            Patches of the first n frames of the labels.
        labels : LabelSet
            Of a scan of this corpus.
        weight : ndarray of float32, shape (h, w)
            With which the patches are stitched.
        patch_px : int, optional
            Side of the patches that count as covering a pixel: the mask must be the same for networks of different
            patches. By default the shorter of the patch and half the window.
        solve_offsets : bool
            Turn each patch by the constant phase that makes it agree with the image under it.

        Returns
        -------
        SsimResult
        """
        obj, truth_frame = self.experiment.truth()
        size, n = self.options.size_px, len(phase_rad)
        position = labels.position_m[:n]
        frame = ObjectFrame.around(position, (size, size), labels.pixel_size_m)
        builder = MosaicBuilder(frame, (phase_rad.shape[1], phase_rad.shape[2]), weight)
        add = builder.add_levelled if solve_offsets else builder.add
        add(np.asarray(phase_rad, dtype=np.float32), position)
        image = builder.snapshot()
        side = patch_px or min(*phase_rad.shape[1:], size // 2)
        cover = MosaicBuilder(image.frame, (side, side), disc_weight((side, side), side / 2, 0.0))
        cover.add(np.zeros((n, side, side), dtype=np.float32), position)
        coverage = np.minimum(cover.snapshot().coverage, image.coverage)
        reference = np.angle(sample_at(obj, truth_frame, image.frame))
        light = illumination(self.experiment.probe, position, image.frame)
        width = self.experiment.beam_m / labels.pixel_size_m
        return mosaic_ssim(image.phase_rad, reference, coverage, light, probe_width_px=width)


def _spline_shift(coefficients: NDArray[np.float32], shift_px: tuple[float, float], size: int) -> NDArray[np.float32]:
    """Values of a cubic spline at whole pixels plus one shift; the window begins three pixels before the first."""
    value = coefficients
    for axis, part in enumerate(shift_px):
        taps = _cubic_taps(part)
        moved = np.moveaxis(value, axis, 0)
        summed = np.stack([tap * moved[2 + k : 2 + k + size] for k, tap in enumerate(taps)]).sum(axis=0)
        value = np.moveaxis(summed, 0, axis)
    return value


def _cubic_taps(part: float) -> tuple[np.float32, ...]:
    """Cubic B-spline at −1 − t, −t, 1 − t, 2 − t."""
    t = part
    taps = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    return tuple(np.float32(tap / 6) for tap in taps)
