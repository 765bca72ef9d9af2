"""Runs scans under faults through real processes and prints the accounting of each as JSON.

A program of its own, since the ports of Channel Access are fixed when ophyd is imported.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bluesky.utils import RunEngineInterrupted
from rich.console import Console

from ptycho_bluesky.demo.display import Display
from ptycho_bluesky.demo.facility import Facility, demo_settings

POINTS = 400
PERIOD_S = 0.005


class Scenarios:
    """One method a scenario; each returns the uid of its run."""

    def __init__(self, facility: Facility) -> None:
        self.facility = facility
        self._signals: dict[str, Any] = {}

    def put(self, name: str, value: float) -> None:
        from ophyd import EpicsSignal

        name = f"{self.facility.settings.epics.prefix}sim1:{name}"
        if name not in self._signals:
            self._signals[name] = EpicsSignal(name, name=name)
            self._signals[name].wait_for_connection(timeout=10)
        self._signals[name].put(value, wait=True, timeout=10)

    @contextmanager
    def fault(self, name: str, value: float) -> Iterator[None]:
        self.put(name, value)
        try:
            yield
        finally:
            self.put(name, 0)

    def scan(self, during: Callable[[], None] | None = None, period_s: float = PERIOD_S) -> str:
        session = self.facility.session
        plan = session.fly_spiral(
            num_points=POINTS, step_m=100e-9, exposure_s=0.8 * PERIOD_S, period_s=period_s, purpose="test"
        )
        helper = threading.Thread(target=self._after_start, args=(during,)) if during else None
        if helper:
            helper.start()
        try:
            return self.facility.scan(plan)
        except RunEngineInterrupted:
            time.sleep(0.3)
            return session.RE.resume()[0]
        finally:
            if helper:
                helper.join()

    def _after_start(self, action: Callable[[], None]) -> None:
        """Act half-way through the scan."""
        from ophyd import EpicsSignalRO

        index = EpicsSignalRO(f"{self.facility.settings.epics.prefix}fly1:Index_RBV", name="index")
        state = EpicsSignalRO(f"{self.facility.settings.epics.prefix}fly1:State_RBV", name="state", string=True)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if state.get(use_monitor=False) == "Running" and index.get(use_monitor=False) >= POINTS // 10:
                action()
                return
            time.sleep(0.02)

    def plain(self) -> str:
        return self.scan()

    def stream_drops_5_percent(self) -> str:
        with self.fault("Fault:Drop", 0.05):
            return self.scan()

    def file_drops_1_percent(self) -> str:
        with self.fault("Fault:HDFDrop", 0.01):
            return self.scan()

    def stream_duplicates(self) -> str:
        with self.fault("Fault:Duplicate", 0.05):
            return self.scan()

    def stream_corrupts(self) -> str:
        with self.fault("Fault:Corrupt", 0.05):
            return self.scan()

    def id_reset_at_arm(self) -> str:
        self.put("IdResetAtArm", 1)
        return self.scan()

    def id_not_reset_at_arm(self) -> str:
        self.put("IdResetAtArm", 0)
        return self.scan()

    def rearmed_id_reset(self) -> str:
        self.put("IdResetAtArm", 1)
        return self.scan(lambda: self.facility.session.RE.request_pause(defer=False))

    def rearmed_id_not_reset(self) -> str:
        self.put("IdResetAtArm", 0)
        return self.scan(lambda: self.facility.session.RE.request_pause(defer=False))

    def edge_starts_half_way(self) -> str:
        edge = self.facility.processes.children["edge"]
        edge.kill()
        # Long enough for the edge to be up before the scan ends.
        return self.scan(edge.start, period_s=0.06)


NAMES = [name for name, value in vars(Scenarios).items() if name not in {"put", "fault", "scan"} and name[0] != "_"]


def main(folder: Path, names: list[str]) -> None:
    settings = demo_settings(folder)
    display = Display(len(names), Console(stderr=True))
    with display, Facility(settings, folder, ["--size", "64"], display, with_worker=False) as facility:
        scenarios = Scenarios(facility)
        found: dict[str, Any] = {}
        for name in names:
            display.step(name)
            facility.wait("the edge", lambda: facility.processes.children["edge"].alive, 10)
            facility.wait_edge_ready()
            uid = getattr(scenarios, name)()
            stored = facility.wait_mosaic(uid)
            log = stored.mosaic.frame_log
            found[name] = {
                "counts": stored.counts.as_dict(),
                "exit_status": facility.wait_stored(uid)["exit_status"],
                "frame_index": log["frame_index"].tolist(),
                "position_source": log["position_source"].tolist(),
                "segments": len(facility.store.run(uid)["segments"]["segment_index"].read()),
                "rows_read": len(facility.store.read_run(uid)),
            }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or NAMES)
