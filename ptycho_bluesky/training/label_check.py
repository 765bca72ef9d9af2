"""Whether the labels of a scan may teach: judged by frames left out, and by two halves of the scan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptycho_bluesky.config import LabelSettings
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.reconstruction import frame_misfit
from ptycho_bluesky.reconstruction.evidence import Evidence
from ptycho_bluesky.reconstruction.options import EngineOptions
from ptycho_bluesky.reconstruction.placement import rows_of, with_refined_positions
from ptycho_bluesky.reconstruction.prepare import frame_options
from ptycho_bluesky.records import LabelSet, Measurement, Reconstruction

__all__ = ["LabelCheck", "check_labels", "root_poisson_variance"]

ERROR_FLOOR = 1e-3
"""Errors below this are as good as none: their ratio says nothing."""


@dataclass(frozen=True)
class LabelCheck:
    """Verdict on the labels of a scan.

    Attributes
    ----------
    accepted : bool
    reason : str
        One sentence with the figures that decided.
    figures : dict of str to float
        ``error_used``, ``error_held_out``, ``ratio``, ``explained``, ``agreement``, ``other_pixel`` with its
        significance and gain, their limits, ``resolution_px`` of the half-scans, ``held_out_fraction``,
        ``frames_used``, ``frames_held_out``.
    """

    accepted: bool
    reason: str
    figures: Mapping[str, float]

    def as_dict(self) -> dict[str, object]:
        """JSON-able form, for provenance."""
        return {"accepted": self.accepted, "reason": self.reason, "figures": dict(self.figures)}


def check_labels(
    labels: LabelSet,
    reconstruction: Reconstruction,
    measurement: Measurement,
    evidence: Evidence,
    limits: LabelSettings | None = None,
) -> LabelCheck:
    """Accept or reject the labels of a scan.

    Parameters
    ----------
    labels : LabelSet
        What `make_labels` cut from the reconstruction.
    reconstruction : Reconstruction
        Made with a ``holdout_fraction`` of at least ``limits.min_held_out``.
    measurement : Measurement
        The scan that was reconstructed.
    evidence : Evidence
        Half-scans and pixel (`ptycho_bluesky.reconstruction.evidence`); without half-scans labels are rejected.
    limits : LabelSettings, optional
        Section ``reconstruct.labels`` of the settings.

    Returns
    -------
    LabelCheck

    Raises
    ------
    InputError
        Too few frames were left out to judge, or the measurement is another one.

    Notes
    -----
    The error of the frames left out in units of that of the used ones tells an object that is not determined between
    the positions. A reconstruction from wrong positions fits what it uses as badly as what it does not, so the part of
    the held-out frames' variation (about the mean frame, less shot noise) that is explained is asked for besides. Two
    half-scans agree on what is there, and on nothing else. A reconstruction with a pixel that is wrong by some per
    cent passes all of these; frames left out are then explained better by a pixel nearer to the true one. Where that
    is, says the least misfit; by how much, depends on what else the error comes from.
    """
    limits = limits or LabelSettings()
    used, held_out = (rows_of(reconstruction, measurement, name) for name in ("frames_used", "frames_held_out"))
    fraction = len(held_out) / max(1, len(used) + len(held_out))
    if not len(held_out) or fraction < limits.min_held_out:
        raise InputError(
            f"{len(held_out)} of {len(used) + len(held_out)} frames held out",
            f"labels are judged by at least {limits.min_held_out:.0%} of the frames",
            f"reconstruct with holdout_fraction ≥ {limits.min_held_out}",
        )
    if not len(labels) or labels.run_uid != reconstruction.run_uid:
        raise InputError(
            f"{len(labels)} labels of run {labels.run_uid!r} for a reconstruction of {reconstruction.run_uid!r}",
            "both must be of one run",
        )
    placed, options = with_refined_positions(measurement, reconstruction), frame_options(reconstruction.options)
    figures = _held_out_figures(reconstruction, placed, used, held_out, options)
    other, significance, gain = evidence.best_pixel
    figures |= {
        "agreement": np.nan if evidence.halves is None else evidence.halves.correlation,
        "resolution_px": np.nan if evidence.halves is None else evidence.halves.resolution_px,
        "other_pixel": other,
        "other_pixel_significance": significance,
        "other_pixel_gain": gain,
        "ratio_limit": limits.max_ratio,
        "explained_limit": limits.min_explained,
        "agreement_limit": limits.min_agreement,
        "pixel_significance_limit": limits.pixel_significance,
        "pixel_gain_limit": limits.pixel_gain,
        "pixel_tolerance": limits.pixel_tolerance,
        "pixel_frames": float(limits.pixel_frames),
        "held_out_fraction": fraction,
        "frames_used": float(len(used)),
        "frames_held_out": float(len(held_out)),
    }
    finite = bool(np.isfinite(labels.phase_rad).all() and np.isfinite(labels.amplitude).all())
    faults = _faults(figures, finite)
    if faults:
        return LabelCheck(False, "; ".join(faults), figures)
    reason = (
        f"held-out frames: error {figures['ratio']:.2f} times that of used ones, {figures['explained']:.2f} of their "
        f"variation explained; half-scans correlate by {figures['agreement']:.2f}"
    )
    return LabelCheck(True, reason, figures)


def _faults(figures: Mapping[str, float], finite: bool) -> list[str]:
    """What speaks against the labels, each in a clause with its figures."""
    if not finite:
        return ["some labels are not finite: the reconstruction diverged"]
    faults = []
    if not figures["explained"] >= figures["explained_limit"]:
        faults.append(
            f"the reconstruction explains {figures['explained']:.2f} of the held-out frames' variation, less than "
            f"{figures['explained_limit']:.2f}: positions or geometry may be wrong, or the light too little"
        )
    if not figures["ratio"] <= figures["ratio_limit"]:
        faults.append(
            f"the error of held-out frames is {figures['ratio']:.2f} times that of used ones, more than "
            f"{figures['ratio_limit']:.2f}: the object is not determined between the positions"
        )
    if np.isnan(figures["agreement"]):
        faults.append("no two half-scans could be compared")
    elif not figures["agreement"] >= figures["agreement_limit"]:
        faults.append(
            f"the objects of two half-scans correlate by {figures['agreement']:.2f}, less than "
            f"{figures['agreement_limit']:.2f}: what they show is not the sample"
        )
    significant = figures["other_pixel_significance"] > figures["pixel_significance_limit"]
    # Left-out frames of a small scan favour a larger pixel, with which there is less to be determined.
    placed = figures["frames_used"] >= figures["pixel_frames"]
    away = placed and abs(figures["other_pixel"] - 1.0) > figures["pixel_tolerance"]
    if significant and (away or figures["other_pixel_gain"] > figures["pixel_gain_limit"]):
        faults.append(
            f"a pixel {figures['other_pixel']:.2f} times the stated one explains frames left out best; another one "
            f"lowers their error by {figures['other_pixel_gain']:.1%}, {figures['other_pixel_significance']:.1f} "
            "standard errors: check energy, distance and detector pixel"
        )
    return faults


def _held_out_figures(
    reconstruction: Reconstruction,
    measurement: Measurement,
    used: NDArray[np.int64],
    held_out: NDArray[np.int64],
    options: EngineOptions,
) -> dict[str, float]:
    misfit_used, scan_used = frame_misfit(reconstruction, measurement, used, options)
    misfit, scan = frame_misfit(reconstruction, measurement, held_out, options)
    amplitude = scan.amplitude.double().cpu().numpy()
    power_used = np.mean(scan_used.amplitude.double().square().cpu().numpy(), axis=0)
    mean_amplitude = np.mean(scan_used.amplitude.double().cpu().numpy(), axis=0)
    total = np.sum(amplitude**2)
    varies = np.sum((amplitude - mean_amplitude) ** 2)
    noise = len(held_out) * np.sum(root_poisson_variance(power_used))
    error_used = float(misfit_used.sum() / (len(used) * power_used.sum()))
    error_held_out = float(misfit.sum() / total)
    explained = (varies - misfit.sum()) / (varies - noise) if varies > noise else -np.inf
    return {
        "error_used": error_used,
        "error_held_out": error_held_out,
        "ratio": max(error_held_out, ERROR_FLOOR) / max(error_used, ERROR_FLOOR),
        "explained": float(explained),
    }


def root_poisson_variance(mean: ArrayLike) -> NDArray[np.float64]:
    """Variance of √n for Poisson counts n of the given mean: the mean itself in the dark, ¼ in bright light."""
    values = np.asarray(mean, dtype=np.float64)
    grid = np.linspace(0.0, 12.0, 121)
    counts = np.arange(80)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(counts[1:]))])
    with np.errstate(divide="ignore", invalid="ignore"):
        probability = np.exp(np.where(counts == 0, 0.0, counts * np.log(grid[:, None])) - grid[:, None] - log_factorial)
    table = grid - (probability @ np.sqrt(counts)) ** 2
    bright = 0.25 * (1.0 + 3.0 / (8.0 * np.maximum(values, grid[-1])))
    return np.where(values < grid[-1], np.interp(values, grid, table), bright)
