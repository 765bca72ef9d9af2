"""Which measurements one model is for: the geometry of the frames, and the probe that lit the sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptycho_bluesky.errors import InputError

__all__ = ["KnownProbe", "RegimeMatch", "assign_regime", "probe_similarity", "same_geometry"]

PIXEL_TOLERANCE = 1e-3
"""Relative difference of two pixel sizes that count as one."""
MODES_KEPT = 3


def probe_similarity(one: ArrayLike, other: ArrayLike) -> float:
    """How alike two probes are, whatever their gauge: 1 for the same beam, 0 for beams that share nothing.

    The highest correlation of the two wave fields over shifts against each other,
    max_s |⟨P₁(r), P₂(r − s)⟩| / (‖P₁‖·‖P₂‖): a constant phase, the scale and a common shift drop out. Of probes with
    several modes the strongest are compared pair by pair, weighted by their power.

    Parameters
    ----------
    one, other : array_like of complex, shape (modes, N, N) or (N, N)

    Returns
    -------
    float
        0 to 1.

    Raises
    ------
    InputError
        The windows differ, or a probe is dark.
    """
    first, second = (_modes(each) for each in (one, other))
    if first.shape[1:] != second.shape[1:]:
        raise InputError(f"probes of {first.shape[1:]} and {second.shape[1:]} pixels", "one window is compared")
    powers = [np.sum(np.abs(each) ** 2, axis=(1, 2)) for each in (first, second)]
    total = 0.0
    for k in range(min(len(first), len(second))):
        spectrum = np.fft.fft2(first[k]) * np.conj(np.fft.fft2(second[k]))
        total += float(np.abs(np.fft.ifft2(spectrum)).max())
    return min(1.0, total / float(np.sqrt(powers[0].sum() * powers[1].sum())))


def _modes(probe: ArrayLike) -> NDArray[np.complex128]:
    """The strongest modes of a probe, strongest first."""
    modes = np.asarray(probe, dtype=np.complex128)
    modes = modes[None] if modes.ndim == 2 else modes
    if modes.ndim != 3 or not np.isfinite(modes).all() or not np.any(modes):
        raise InputError(f"probe of shape {np.shape(probe)}", "it is (modes, N, N), finite and not dark")
    order = np.argsort(np.sum(np.abs(modes) ** 2, axis=(1, 2)))[::-1]
    return modes[order[:MODES_KEPT]]


def same_geometry(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two regimes have frames of one shape and pixels of one size (unknown pixels equal unknown ones)."""
    if list(one.get("image_shape", ())) != list(other.get("image_shape", ())):
        return False
    pixels = one.get("pixel_size_m"), other.get("pixel_size_m")
    if pixels[0] is None or pixels[1] is None:
        return pixels[0] == pixels[1]
    return abs(pixels[0] / pixels[1] - 1.0) <= PIXEL_TOLERANCE


@dataclass(frozen=True)
class KnownProbe:
    """The probe that a regime was founded with.

    Attributes
    ----------
    key : str
        Name of the regime: the uid of the run that founded it.
    geometry : dict
        ``image_shape`` and ``pixel_size_m``.
    probe : ndarray of complex, shape (modes, N, N)
    """

    key: str
    geometry: Mapping[str, Any]
    probe: NDArray[Any]


@dataclass(frozen=True)
class RegimeMatch:
    """Regime of a run.

    Attributes
    ----------
    key : str
        Name of the regime; the run's own uid where it founds one.
    similarity : float
        With the probe of that regime; 1 for the founder.
    founded : bool
        Whether no known regime was alike enough.
    others : dict of str to float
        Similarity with every known regime of the same geometry.
    """

    key: str
    similarity: float
    founded: bool
    others: Mapping[str, float]


def assign_regime(
    run_uid: str, geometry: Mapping[str, Any], probe: NDArray[Any], known: list[KnownProbe], threshold: float
) -> RegimeMatch:
    """Find the regime of a run: that of the most similar probe of the same geometry, or a new one.

    Parameters
    ----------
    run_uid : str
    geometry : mapping
        ``image_shape`` and ``pixel_size_m``.
    probe : ndarray of complex, shape (modes, N, N)
        Reconstructed from the run.
    known : list of KnownProbe
    threshold : float
        Similarity from which on two probes are one regime.

    Raises
    ------
    InputError
        The threshold is out of range, or the probe is dark.
    """
    if not 0 < threshold <= 1:
        raise InputError(f"probe similarity threshold {threshold}", "it lies between 0 and 1")
    comparable = [
        each
        for each in known
        if same_geometry(each.geometry, geometry) and np.shape(each.probe)[-2:] == np.shape(probe)[-2:]
    ]
    found = {each.key: probe_similarity(each.probe, probe) for each in comparable}
    if run_uid in found:
        return RegimeMatch(run_uid, 1.0, True, found)
    best = max(found, key=lambda key: found[key], default=None)
    if best is not None and found[best] >= threshold:
        return RegimeMatch(best, found[best], False, found)
    return RegimeMatch(run_uid, 1.0, True, found)
