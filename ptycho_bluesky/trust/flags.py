"""Whether a frame is of the kind that its model was trained with.

Three figures of a frame are compared with what they were on frames of the training's kind (`Limits`, measured when the
model was made and stored with it):

- ``contrast``: what distinguishes the frame from one without sample, in nats a photon (`FrameFit.flat_excess`). Too
  little: nothing to read (no sample in the beam). Too much: another probe, a shifted centre, another geometry.
- ``unexplained``: the part of it that the network's answer does not explain (`FrameFit.unexplained`).
- ``brightness``: counts over expected counts, after the factor of the light. How far off they may be is measured for
  each network: one that has the mean frame taken away reads worse from a few per cent on.

A frame is flagged when one of them lies outside the range that holds all but `TAIL` of the reference frames at each
end, widened by a stated factor. A run is flagged when more of its checked frames are flagged than `RUN_FRACTION`, or
when its overlapping patches disagree (`Limits.disagreement`): an orientation that a symmetric probe cannot tell from
the right one shows there and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import IntFlag
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ptycho_bluesky.trust.residual import FrameFit

__all__ = ["RUN_FRACTION", "Flag", "Limits", "flag_frames", "run_flags"]

TAIL = 0.005
"""Part of the reference frames that lies beyond either end of a range before it is widened."""
WIDEN_CONTRAST, WIDEN_UNEXPLAINED = 1.5, 1.25
"""Factors by which the ranges are widened; that of the brightness is measured for each network."""
RUN_FRACTION = 0.1
"""Part of its checked frames that may be flagged before the run is."""
MIN_RUN_FRAMES = 20
"""Checked frames from which on a run is judged."""


class Flag(IntFlag):
    """What is unusual about a frame or a run."""

    NONE = 0
    CONTRAST = 1
    """Nothing to read, or far more than the sample makes."""
    UNEXPLAINED = 2
    """The network's answer does not explain the frame."""
    BRIGHTNESS = 4
    """Counts far from those of the training, whatever the light is said to be."""
    DISAGREEMENT = 8
    """Overlapping patches contradict each other (runs alone)."""

    @property
    def words(self) -> str:
        """Names of the flags, lower case, separated by ``+``; "" for none."""
        return "+".join(str(flag.name).lower() for flag in Flag if flag and flag in self)


@dataclass(frozen=True)
class Limits:
    """Ranges of the figures of usual frames.

    Attributes
    ----------
    contrast, brightness : tuple of float
        Lowest and highest.
    unexplained : float
        Highest.
    disagreement : float
        Highest part of a mosaic's phase variance that lies between overlapping patches; NaN: not measured.
    """

    contrast: tuple[float, float]
    brightness: tuple[float, float]
    unexplained: float
    disagreement: float = float("nan")

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        content = asdict(self)
        content["contrast"], content["brightness"] = list(self.contrast), list(self.brightness)
        content["disagreement"] = self.disagreement if np.isfinite(self.disagreement) else None
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Limits:
        """Inverse of `as_dict`."""
        (low, high), (dark, bright) = content["contrast"], content["brightness"]
        disagreement = content.get("disagreement")
        return cls(
            (float(low), float(high)),
            (float(dark), float(bright)),
            float(content["unexplained"]),
            float("nan") if disagreement is None else float(disagreement),
        )

    @classmethod
    def of_frames(
        cls,
        fit: FrameFit,
        disagreement: float = float("nan"),
        brightness_tolerance: float = 1.0,
        contrast: NDArray[np.float32] | None = None,
    ) -> Limits | None:
        """Limits from frames of the training's kind; None when none of them can be judged.

        Parameters
        ----------
        fit : FrameFit
            Of frames that the model did not train on, where there are any.
        disagreement : float
            `disagreement` of their mosaic; its limit is the root: half way to 1 on a scale of factors.
        brightness_tolerance : float
            Factor by which counts may be off before the network reads worse.
        contrast : ndarray of float32, shape (m,), optional
            `FrameFit.flat_excess` of more frames than ``fit`` has: how much structure a sample shows varies from place
            to place.
        """
        usable = np.isfinite(fit.unexplained) & (fit.flat_excess > 0) & (fit.brightness > 0)
        if not usable.any():
            return None
        seen = fit.flat_excess[usable]
        if contrast is not None:
            seen = np.concatenate([seen, contrast[contrast > 0]])
        low, high = np.quantile(seen, [TAIL, 1 - TAIL])
        dark, bright = np.quantile(fit.brightness[usable], [TAIL, 1 - TAIL])
        worst = float(np.quantile(fit.unexplained[usable], 1 - TAIL))
        return cls(
            (float(low) / WIDEN_CONTRAST, float(high) * WIDEN_CONTRAST),
            (float(dark) / brightness_tolerance, float(bright) * brightness_tolerance),
            max(worst, 0.0) * WIDEN_UNEXPLAINED,
            float(np.sqrt(max(disagreement, 0.0))),
        )


def flag_frames(fit: FrameFit, limits: Limits) -> NDArray[np.uint8]:
    """`Flag` of each frame, uint8 (n,); a frame without counts is dark: BRIGHTNESS and CONTRAST."""
    flags = np.zeros(len(fit), dtype=np.uint8)
    with np.errstate(invalid="ignore"):
        contrast = (fit.flat_excess >= limits.contrast[0]) & (fit.flat_excess <= limits.contrast[1])
        brightness = (fit.brightness >= limits.brightness[0]) & (fit.brightness <= limits.brightness[1])
        # of a frame without contrast nothing is left to explain
        explained = (fit.unexplained <= limits.unexplained) | (fit.flat_excess < limits.contrast[0])
    flags[~contrast] |= np.uint8(Flag.CONTRAST)
    flags[~explained & np.isfinite(fit.residual)] |= np.uint8(Flag.UNEXPLAINED)
    flags[~brightness] |= np.uint8(Flag.BRIGHTNESS)
    return flags


def run_flags(checked: int, flagged: Mapping[Flag, int], disagreement: float, limits: Limits) -> Flag:
    """What is unusual about a run.

    Parameters
    ----------
    checked : int
        Frames whose figures were computed.
    flagged : mapping of Flag to int
        How many of them have each flag.
    disagreement : float
        Of the run's mosaic, NaN where unknown.
    limits : Limits
    """
    found = Flag.NONE
    if checked >= MIN_RUN_FRAMES:
        for flag, count in flagged.items():
            if count > RUN_FRACTION * checked:
                found |= flag
    if disagreement > limits.disagreement:
        found |= Flag.DISAGREEMENT
    return found
