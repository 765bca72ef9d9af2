"""A simulated beamline in a process of its own, and small clients of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pvaccess
from caproto.threading.client import Context

from ptycho_bluesky.config import EpicsSettings

START_TIMEOUT_S = 60.0
TIMEOUT_S = 10.0


class Ioc:
    """One ``ptycho-bluesky ioc`` and a Channel Access client."""

    def __init__(self, *arguments: str, prefix: str, environment: dict[str, str], preexec: Any = None) -> None:
        self.prefix = prefix
        self.lines: list[str] = []
        self._ready = threading.Event()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "simulated_iocs", *arguments, "--prefix", prefix],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=preexec,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.ready_line = ""

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if line.startswith("READY ioc"):
                self.ready_line = line.rstrip()
                self._ready.set()
        self._ready.set()

    def wait_ready(self) -> None:
        assert self._ready.wait(START_TIMEOUT_S), "\n".join(self.lines)
        assert self.ready_line, "\n".join(self.lines)

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self._reader.join(5)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


class Client:
    """Gets and puts by short names; long strings as str."""

    def __init__(self, prefix: str, context: Context) -> None:
        self.prefix, self._context, self._pvs = prefix, context, {}

    def pv(self, name: str) -> Any:
        if name not in self._pvs:
            (pv,) = self._context.get_pvs(self.prefix + name, timeout=TIMEOUT_S)
            pv.wait_for_connection(timeout=TIMEOUT_S)
            self._pvs[name] = pv
        return self._pvs[name]

    def get(self, name: str) -> Any:
        data = self.pv(name).read(timeout=TIMEOUT_S).data
        return data[0] if len(data) == 1 else data

    def text(self, name: str) -> str:
        return bytes(np.asarray(self.pv(name).read(timeout=TIMEOUT_S).data, dtype=np.uint8)).decode()

    def put(self, name: str, value: Any, *, wait: bool = True, timeout_s: float = TIMEOUT_S) -> None:
        if isinstance(value, str):
            value = np.frombuffer(value.encode() + b"\0", dtype=np.uint8)
        self.pv(name).write(value, wait=wait, timeout=timeout_s)

    def wait(self, name: str, expected: Any, timeout_s: float = TIMEOUT_S) -> None:
        until(lambda: self.get(name) == expected, timeout_s, lambda: f"{name} is {self.get(name)!r}, not {expected!r}")

    def trajectory(self, position_m: np.ndarray, period_s: float, exposure_s: float | None = None) -> None:
        self.put("det1:cam1:AcquireTime", period_s if exposure_s is None else exposure_s)
        self.put("fly1:Y_m", position_m[:, 0])
        self.put("fly1:X_m", position_m[:, 1])
        self.put("fly1:NumPoints", len(position_m))
        self.put("fly1:Period_s", period_s)
        self.put("fly1:StartIndex", 0)
        self.put("fly1:Build", 1, timeout_s=60.0)

    def arm(self, num_images: int) -> None:
        self.put("det1:cam1:TriggerMode", 1)
        self.put("det1:cam1:ImageMode", 1)
        self.put("det1:cam1:NumImages", num_images)
        self.put("det1:cam1:Acquire", 1, wait=False)
        self.wait("det1:cam1:Acquire_RBV", 1)

    def capture(self, folder: Path, name: str, num_capture: int = 0) -> Path:
        self.put("det1:HDF1:FilePath", f"{folder}/")
        self.put("det1:HDF1:FileName", name)
        self.put("det1:HDF1:FileTemplate", "%s%s.h5")
        self.put("det1:HDF1:NumCapture", num_capture)
        self.put("det1:HDF1:Capture", 1, wait=False)
        self.wait("det1:HDF1:Capture_RBV", 1)
        return Path(self.text("det1:HDF1:FullFileName_RBV"))

    def finish_capture(self) -> None:
        self.put("det1:HDF1:Capture", 0)
        self.wait("det1:HDF1:Capture_RBV", 0)

    def fly(self, num_images: int, timeout_s: float = 30.0) -> None:
        self.arm(num_images)
        self.put("fly1:Start", 1)
        until(lambda: self.get("fly1:State_RBV") != RUNNING, timeout_s, lambda: "still running")

    def reset(self) -> None:
        """Bring a shared beamline back to a known state."""
        self.put("fly1:Abort", 1)
        self.put("det1:cam1:Acquire", 0)
        self.put("det1:HDF1:Capture", 0)
        for name in ("Drop", "Duplicate", "Corrupt", "HDFDrop", "Delay_s", "DetectorErrorAt", "DieAt"):
            self.put(f"sim1:Fault:{name}", 0)
        self.put("sim1:IdResetAtArm", 0)
        self.put("sim1:FlipFrames", 0)
        for name in ("det1:cam1:ArrayCallbacks", "det1:HDF1:EnableCallbacks", "det1:Pva1:EnableCallbacks"):
            self.put(name, 1)
        self.put("det1:cam1:AcquireTime", 0.001)
        self.put("det1:cam1:AcquirePeriod", 0.001)
        self.put("atten1:Transmission", 1.0)
        self.put("shutter1:Open", 1)
        self.put("fly1:StartIndex", 0)


IDLE, BUILDING, READY, RUNNING, DONE, ABORTED, FAULT = range(7)
ERROR = 6


def until(condition: Callable[[], bool], timeout_s: float, message: Callable[[], str]) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, message()
        time.sleep(0.02)


class Monitor:
    """Collects a pvAccess channel's frames through a queue on both sides."""

    def __init__(self, channel: str, frames: int = 20_000) -> None:
        self._channel = pvaccess.Channel(channel)
        self._channel.setTimeout(TIMEOUT_S)
        self._queue = pvaccess.PvObjectQueue(frames)
        self.arrays: list[Any] = []
        self.skipped = 0

    def __enter__(self) -> Monitor:
        self._channel.qMonitor(self._queue, "record[queueSize=1000]field()")
        # The value on connection is no frame.
        self._queue.get(TIMEOUT_S)
        return self

    def __exit__(self, *error: object) -> None:
        self._channel.stopMonitor()

    def collect(self, count: int, timeout_s: float = 15.0) -> list[Any]:
        deadline = time.monotonic() + timeout_s
        while len(self.arrays) < count and time.monotonic() < deadline:
            self._take(0.2)
        return self.arrays

    def drain(self, quiet_s: float = 0.5) -> list[Any]:
        """Everything until nothing comes for a while."""
        while self._take(quiet_s):
            pass
        return self.arrays

    def _take(self, timeout_s: float) -> bool:
        try:
            self.arrays.append(self._queue.get(timeout_s))
        except pvaccess.QueueEmpty:
            return False
        return True

    @property
    def overruns(self) -> int:
        return int(self._channel.getMonitorCounters()["nOverruns"]) + int(self._queue.getCounters()["nRejected"])


def attribute(array: Any, name: str) -> float:
    for item in array["attribute"]:
        if item["name"] == name:
            return float(item["value"][0]["value"])
    raise KeyError(name)


def image_of(array: Any) -> np.ndarray:
    (values,) = array["value"][0].values()
    cols, rows = (d["size"] for d in array["dimension"])
    return np.asarray(values).reshape(rows, cols)


def stamp_of(array: Any) -> float:
    stamp = array["dataTimeStamp"]
    return stamp["secondsPastEpoch"] + stamp["nanoseconds"] * 1e-9


def child_environment(epics: EpicsSettings) -> dict[str, str]:
    """Environment in which the command line finds this session's ports."""
    stated = {f"PTYCHO_BLUESKY_EPICS__{name.upper()}": str(value) for name, value in epics.model_dump().items()}
    return {**os.environ, **stated}


@contextmanager
def running(*arguments: str, epics: EpicsSettings, prefix: str, preexec: Any = None) -> Iterator[Ioc]:
    ioc = Ioc(*arguments, prefix=prefix, environment=child_environment(epics), preexec=preexec)
    try:
        ioc.wait_ready()
        yield ioc
    finally:
        ioc.stop()
