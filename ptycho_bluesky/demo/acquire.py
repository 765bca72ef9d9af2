"""One scan of a demo: run the plan, wait for the mosaic and for the worker, keep what was measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ptycho_bluesky.demo.display import Display
from ptycho_bluesky.demo.facility import Facility
from ptycho_bluesky.demo.results import DemoResult, ScanResult
from ptycho_bluesky.metrics import SsimResult

if TYPE_CHECKING:
    from ptycho_bluesky.records import Mosaic

__all__ = ["Acquisition"]


@dataclass
class Acquisition:
    """Runs scans and files their results.

    Attributes
    ----------
    facility : Facility
    result : DemoResult
        Scans and seconds of stages are added to it.
    display : Display
    between : callable
        Called after each scan and before its mosaic is waited for.
    """

    facility: Facility
    result: DemoResult
    display: Display
    between: Callable[[], None] = lambda: None

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """Show a stage and add its seconds to the report."""
        begun = time.monotonic()
        with self.display.timed(name.replace("_", " ")):
            yield
        self.result.add_stage(name, time.monotonic() - begun)

    def scan(
        self,
        plan: Any,
        *,
        number: int,
        title: str,
        purpose: str,
        score: Callable[[Mosaic], SsimResult] | None = None,
    ) -> tuple[ScanResult, Mosaic]:
        """Run a plan and follow its run through edge and worker.

        Parameters
        ----------
        plan : generator
            Plan of one run.
        number, title, purpose
            Of `ScanResult`.
        score : callable, optional
            Compares a mosaic that a model read with the truth.
        """
        facility = self.facility
        facility.wait_edge_ready()
        with self.timing("scan"):
            uid = facility.scan(plan)
        self.between()
        with self.timing("finish_mosaic"):
            stored = facility.wait_mosaic(uid)
        mosaic = stored.mosaic
        model_id = mosaic.model_ids[-1] if mosaic.model_ids else ""
        with self.timing("wait_for_worker"):
            decision = facility.wait_decision(uid)
        stage_s = {name: float(seconds) for name, seconds in (decision.get("stage_seconds") or {}).items()}
        for name, seconds in stage_s.items():
            self.result.add_stage(name, seconds)
        scan = ScanResult(
            number=number,
            title=title,
            purpose=purpose,
            uid=uid,
            counts=stored.counts,
            ssim=score(mosaic) if score and model_id else None,
            model_id=model_id,
            outcome=decision.get("outcome", ""),
            reason=decision.get("reason", ""),
            stage_s=stage_s,
            figures=decision.get("figures") or {},
        )
        self.result.scans.append(scan)
        live = f"live SSIM {scan.ssim.ssim:.3f}" if scan.ssim else f"read by model {model_id[:8] or 'none yet'}"
        frames = f"{scan.counts.generated} frames, lost {scan.counts.lost}"
        self.display.note(f"   {title}: {frames}; {live}; {scan.outcome}: {scan.reason}")
        return scan, mosaic
