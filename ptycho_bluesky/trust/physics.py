"""What travels with a model so that its answers can be checked: probe, amplitude, light, and what is usual."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.trust.flags import Limits
from ptycho_bluesky.trust.light import Light

__all__ = ["PHYSICS_KEY", "AmplitudeLaw", "Physics", "fit_amplitude_law", "read_physics"]

PHYSICS_KEY = "physics"
"""Key of a model's manifest."""
LIT_FRACTION = 0.1
"""Part of the highest illumination from which on a pixel tells of the sample."""


@dataclass(frozen=True)
class AmplitudeLaw:
    """Amplitude that belongs to a phase: ln A = offset + slope·φ.

    A sample of one material has A = exp(−kβt) and φ = −kδt, so ln A = (β/δ)·φ: a straight line, whatever its thickness.
    A slope of 0 is the mean amplitude of the labels.

    Attributes
    ----------
    offset, slope : float
        The slope in 1/rad.
    """

    offset: float = 0.0
    slope: float = 0.0


def fit_amplitude_law(
    phase_rad: NDArray[np.float32], amplitude: NDArray[np.float32], weight: NDArray[np.float32]
) -> AmplitudeLaw:
    """Least-squares line through ln A against φ on the lit pixels of labels.

    Parameters
    ----------
    phase_rad, amplitude : ndarray of float32, shape (n, h, w)
    weight : ndarray of float32, shape (h, w)
        Illumination relative to its highest.
    """
    lit = weight >= LIT_FRACTION
    phase, log_amplitude = phase_rad[:, lit].ravel().astype(np.float64), amplitude[:, lit].ravel().astype(np.float64)
    log_amplitude = np.log(np.maximum(log_amplitude, 1e-3))
    if not len(phase) or not (np.isfinite(phase).all() and np.isfinite(log_amplitude).all()):
        return AmplitudeLaw()
    varies = float(np.var(phase))
    slope = float(np.mean((phase - phase.mean()) * log_amplitude)) / varies if varies > 1e-6 else 0.0
    return AmplitudeLaw(float(log_amplitude.mean() - slope * phase.mean()), slope)


@dataclass(frozen=True)
class Physics:
    """What the counts of a frame are compared with.

    Attributes
    ----------
    probe : ndarray of complex64, shape (modes, N, N)
        Of the label set that trained the model, in the gauge of its labels; √counts of ``light``.
    gauge : str
        Which one that is.
    amplitude : AmplitudeLaw
        Amplitude of a phase, for networks that read the phase alone.
    background_counts : float
        Counts a pixel that no wave explains, at ``light``.
    light : Light
    limits : Limits or None
        What is usual for frames of the kind that the model was trained with; None: not measured.
    figures : dict
        ``residual_label`` (floor), ``residual_model``, ``residual_flat`` (ceiling) of the frames that ``limits`` come
        from, and which these were.
    """

    probe: NDArray[np.complex64]
    gauge: str = ""
    amplitude: AmplitudeLaw = field(default_factory=AmplitudeLaw)
    background_counts: float = 0.0
    light: Light = field(default_factory=Light)
    limits: Limits | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = np.shape(self.probe)
        if len(shape) != 3 or shape[1] != shape[2] or not np.isfinite(self.probe).all() or not np.any(self.probe):
            raise InputError(f"probe of shape {shape}", "it is (modes, N, N), finite and not dark", "train anew")

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form; the probe as zlib and base64 of little-endian complex64."""
        content = np.ascontiguousarray(self.probe, dtype="<c8").tobytes()
        return {
            "probe": base64.b64encode(zlib.compress(content)).decode(),
            "probe_shape": list(np.shape(self.probe)),
            "gauge": self.gauge,
            "amplitude": {"offset": self.amplitude.offset, "slope": self.amplitude.slope},
            "background_counts": self.background_counts,
            "light": self.light.as_dict(),
            "limits": None if self.limits is None else self.limits.as_dict(),
            "figures": dict(self.figures),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Physics:
        """Inverse of `as_dict`.

        Raises
        ------
        InputError
            The content is damaged.
        """
        try:
            shape = tuple(int(v) for v in content["probe_shape"])
            raw = zlib.decompress(base64.b64decode(content["probe"], validate=True))
            probe = np.frombuffer(raw, dtype="<c8").reshape(shape).astype(np.complex64)
            law, limits = content.get("amplitude") or {}, content.get("limits")
            return cls(
                probe,
                str(content.get("gauge", "")),
                AmplitudeLaw(float(law.get("offset", 0.0)), float(law.get("slope", 0.0))),
                float(content.get("background_counts", 0.0)),
                Light.from_dict(content.get("light")),
                None if limits is None else Limits.from_dict(limits),
                dict(content.get("figures") or {}),
            )
        except (KeyError, TypeError, ValueError, zlib.error) as error:
            raise InputError(
                f"physics of a model: {error}", "its manifest is damaged", "fetch the model anew"
            ) from error


def read_physics(manifest: Mapping[str, Any]) -> tuple[Physics | None, str]:
    """Physics of a model by its manifest, or why there is none.

    Returns
    -------
    Physics or None
    str
        The reason, "" where there is one.
    """
    content = manifest.get(PHYSICS_KEY)
    if not isinstance(content, Mapping):
        return None, "the model file carries no probe: its residual cannot be computed"
    try:
        return Physics.from_dict(content), ""
    except InputError as error:
        return None, str(error)
