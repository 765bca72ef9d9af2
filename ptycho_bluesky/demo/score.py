"""Agreement of mosaics with the truth, and their pictures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.demo.pictures import Panel
from ptycho_bluesky.geometry import ObjectFrame
from ptycho_bluesky.metrics import SsimResult, mosaic_ssim, wrap
from ptycho_bluesky.records import Mosaic
from ptycho_bluesky.stitching.illumination import illumination, sample_at

__all__ = ["Reference", "lit_panel"]


class Reference:
    """What a mosaic is compared with.

    Parameters
    ----------
    obj : ndarray of complex, shape ``frame.shape``
        Transmission.
    frame : ObjectFrame
        Its placement.
    probe : ndarray of complex, shape (N, N) or (modes, N, N)
        Tells the lit area.
    probe_width_px : float
        Width that the blurred reference beside each figure has.
    """

    def __init__(self, obj: NDArray, frame: ObjectFrame, probe: NDArray, probe_width_px: float) -> None:
        self.object, self.frame, self.probe, self.probe_width_px = obj, frame, probe, probe_width_px

    def phase_on(self, frame: ObjectFrame) -> NDArray[np.float64]:
        """Phase (rows, cols) at the pixels of a canvas."""
        return np.angle(sample_at(self.object, self.frame, frame))

    def lit_on(self, mosaic: Mosaic) -> NDArray[np.float32]:
        """Illumination of the mosaic's canvas by its own frames."""
        return illumination(self.probe, mosaic_positions_m(mosaic), mosaic.frame)

    def score(self, mosaic: Mosaic) -> SsimResult:
        """SSIM of a mosaic, as `ptycho_bluesky.metrics.mosaic_ssim` defines it."""
        return mosaic_ssim(
            mosaic.phase_rad,
            self.phase_on(mosaic.frame),
            mosaic.coverage,
            self.lit_on(mosaic),
            probe_width_px=self.probe_width_px,
        )

    def panels(self, mosaic: Mosaic, title: str) -> tuple[Panel, Panel]:
        """Truth and mosaic in one scale, cut to the lit area, each with the circular mean 0."""
        lit = self.lit_on(mosaic)
        mask = (mosaic.coverage >= 3) & (lit >= 0.1 * np.median(lit[lit > 0]))
        truth = lit_panel("truth", self.phase_on(mosaic.frame), mask, mosaic.frame)
        return truth, lit_panel(title, mosaic.phase_rad, mask, mosaic.frame, truth.limits)


def mosaic_positions_m(mosaic: Mosaic) -> NDArray[np.float64]:
    """Positions (n, 2) of the frames in a mosaic, from its frame log."""
    return np.stack([mosaic.frame_log["position_y_m"], mosaic.frame_log["position_x_m"]], axis=1)


def lit_panel(
    title: str,
    phase_rad: NDArray,
    mask: NDArray[np.bool_],
    frame: ObjectFrame,
    limits: tuple[float, float] | None = None,
) -> Panel:
    """Panel of a phase image, blank outside the mask and cut to it, its circular mean removed."""
    rows, cols = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    box = (slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1)) if rows.size else (slice(None), slice(None))
    offset = np.angle(np.exp(1j * phase_rad[mask]).mean()) if mask.any() else 0.0
    image = np.where(mask, wrap(phase_rad - offset), np.nan)[box]
    origin = frame.to_m(np.array([[box[0].start or 0, box[1].start or 0]]))[0]
    cut = ObjectFrame((float(origin[0]), float(origin[1])), frame.pixel_size_m, image.shape)
    return Panel(title, image, cut, limits=limits)
