"""Several reconstructions side by side, one process on each device."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from queue import Queue

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.reconstruction.engine import reconstruct
from ptycho_bluesky.reconstruction.options import EngineOptions, EpieOptions
from ptycho_bluesky.records import Measurement, Reconstruction

__all__ = ["reconstruct_side_by_side"]


def reconstruct_side_by_side(
    measurements: Iterable[Measurement], options: EngineOptions | None = None, devices: Sequence[str] = ("cpu", "cpu")
) -> list[Reconstruction]:
    """Reconstruct several measurements, as many at once as there are devices.

    The engines of the ePIE family take one frame after another and do not divide a scan; what scales with devices is
    the number of scans. A process is started for each device and keeps it.

    Parameters
    ----------
    measurements : iterable of Measurement
    options : EngineOptions, optional
        Of all of them; the device is replaced. `EpieOptions` by default.
    devices : sequence of str
        For example ``("cuda:0", "cuda:1")``; ``cpu`` may stand there several times, once for each core to use.

    Returns
    -------
    list of Reconstruction
        In the order of the measurements, each that of `reconstruct` alone.

    Raises
    ------
    InputError
        There is no device, or a measurement cannot be reconstructed.
    """
    if not devices:
        raise InputError("no device to reconstruct on", "one process runs on each", "name one, for example cpu")
    options = options or EpieOptions()
    # Not forked: neither CUDA nor the threads of torch survive that.
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        free: Queue[tuple[str, ProcessPoolExecutor]] = Queue()
        for device in devices:
            free.put((device, stack.enter_context(ProcessPoolExecutor(1, context))))

        def run(measurement: Measurement) -> Reconstruction:
            device, process = free.get()
            try:
                wanted = options.model_copy(update={"device": device})
                return process.submit(reconstruct, measurement, wanted).result()
            finally:
                free.put((device, process))

        return list(stack.enter_context(ThreadPoolExecutor(len(devices))).map(run, measurements))
