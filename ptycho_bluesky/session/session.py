"""A session: everything that a scan needs, by name."""

from __future__ import annotations

import atexit
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ptycho_bluesky.config import Settings

if TYPE_CHECKING:
    from bluesky import RunEngine
    from bluesky.utils import MsgGenerator

    from ptycho_bluesky.callbacks.journal import RunJournal
    from ptycho_bluesky.callbacks.live_plots import LiveScan
    from ptycho_bluesky.callbacks.publisher import DocumentPublisher
    from ptycho_bluesky.devices import (
        Attenuator,
        Energy,
        I0Monitor,
        PtychoDetector,
        PtychoFlyer,
        SampleStage,
        Shutter,
    )

__all__ = ["Session"]

logger = logging.getLogger(__name__)


@dataclass
class Session:
    """RunEngine, devices, plans and data access of one beamline.

    Attributes
    ----------
    settings : Settings
    RE : RunEngine
        Writes the journal first, then publishes, then plots.
    stage, detector, flyer, shutter, attenuator, energy, i0
        Devices, connected.
    journal, publisher
        Callbacks of ``RE``.
    live_plot : LiveScan or None
    client : Tiled container or None
        Root of the catalogue; None when Tiled is away.
    raw : Tiled container or None
        Runs.
    """

    settings: Settings
    RE: RunEngine
    stage: SampleStage
    detector: PtychoDetector
    flyer: PtychoFlyer
    shutter: Shutter
    attenuator: Attenuator
    energy: Energy
    i0: I0Monitor
    journal: RunJournal
    publisher: DocumentPublisher
    live_plot: LiveScan | None = None
    client: Any = None
    raw: Any = None
    closers: list[Callable[[], None]] = field(default_factory=list)

    @property
    def fly_spiral_ptycho(self) -> Callable[..., MsgGenerator[str]]:
        """`ptycho_bluesky.plans.fly_spiral_ptycho`."""
        from ptycho_bluesky.plans import fly_spiral_ptycho

        return fly_spiral_ptycho

    @property
    def fly_ptycho(self) -> Callable[..., MsgGenerator[str]]:
        """`ptycho_bluesky.plans.fly_ptycho`."""
        from ptycho_bluesky.plans import fly_ptycho

        return fly_ptycho

    @property
    def spiral_ptycho(self) -> Callable[..., MsgGenerator[str]]:
        """`ptycho_bluesky.plans.spiral_ptycho`."""
        from ptycho_bluesky.plans import spiral_ptycho

        return spiral_ptycho

    @property
    def step_ptycho(self) -> Callable[..., MsgGenerator[str]]:
        """`ptycho_bluesky.plans.step_ptycho`."""
        from ptycho_bluesky.plans import step_ptycho

        return step_ptycho

    def fly_spiral(self, **arguments: Any) -> MsgGenerator[str]:
        """`fly_spiral_ptycho` with this session's devices."""
        return self.fly_spiral_ptycho(self.flyer, self.stage, **({"shutter": self.shutter} | arguments))

    def spiral(self, **arguments: Any) -> MsgGenerator[str]:
        """`spiral_ptycho` with this session's devices."""
        return self.spiral_ptycho(self.detector, self.stage, **({"shutter": self.shutter} | arguments))

    def namespace(self) -> dict[str, Any]:
        """Names for IPython: devices, ``RE``, plans, ``c`` (Tiled root) and ``db`` (runs), bluesky's usual modules."""
        import bluesky.plan_stubs as bps
        import bluesky.plans as bp
        import bluesky.preprocessors as bpp
        import numpy as np

        return {
            "session": self,
            "settings": self.settings,
            "RE": self.RE,
            "stage": self.stage,
            "detector": self.detector,
            "flyer": self.flyer,
            "shutter": self.shutter,
            "attenuator": self.attenuator,
            "energy": self.energy,
            "i0": self.i0,
            "live_plot": self.live_plot,
            "c": self.client,
            "db": self.raw,
            "fly_spiral_ptycho": self.fly_spiral_ptycho,
            "fly_ptycho": self.fly_ptycho,
            "spiral_ptycho": self.spiral_ptycho,
            "step_ptycho": self.step_ptycho,
            "fly_spiral": self.fly_spiral,
            "spiral": self.spiral,
            "bp": bp,
            "bps": bps,
            "bpp": bpp,
            "np": np,
        }

    def close(self) -> None:
        """Stop what the session started; what cannot be stopped is logged."""
        for closer in reversed(self.closers):
            try:
                closer()
            except Exception:  # boundary: the rest is closed all the same
                logger.exception("closing the session")
        self.closers.clear()
        atexit.unregister(self.close)
