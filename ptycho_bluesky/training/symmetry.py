"""Which turns and mirrors of a frame are frames that the same beam could have made."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.geometry import D4_OPERATIONS, apply_d4

__all__ = ["illumination", "probe_asymmetry", "symmetric_operations"]


def illumination(probe: NDArray[Any]) -> NDArray[np.float64]:
    """Intensity of all modes of a probe (modes, N, N) or (N, N), shape (N, N)."""
    probe = np.asarray(probe)
    if probe.ndim not in (2, 3):
        raise InputError(f"probe of shape {probe.shape}", "it must be (N, N) or (modes, N, N)")
    return (np.abs(probe) ** 2).reshape(-1, *probe.shape[-2:]).sum(axis=0)


def probe_asymmetry(probe: NDArray[Any], operation: str) -> float:
    """How far a probe is from its own image under an operation: 1 − |⟨P, gP⟩| / ⟨P, P⟩, 0 to 1.

    With P symmetric, a frame turned by g is the frame of the object turned by g: F[P·gO] = F[g(P·O)] = g F[P·O]. A
    constant phase between P and gP makes no difference to intensities. Of several modes the strongest decides.

    Parameters
    ----------
    probe : ndarray of complex, shape (N, N) or (modes, N, N)
    operation : str
        One of `ptycho_bluesky.geometry.D4_OPERATIONS`; turns are about the centre pixel.

    Returns
    -------
    float
    """
    probe = np.asarray(probe).reshape(-1, *np.shape(probe)[-2:])
    strongest = probe[np.argmax((np.abs(probe) ** 2).sum(axis=(1, 2)))].astype(np.complex128)
    power = (np.abs(strongest) ** 2).sum()
    if not power > 0:
        raise InputError("a probe without light", "its symmetry cannot be measured")
    return float(1.0 - np.abs(np.vdot(strongest, apply_d4(strongest, operation))) / power)


def symmetric_operations(probe: NDArray[Any], tolerance: float) -> tuple[str, ...]:
    """Operations of D4 under which the probe is its own image within a tolerance; always holds ``identity``."""
    square = np.shape(probe)[-1] == np.shape(probe)[-2]
    candidates = D4_OPERATIONS if square else ("identity", "rot180", "flip_rows", "flip_cols")
    return tuple(name for name in candidates if name == "identity" or probe_asymmetry(probe, name) <= tolerance)
