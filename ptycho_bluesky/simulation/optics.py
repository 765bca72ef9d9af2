"""The illumination: a Fresnel zone plate with a central stop, seen out of focus.

The wave convention is exp(i(kz − ωt)): propagation by z multiplies the spectrum by exp(−iπλz|q|²), the far field is the
forward FFT, and a material of index n = 1 − δ + iβ has the phase −kδt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.fourier import fftfreq, fftshift, ifft2
from ptycho_bluesky.geometry import Geometry

__all__ = ["ZonePlate", "check_window", "probe_diameter_m", "zone_plate_probe"]

MIN_WINDOW_PER_DIAMETER = 1.5
"""Smallest window, in units of the diameter that holds 90 % of the probe."""
PUPIL_OVERSAMPLING = 8
"""Sub-samples a pixel and axis with which the pupil's edges are smoothed."""


@dataclass(frozen=True)
class ZonePlate:
    """A Fresnel zone plate and where the sample stands behind it.

    Attributes
    ----------
    diameter_m : float
        Diameter of the zone plate.
    outer_zone_m : float
        Width of its outermost zone.
    stop_diameter_m : float
        Diameter of the central stop; 0 for none.
    defocus_m : float
        Distance of the sample downstream of the focus; negative upstream.
    """

    diameter_m: float = 160e-6
    outer_zone_m: float = 30e-9
    stop_diameter_m: float = 60e-6
    defocus_m: float = 0.19e-3

    def __post_init__(self) -> None:
        for name in ("diameter_m", "outer_zone_m"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value > 0):
                raise InputError(f"{name} = {value}", "it must be positive and finite", "state the optics")
        if not 0 <= self.stop_diameter_m < self.diameter_m:
            raise InputError(
                f"stop_diameter_m = {self.stop_diameter_m}", f"it lies between 0 and the diameter {self.diameter_m}"
            )
        if not np.isfinite(self.defocus_m):
            raise InputError(f"defocus_m = {self.defocus_m}", "it must be finite")

    def focal_length_m(self, wavelength_m: float) -> float:
        """Focal length of the first order, D·Δr/λ (Attwood, Soft X-rays, eq. 9.17)."""
        return self.diameter_m * self.outer_zone_m / wavelength_m

    def as_dict(self) -> dict[str, float]:
        """JSON-able form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ZonePlate:
        """Inverse of `as_dict`; unknown keys are ignored."""
        return cls(**{name: float(content[name]) for name in cls.__dataclass_fields__ if name in content})


def zone_plate_probe(plate: ZonePlate, geometry: Geometry, photons: float = 1.0) -> NDArray[np.complex64]:
    """Wave field of the zone plate in the sample's plane, on the object's pixels.

    Parameters
    ----------
    plate : ZonePlate
    geometry : Geometry
        Fixes wavelength, pixel and number of pixels N.
    photons : float
        Photons in the probe: the sum of |P|².

    Returns
    -------
    ndarray of complex64, shape (N, N)
        Centre at ``[N//2, N//2]``, in sqrt(photons).

    Raises
    ------
    InputError
        The pupil does not fit the detector, or the window is smaller than 1.5 times the 90 % diameter of the probe.

    Notes
    -----
    The spectrum of the focus is the pupil, A(q) = pupil(λ·f·q); a defocus z multiplies it by exp(−iπλz|q|²) (Goodman,
    Fourier Optics, §4.2 and §5.2). The result is band limited and periodic, so that sub-pixel shifts are exact.
    """
    if not (np.isfinite(photons) and photons >= 0):
        raise InputError(f"photons = {photons}", "it must be finite and not negative")
    q_edge = 0.5 / plate.outer_zone_m
    q_nyquist = 0.5 / geometry.object_pixel_m
    if q_edge > q_nyquist:
        raise InputError(
            f"outermost zone {plate.outer_zone_m:.3g} m at an object pixel of {geometry.object_pixel_m:.3g} m",
            "the zone plate's cone is wider than the detector",
            "use more detector pixels, a shorter distance or a wider outermost zone",
        )
    wavelength_m = geometry.wavelength_m
    q = fftfreq(geometry.num_px, geometry.object_pixel_m)
    pupil = _pupil(q, q_edge, q_edge * plate.stop_diameter_m / plate.diameter_m, 1.0 / geometry.window_m)
    chirp = np.exp(-1j * np.pi * wavelength_m * plate.defocus_m * (q[:, None] ** 2 + q[None, :] ** 2))
    probe = fftshift(ifft2(pupil * chirp, unitary=True))
    probe *= np.sqrt(photons / np.sum(np.abs(probe) ** 2))
    if photons > 0:
        check_window(probe, geometry)
    return probe.astype(np.complex64)


def _pupil(q: NDArray[np.float64], outer: float, inner: float, step: float) -> NDArray[np.float64]:
    """Fraction of each frequency pixel (N, N) that lies in the open ring of the pupil."""
    offsets = ((np.arange(PUPIL_OVERSAMPLING) + 0.5) / PUPIL_OVERSAMPLING - 0.5) * step
    fine = (q[:, None] + offsets).ravel() ** 2
    radius2 = fine[:, None] + fine[None, :]
    ring = (radius2 <= outer**2) & (radius2 >= inner**2)
    n = len(q)
    return ring.reshape(n, PUPIL_OVERSAMPLING, n, PUPIL_OVERSAMPLING).mean(axis=(1, 3))


def probe_diameter_m(probe: NDArray[Any], pixel_m: float, fraction: float = 0.9) -> float:
    """Diameter of the circle, about the centre of mass of |P|², that holds a fraction of the photons.

    Parameters
    ----------
    probe : ndarray of complex, shape (N, N) or (modes, N, N)
        Several modes are added in intensity.
    pixel_m : float
        Pixel of the probe.
    fraction : float
        Between 0 and 1.

    Returns
    -------
    float
        In the unit of ``pixel_m``.
    """
    if not 0 < fraction < 1:
        raise InputError(f"fraction = {fraction}", "it lies between 0 and 1")
    intensity = (np.abs(probe.astype(np.complex128)) ** 2).reshape(-1, *probe.shape[-2:]).sum(axis=0)
    total = intensity.sum()
    if not total > 0:
        raise InputError("a probe without intensity", "its diameter is not defined")
    rows, cols = np.indices(intensity.shape)
    row, col = (intensity * rows).sum() / total, (intensity * cols).sum() / total
    radius = np.hypot(rows - row, cols - col).ravel()
    order = np.argsort(radius)
    inside = np.cumsum(intensity.ravel()[order]) / total
    return float(2.0 * np.interp(fraction, inside, radius[order]) * pixel_m)


def check_window(probe: NDArray[Any], geometry: Geometry) -> None:
    """Refuse a window under 1.5 times the 90 % diameter of the probe.

    Raises
    ------
    InputError
        The window is too small: the diffraction pattern would be under-sampled.
    """
    diameter_m = probe_diameter_m(probe, geometry.object_pixel_m)
    if geometry.window_m < MIN_WINDOW_PER_DIAMETER * diameter_m:
        raise InputError(
            f"window of {geometry.window_m * 1e6:.3g} µm for a probe of {diameter_m * 1e6:.3g} µm (90 % of photons)",
            f"the window λz/p must be at least {MIN_WINDOW_PER_DIAMETER} times the probe",
            "use a longer distance, smaller (less binned) detector pixels or less defocus",
        )
