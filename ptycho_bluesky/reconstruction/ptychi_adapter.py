"""Every engine of pty-chi (extra ``ptychi``) behind the interface of our own."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.reconstruction.forward import Scan, frame_errors
from ptycho_bluesky.reconstruction.options import PtychiOptions

__all__ = ["PtychiEngine"]


class PtychiEngine:
    """A running reconstruction of pty-chi.

    Parameters
    ----------
    scan : Scan
    obj : Tensor of complex, shape (rows, cols)
        Starting object.
    probe : Tensor of complex, shape (modes, N, N)
        Starting probe.
    options : PtychiOptions

    Raises
    ------
    InputError
        pty-chi cannot be imported, or it is asked for what only our own engines do.
    """

    def __init__(self, scan: Scan, obj: Tensor, probe: Tensor, options: PtychiOptions) -> None:
        if options.correct_positions:
            raise InputError("correct_positions with pty-chi", "positions are refined by our own engines only")
        self.scan, self.obj, self.probe = scan, obj.clone(), probe.clone()
        self._total = float(scan.amplitude.double().square().sum())
        self._task = _task(scan, obj, probe, options)

    def run_pass(self, iteration: int) -> float:
        """One epoch.

        Returns
        -------
        float
            Σ(|F| − √I)²/ΣI after it, computed here: pty-chi's own loss is another one.
        """
        self.run_epoch()
        self.fetch()
        return float(frame_errors(self.scan, self.obj, self.probe).sum()) / self._total

    def run_epoch(self) -> None:
        """One epoch and nothing else."""
        self._task.run(1)

    def fetch(self) -> None:
        """Copy pty-chi's object and probe into ``obj`` and ``probe``."""
        found = self._task.get_data_to_cpu("object", as_numpy=True), self._task.get_data_to_cpu("probe", as_numpy=True)
        self.obj = torch.from_numpy(np.ascontiguousarray(found[0][0])).to(self.obj)
        self.probe = torch.from_numpy(np.ascontiguousarray(found[1][0])).to(self.probe) * self.scan.size_px

    def move(self, scan: Scan) -> None:
        """Refused: pty-chi holds positions of its own."""
        raise InputError("other positions for a running pty-chi engine", "it keeps those that it started with")

    def memory(self) -> dict[str, Tensor]:
        """Nothing: pty-chi keeps its state to itself."""
        return {}

    def recall(self, memory: Mapping[str, Tensor]) -> None:
        """Refused.

        Raises
        ------
        InputError
            Always.
        """
        raise InputError("resuming a pty-chi engine", "it keeps its state to itself", "start from object and probe")


def _task(scan: Scan, obj: Tensor, probe: Tensor, options: PtychiOptions) -> Any:
    try:
        api, tasks = importlib.import_module("ptychi.api"), importlib.import_module("ptychi.api.task")
    except ImportError as error:
        raise InputError(
            f"engine ptychi: {error}", "it needs pty-chi and torchvision", "pip install ptycho_bluesky[ptychi]"
        ) from error
    logging.getLogger("ptychi").setLevel(logging.WARNING)
    wanted = getattr(api, f"{options.algorithm.upper()}Options")()
    settings = wanted.reconstructor_options
    settings.default_device = api.Devices.CPU if obj.device.type == "cpu" else api.Devices.GPU
    settings.num_epochs, settings.batch_size, settings.random_seed = 1, options.batch_size, options.seed
    wanted.data_options.fft_shift = False
    wanted.object_options.determine_position_origin_coords_by = api.ObjectPosOriginCoordsMethods.SUPPORT
    wanted.probe_options.optimizable = options.update_probe
    wanted.probe_options.optimization_plan.start = options.probe_start
    if options.alpha is not None:
        wanted.object_options.alpha = wanted.probe_options.alpha = options.alpha
    # pty-chi counts positions from half a pixel before the middle of the object, and to the middle of a window.
    position = torch.from_numpy(scan.position_px - np.round(np.asarray(obj.shape) / 2)).float()
    mask = torch.ones(scan.amplitude.shape[-2:], dtype=torch.bool) if scan.trusted is None else scan.trusted
    return tasks.PtychographyTask(
        wanted,
        diffraction_data=scan.amplitude.square(),
        object_data=obj[None],
        # Its transform has no norm, ours is unitary.
        probe_data=probe[None] / scan.size_px,
        probe_position_x_px=position[:, 1],
        probe_position_y_px=position[:, 0],
        valid_pixel_mask=mask,
    )
