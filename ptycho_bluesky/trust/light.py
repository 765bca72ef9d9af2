"""How much light a frame got, and the factor that brings its counts to those that a model was trained with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptycho_bluesky.errors import InputError

__all__ = ["MAX_FACTOR", "TRANSMISSION_SUFFIX", "Light", "LightScale"]

TRANSMISSION_SUFFIX = "transmission"
"""End of the attenuator's data key in a run's baseline."""

MAX_FACTOR = 16.0
"""Factor of the counts up to which a network reads acceptably: ×4 makes no visible change, ×16 errors up to 0.2 rad,
×40 is unusable (Babu et al., Nat. Commun. 14, 7059, 2023). Beyond it, up or down, a run is warned of."""
DISAGREEMENT = 2.0
"""Factor by which monitor and exposure may differ before both are mentioned."""


@dataclass(frozen=True)
class Light:
    """The light of a scan; None where it is not known.

    Attributes
    ----------
    i0 : float or None
        Mean of the beam monitor.
    exposure_s : float or None
    transmission : float or None
        Of the attenuator, 0 to 1.
    mean_counts : float or None
        Mean counts of a frame.
    i0_integrates : bool
        Whether the monitor counts during each exposure; else it gives a rate.
    i0_behind_attenuator : bool
        Whether the monitor sees what the attenuator lets through.
    """

    i0: float | None = None
    exposure_s: float | None = None
    transmission: float | None = None
    mean_counts: float | None = None
    i0_integrates: bool = True
    i0_behind_attenuator: bool = True

    def __post_init__(self) -> None:
        for name in ("i0", "exposure_s", "transmission", "mean_counts"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value > 0):
                object.__setattr__(self, name, None)  # a monitor that reads nothing tells nothing

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any] | None) -> Light:
        """Inverse of `as_dict`; nothing is known of None, unknown keys are ignored."""
        known = {name: content[name] for name in cls.__dataclass_fields__ if name in content} if content else {}
        for name in ("i0", "exposure_s", "transmission", "mean_counts"):
            if known.get(name) is not None:
                known[name] = float(known[name])
        return cls(**known)

    @classmethod
    def of_run(cls, ptycho: Mapping[str, Any], transmission: float | None = None) -> Light:
        """Light as a run's start document states it under ``ptycho`` (``scan.exposure_s``, ``light``)."""
        scan, light = ptycho.get("scan") or {}, ptycho.get("light") or {}
        stated = {"exposure_s": scan.get("exposure_s"), "transmission": transmission, **light}
        return cls.from_dict(stated)

    def nominal(self) -> float | None:
        """Exposure times transmission, in s; a transmission that is not stated is taken as that of the other scans."""
        if self.exposure_s is None:
            return None
        return self.exposure_s * (1.0 if self.transmission is None else self.transmission)

    def dose(self, i0: ArrayLike) -> NDArray[np.float64]:
        """Light (n,) of frames with monitor values (n,), in the monitor's unit; NaN where it cannot be told."""
        value = np.asarray(i0, dtype=np.float64)
        value = np.where(np.isfinite(value) & (value > 0), value, np.nan)
        if not self.i0_integrates:
            value = value * (np.nan if self.exposure_s is None else self.exposure_s)
        if not self.i0_behind_attenuator:
            value = value * (np.nan if self.transmission is None else self.transmission)
        return value


class LightScale:
    """Factors that bring the counts of one run to the light of a model's training.

    Parameters
    ----------
    reference : Light
        Of the scan that the model's labels and probe come from.
    run : Light
        Of the run that is read.

    Notes
    -----
    The monitor decides, frame by frame. A frame without monitor is scaled by exposure and attenuation, as far as both
    scans state them, is left as it is otherwise, and is flagged; nothing is guessed.
    """

    def __init__(self, reference: Light, run: Light) -> None:
        self.reference, self.run = reference, run
        ours, theirs = run.nominal(), reference.nominal()
        self.nominal = 1.0 if ours is None or theirs is None else theirs / ours
        self._dose = float(reference.dose([np.nan if reference.i0 is None else reference.i0])[0])
        self.low, self.high, self.frames, self.without_monitor = np.inf, 0.0, 0, 0

    def factors(self, i0: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Factor of each frame (n,) float32, and which of them (n,) have no usable monitor."""
        dose = self.run.dose(i0)
        flagged: NDArray[np.bool_] = np.asarray(~np.isfinite(dose))
        ratio = self._dose / dose
        factor = np.where(np.isfinite(ratio), ratio, self.nominal).astype(np.float32)
        if len(factor):
            self.low, self.high = min(self.low, float(factor.min())), max(self.high, float(factor.max()))
        self.frames += len(factor)
        self.without_monitor += int(flagged.sum())
        return factor, flagged

    def warning(self) -> str:
        """What is wrong with the light of the frames so far, "" if nothing is."""
        if self.frames and (self.high > MAX_FACTOR or self.low < 1.0 / MAX_FACTOR):
            worst = self.high if self.high > MAX_FACTOR else self.low
            return str(
                InputError(
                    f"counts multiplied by {worst:.3g} to reach those of the training",
                    f"between 1/{MAX_FACTOR:.0f} and {MAX_FACTOR:.0f} a network reads as it was trained",
                    "change exposure or attenuation, or train on scans of this light",
                )
            )
        monitored = self.frames > self.without_monitor and self.reference.i0 is not None
        known = self.run.nominal() is not None and self.reference.nominal() is not None
        off = max(self.high / self.nominal, self.nominal / max(self.low, 1e-30)) if self.frames else 1.0
        if monitored and known and off > DISAGREEMENT:
            return str(
                InputError(
                    f"the monitor asks for a factor of {self.low:.3g} to {self.high:.3g}, exposure and attenuation for "
                    f"{self.nominal:.3g}",
                    "the monitor is believed",
                    "check the monitor, and whether it integrates and stands behind the attenuator",
                )
            )
        return ""

    def as_dict(self) -> dict[str, Any]:
        """What was done to the run's counts, JSON-able."""
        by = "monitor" if self.without_monitor < self.frames else "exposure" if self.nominal != 1.0 else "nothing"
        return {
            "factor_low": self.low if self.frames else None,
            "factor_high": self.high if self.frames else None,
            "factor_nominal": self.nominal,
            "scaled_by": by,
            "frames_without_i0": self.without_monitor,
            "reference": self.reference.as_dict(),
            "run": self.run.as_dict(),
            "warning": self.warning(),
        }
