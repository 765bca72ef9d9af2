"""Where a reconstruction starts: the probe from the zone plate's parameters, or found in the frames themselves."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.fourier import fftfreq, fftshift, ifft2
from ptycho_bluesky.geometry import ObjectFrame
from ptycho_bluesky.reconstruction.forward import Scan
from ptycho_bluesky.reconstruction.options import EngineOptions, EpieOptions
from ptycho_bluesky.reconstruction.pie import Pie
from ptycho_bluesky.reconstruction.prepare import Selection, mean_counts, prepare_scan, select_frames, torch_threads
from ptycho_bluesky.records import Measurement
from ptycho_bluesky.simulation.optics import ZonePlate, zone_plate_probe

__all__ = ["ProbeStart", "probe_from_mean_frame", "starting_probe"]

logger = logging.getLogger(__name__)

BEAM_FRACTIONS = (0.0, 0.12, 0.24, 0.36, 0.48, 0.6)
"""Beam diameters that are tried, in units of the window."""
SAMPLED_FRAMES = 64
"""Frames of which the mean counts are taken."""
TRIAL_FRAMES = 192
TRIAL_PASSES = 3
CLEARLY_BETTER = 0.5
"""A probe from the mean frame replaces a stated one when its error in a short reconstruction is below this part."""
PUPIL_EDGE_QUANTILE = 0.95
PUPIL_LEVEL = 0.3
MODE_POWER = 0.05
"""Power of each further starting mode relative to the first."""


@dataclass(frozen=True)
class ProbeStart:
    """A starting probe and where it came from.

    Attributes
    ----------
    wave : ndarray of complex64, shape (modes, N, N)
        Centre at ``[N//2, N//2]``; the modes together hold the mean counts of a frame.
    source : str
        ``given``, ``measurement``, ``zone plate`` or ``mean frame``.
    """

    wave: NDArray[np.complex64]
    source: str


def starting_probe(
    measurement: Measurement,
    options: EngineOptions | None = None,
    *,
    probe: NDArray[Any] | None = None,
    plate: ZonePlate | None = None,
    selection: Selection | None = None,
) -> ProbeStart:
    """Starting probe of a measurement, from the best source that there is.

    Parameters
    ----------
    measurement : Measurement
    options : EngineOptions, optional
        ``probe_modes`` and the choice of frames; defaults otherwise.
    probe : ndarray of complex, shape (N, N) or (modes, N, N), optional
        Use this one, scaled to the counts.
    plate : ZonePlate, optional
        Optics; by default ``metadata["zone_plate"]`` of the measurement, a mapping with the fields of `ZonePlate`.
        Needs the geometry.
    selection : Selection, optional
        The frames that may be looked at; by default `select_frames` chooses.

    Returns
    -------
    ProbeStart
        From ``probe``, else the measurement's own probe, else the optics, else `probe_from_mean_frame`. Where the
        options ask for a check and the probe may change, a stated one gives way to that of the mean frame if that
        explains the frames clearly better: engines do not find back from a probe of the wrong shape.

    Raises
    ------
    InputError
        A probe of another shape than the frames.
    """
    options = options or EpieOptions()
    with torch_threads(options.threads):
        return _starting_probe(measurement, options, probe, plate, selection or select_frames(measurement, options))


def _starting_probe(
    measurement: Measurement,
    options: EngineOptions,
    probe: NDArray[Any] | None,
    plate: ZonePlate | None,
    selection: Selection,
) -> ProbeStart:
    size = int(np.shape(measurement.image)[-1])
    sample = selection.used[:: max(1, len(selection.used) // SAMPLED_FRAMES)]
    counts = mean_counts(_scan_of(measurement, sample, options)[0])
    wave, source = _stated_probe(measurement, probe, plate)
    if wave is None:
        wave, source = probe_from_mean_frame(measurement, options, selection), "mean frame"
    modes = _checked(np.asarray(wave), size)
    if source != "mean frame" and options.check_probe and options.update_probe:
        trials = _Trials(measurement, options, selection)
        found, least = trials.search()
        error = trials.error(_scaled(modes, counts))
        if least < CLEARLY_BETTER * error:
            logger.warning(
                "the starting probe (%s) explains the frames worse than one made from their mean, error %.3g against "
                "%.3g: the latter is used; check_probe=False keeps the former", source, error, least,
            )  # fmt: skip
            modes, source = _checked(found, size), "mean frame"
    return ProbeStart(_scaled(_with_modes(modes, options.probe_modes), counts), source)


def _stated_probe(
    measurement: Measurement, probe: NDArray[Any] | None, plate: ZonePlate | None
) -> tuple[NDArray[Any] | None, str]:
    """What is known of the probe, and from where."""
    if probe is not None:
        return probe, "given"
    if measurement.probe is not None:
        return measurement.probe, "measurement"
    plate = plate or _stated_plate(measurement)
    if plate is not None and measurement.geometry is not None:
        return zone_plate_probe(plate, measurement.geometry), "zone plate"
    return None, ""


def _stated_plate(measurement: Measurement) -> ZonePlate | None:
    content = measurement.metadata.get("zone_plate")
    return ZonePlate.from_dict(content) if isinstance(content, Mapping) else None


def _checked(wave: NDArray[Any], size: int) -> NDArray[np.complex128]:
    if wave.ndim not in (2, 3) or wave.shape[-2:] != (size, size):
        raise InputError(
            f"probe of shape {wave.shape}",
            f"frames of {size} × {size} pixels need ({size}, {size}) or (modes, {size}, {size})",
            "use the probe of a measurement with the same geometry",
        )
    modes = wave.reshape(-1, size, size).astype(np.complex128)
    if not np.isfinite(modes).all() or not np.abs(modes).any():
        raise InputError("a probe that is empty or not finite", "it carries the beam")
    return modes


def _with_modes(modes: NDArray[np.complex128], count: int) -> NDArray[np.complex128]:
    """The first ``count`` modes; missing ones are the first times low polynomials of the position, at little power."""
    if len(modes) >= count:
        return modes[:count]
    size = modes.shape[-1]
    axis = (np.arange(size) - size // 2) / (size / 4)
    degrees = sorted(((a, b) for a in range(6) for b in range(6) if a + b), key=lambda d: (d[0] + d[1], d[0]))
    power = np.sum(np.abs(modes[0]) ** 2)
    added = list(modes)
    for a, b in degrees[len(modes) - 1 : count - 1]:
        mode = modes[0] * axis[:, None] ** a * axis[None, :] ** b
        added.append(mode * np.sqrt(MODE_POWER * power / np.sum(np.abs(mode) ** 2)))
    return np.stack(added)


def _scaled(modes: NDArray[np.complex128], counts: float) -> NDArray[np.complex64]:
    return (modes * np.sqrt(counts / np.sum(np.abs(modes) ** 2))).astype(np.complex64)


def _scan_of(measurement: Measurement, rows: NDArray[np.int64], options: EngineOptions) -> tuple[Scan, ObjectFrame]:
    size = int(np.shape(measurement.image)[-1])
    frame = ObjectFrame.around(measurement.position_m[rows], size, measurement.step_px_m)
    return prepare_scan(measurement, rows, frame, options), frame


def probe_from_mean_frame(
    measurement: Measurement, options: EngineOptions | None = None, selection: Selection | None = None
) -> NDArray[np.complex64]:
    """Find a starting probe without knowing the optics.

    The mean frame is nearly the intensity of the pupil; what it does not tell is the defocus, here a quadratic phase on
    the pupil. A few of either sign, given by the diameter that the beam would have at the sample, are tried by a short
    reconstruction from a patch of neighbouring frames; the one with the smallest diffraction error is returned.

    Parameters
    ----------
    measurement : Measurement
    options : EngineOptions, optional
        For the choice of frames.
    selection : Selection, optional
        The frames that may be looked at; by default `select_frames` chooses.

    Returns
    -------
    ndarray of complex64, shape (N, N)
    """
    options = options or EpieOptions()
    found, _ = _Trials(measurement, options, selection or select_frames(measurement, options)).search()
    return found.astype(np.complex64)


class _Trials:
    """Short reconstructions from a patch of neighbouring frames, which tell starting probes apart by their error."""

    def __init__(self, measurement: Measurement, options: EngineOptions, selection: Selection) -> None:
        rows = _patch_of_frames(measurement.position_m, selection.used)
        self._scan, self._frame = _scan_of(measurement, rows, options)
        self._options = EpieOptions(
            iterations=TRIAL_PASSES, probe_start=1, settle_fraction=0.0, dtype=options.dtype, device=options.device
        )

    def error(self, wave: NDArray[Any]) -> float:
        """Diffraction error of the last pass from the probe (modes, N, N)."""
        probe = torch.from_numpy(wave).to(self._scan.ramp_row)
        obj = torch.ones(self._frame.shape, dtype=probe.dtype, device=probe.device)
        engine = Pie(self._scan, obj, probe, self._options)
        return [engine.run_pass(iteration) for iteration in range(self._options.iterations)][-1]

    def search(self) -> tuple[NDArray[np.complex128], float]:
        """Best probe (N, N) with the pupil of the mean frame, and its error."""
        pupil = np.sqrt(np.mean(self._scan.amplitude.double().square().cpu().numpy(), axis=0))
        best, least = _defocused(pupil, 0.0), np.inf
        for fraction in sorted({sign * value for value in BEAM_FRACTIONS for sign in (1.0, -1.0)}):
            wave = _defocused(pupil, fraction)
            error = self.error(wave[None])
            logger.debug("beam of %+.2f windows: diffraction error %.4f", fraction, error)
            if error < least:
                best, least = wave, error
        return best, least


def _patch_of_frames(position: NDArray[np.float64], used: NDArray[np.int64]) -> NDArray[np.int64]:
    """The frames nearest to the middle of the scan."""
    distance = np.linalg.norm(position[used] - np.median(position[used], axis=0), axis=1)
    return np.sort(used[np.argsort(distance, kind="stable")[:TRIAL_FRAMES]])


def _defocused(pupil: NDArray[np.float64], beam_fraction: float) -> NDArray[np.complex128]:
    """Probe (N, N) of a pupil amplitude (zero frequency at ``[0, 0]``) whose edge lands half a beam off the centre.

    A phase −πc|q|² moves the rays of frequency q by c·q: the signed beam diameter D asks for c = D / 2 / q_edge.
    """
    size = len(pupil)
    frequency = fftfreq(size)
    q2 = frequency[:, None] ** 2 + frequency[None, :] ** 2
    power = pupil**2
    edge = np.sqrt(np.quantile(q2[power > PUPIL_LEVEL * np.quantile(power, 0.98)], PUPIL_EDGE_QUANTILE))
    curvature = beam_fraction * size / 2 / max(float(edge), 1.0 / size)
    return fftshift(ifft2(pupil * np.exp(-1j * np.pi * curvature * q2), unitary=True))
