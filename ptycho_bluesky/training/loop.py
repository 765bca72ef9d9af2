"""The loop of a training: steps, checkpoints, the curve; on one process or several."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ptycho_bluesky.errors import InputError, StorageError
from ptycho_bluesky.geometry import crop_centre
from ptycho_bluesky.models.network import AMPLITUDE, PHASE, Network
from ptycho_bluesky.models.reader import PhaseReader
from ptycho_bluesky.reconstruction.prepare import torch_device
from ptycho_bluesky.training.averaging import WeightAverage
from ptycho_bluesky.training.checkpoint import Checkpoint
from ptycho_bluesky.training.corpus import TrainingArrays
from ptycho_bluesky.training.curves import COLUMNS, CurveLog, holds_curve
from ptycho_bluesky.training.distributed import Ranks
from ptycho_bluesky.training.evaluate import predict
from ptycho_bluesky.training.loader import Batch, BatchSource
from ptycho_bluesky.training.options import TrainOptions
from ptycho_bluesky.training.recipes import Plan, learning_rate

__all__ = ["Progress", "TrainingLoop", "TrainingStoppedError"]

log = logging.getLogger(__name__)

Progress = Callable[[int, int, float], None]
"""Called with frame-updates done, frame-updates in all, and the running loss in rad."""

LOG_STEPS = 20
"""Steps averaged into one point of the loss curve."""


class TrainingStoppedError(RuntimeError):
    """The training was asked to stop; its checkpoint, if it keeps one, lets the next call go on."""


class _Objective(nn.Module):
    """Loss of a batch: one module, so that it is wrapped for several processes and compiled as a whole."""

    def __init__(self, network: Network, weight: Tensor, autocast: str | None) -> None:
        super().__init__()
        self.network = network
        self.autocast = autocast
        self.register_buffer("weight", weight, persistent=False)
        self.weight: Tensor

    def forward(self, prepared: Tensor, labels: Tensor) -> Tensor:
        """Weighted L1 of the phase in rad, and of the amplitude where the network reads it, mean over the frames."""
        if self.autocast is None:
            values = self.network.values(prepared)
        else:
            with torch.autocast(self.autocast, torch.bfloat16):
                values = self.network.values(prepared)
        loss = self._error(values[PHASE], labels[:, :1])
        if self.network.reads_amplitude:
            loss = loss + self._error(values[AMPLITUDE], labels[:, 1:])
        # a rank may have no frame of a batch: its sum is zero, and it still takes part in the average
        return loss.sum() / max(1, len(labels))

    def _error(self, value: Tensor, label: Tensor) -> Tensor:
        return ((value.to(label.dtype) - label).abs() * self.weight).mean(dim=(1, 2, 3))


class TrainingLoop:
    """State of a running training.

    Parameters
    ----------
    plan : Plan
    options : TrainOptions
    reader : PhaseReader
        Trained in place.
    source : BatchSource
    held_out : TrainingArrays, optional
        Judges which weights are best, where the plan keeps those.
    checkpoint : Checkpoint, optional
    log_dir : path, optional
        Folder of the curve (`CurveLog`).
    ranks : Ranks, optional
    """

    def __init__(
        self,
        plan: Plan,
        options: TrainOptions,
        reader: PhaseReader,
        source: BatchSource,
        *,
        held_out: TrainingArrays | None = None,
        checkpoint: Checkpoint | None = None,
        log_dir: Path | str | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.plan, self.options, self.source = plan, options, source
        self.held_out, self.checkpoint, self.log_dir = held_out, checkpoint, log_dir
        self.ranks = ranks or Ranks()
        self.device = torch_device(options.device)
        self.dtype = torch.float64 if options.precision == "float64" else torch.float32
        self.reader = reader.to(self.device, self.dtype)
        # channels last: 1.5 times as fast as the default layout on CPUs with AVX-512
        self.network: Network = reader.network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.optimiser = torch.optim.Adam(self.network.parameters(), plan.peak_rate, betas=plan.betas, fused=True)
        weight = torch.from_numpy(plan.loss_weight).to(self.device, self.dtype)
        objective: Any = _Objective(self.network, weight, _autocast(options, plan, self.device))
        if options.compile:
            objective = torch.compile(objective)
        self.objective = self.ranks.wrap(objective)
        self.average = WeightAverage(self.network, plan.average_steps) if plan.average_steps else None
        self.step = 0
        self.points: list[tuple[float, ...]] = []
        self.running: list[float] = []
        self.best: tuple[float, dict[str, Tensor]] | None = None
        self._validation = math.nan

    def run(self, progress: Progress | None = None, should_stop: Callable[[], bool] | None = None) -> None:
        """Train to the end of the plan; the checkpoint then holds the end, until it is removed.

        Raises
        ------
        TrainingStoppedError
            `should_stop` was true on a rank.
        InputError
            The loss became NaN, or the folder of the curve holds that of another training.
        """
        resumed = self._resume()
        if self.log_dir is not None and not resumed:
            self._claim_log_dir(self.log_dir)
        curve = CurveLog(self.log_dir, self.points) if self.log_dir is not None and self.ranks.first else None
        try:
            self._run(progress, should_stop or (lambda: False), curve)
        finally:
            if curve is not None:
                curve.close()
        if self.average is not None:
            self.average.swap()
        if self.best is not None:
            self.network.load_state_dict(self.best[1])
        self.network.eval()

    def steps(self, should_stop: Callable[[], bool] = lambda: False) -> Iterator[bool]:
        """Take the steps that are left, one an item, without log and checkpoint.

        Yields
        ------
        bool
            Whether a rank asks to stop.
        """
        for batch in self.source.batches(self.step, self.plan.num_steps):
            yield self._take_step(batch, should_stop)

    @contextmanager
    def served(self) -> Iterator[PhaseReader]:
        """The reader with the weights that would be served now."""
        if self.average is not None:
            self.average.swap()
        try:
            yield self.reader
        finally:
            if self.average is not None:
                self.average.swap()
            self.network.train()

    def curve(self) -> dict[str, NDArray[Any]]:
        """Loss and learning rate against frame-updates."""
        points = np.array(self.points, dtype=np.float64).reshape(-1, len(COLUMNS))
        found: dict[str, NDArray[Any]] = dict(zip(COLUMNS, points.T, strict=True))
        return {**found, "frames": points[:, 0].astype(np.int64)}

    def _run(self, progress: Progress | None, should_stop: Callable[[], bool], curve: CurveLog | None) -> None:
        self.network.train()
        saved = time.monotonic()
        if float(self.ranks.sum(torch.tensor([float(should_stop())], device=self.device))):
            self._stop_here()
        for stop in self.steps(should_stop):
            if self.step % self.plan.steps_per_epoch == 0 and self.plan.keep_best:
                self._keep_if_best()
            if self.step % LOG_STEPS == 0 or self.step == self.plan.num_steps:
                self._log_point(progress, curve)
            if stop:
                self._stop_here()
            if time.monotonic() - saved > self.options.checkpoint_period_s:
                self._save()
                saved = time.monotonic()
        try:
            self._save()
        except StorageError as error:  # the model, which is smaller, may still find room
            log.warning("the end of the training is not kept: %s", error)

    def _stop_here(self) -> None:
        self._save()
        raise TrainingStoppedError(f"training stopped after {self.step} of {self.plan.num_steps} steps")

    def _take_step(self, batch: Batch, should_stop: Callable[[], bool]) -> bool:
        """One step of the optimiser; whether a rank asks to stop after it."""
        rate = learning_rate(self.plan, self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        counts, labels = (torch.from_numpy(array).to(self.device, self.dtype) for array in (batch.counts, batch.labels))
        prepared = self.reader.prepare(counts).contiguous(memory_format=torch.channels_last)
        loss = self.objective(prepared, crop_centre(labels, self.plan.loss_weight.shape))
        self.optimiser.zero_grad()
        # an average over ranks of so weighted gradients is the gradient of the global batch
        (loss * (batch.share * self.ranks.world_size)).backward()
        if math.isfinite(self.plan.clip_norm):
            nn.utils.clip_grad_norm_(self.network.parameters(), self.plan.clip_norm)
        self.optimiser.step()
        last = self.step + 1 >= self.plan.num_steps
        told = torch.tensor(
            [float(loss.detach()) * batch.share, float(not last and should_stop())], dtype=torch.float64
        )
        total, asked = self.ranks.sum(told.to(self.device)).tolist()
        self.running.append(total)
        self.step += 1
        if self.average is not None:
            self.average.update(self.step)
        return asked > 0

    def _log_point(self, progress: Progress | None, curve: CurveLog | None) -> None:
        loss = float(np.mean(self.running))
        self.running.clear()
        if not np.isfinite(loss):
            raise InputError(
                f"training loss {loss} at step {self.step}",
                "frames and labels must be finite and the learning rate moderate",
                "check the labels, lower learning_rate",
            )
        frames = self.step * self.plan.batch_size
        point = (frames, loss, learning_rate(self.plan, self.step - 1), self._validation)
        self._validation = math.nan
        self.points.append(point)
        if curve is not None:
            curve.add(point)
        if progress is not None:
            progress(frames, self.plan.num_steps * self.plan.batch_size, loss)

    def _keep_if_best(self) -> None:
        if self.held_out is None:
            return
        guess = predict(self.reader, self.held_out.image)
        truth = crop_centre(self.held_out.phase_rad, self.plan.loss_weight.shape)
        error = float((np.abs(guess - truth) * self.plan.loss_weight).mean())
        self._validation = error
        self.network.train()
        if self.best is None or error < self.best[0]:
            self.best = (error, {key: value.detach().clone() for key, value in self.network.state_dict().items()})

    def _save(self) -> None:
        if self.checkpoint is not None and self.ranks.first:
            self.checkpoint.save(
                {
                    "step": self.step,
                    "network": self.network.state_dict(),
                    "optimiser": self.optimiser.state_dict(),
                    "points": self.points,
                    "running": self.running,
                    "best": self.best,
                    "validation": self._validation,
                    "average": None if self.average is None else self.average.mean,
                }
            )

    def _claim_log_dir(self, directory: Path | str) -> None:
        """Refuse the folder of another training's curve, and leave a mark that the curve to come is of this one."""
        # the first rank's file system decides, and all hear of it: none is left waiting for the others
        if self.ranks.share(self.ranks.first and holds_curve(directory)):
            raise InputError(
                f"log folder {directory}",
                "it holds the curve of another training, which would be overwritten",
                "name another folder, or remove this one",
            )
        self._save()  # killed before the first period ends, the same command finds that the curve is its own

    def _resume(self) -> bool:
        """Go on from the checkpoint, if there is one of this training."""
        state: Mapping[str, Any] | None = None
        if self.checkpoint is not None and self.ranks.first:
            state = self.checkpoint.load()
        state = self.ranks.share(state)
        if state is None:
            return False
        self.step, self.running = state["step"], state["running"]
        self.points = [tuple(point) for point in state["points"]]
        self.best, self._validation = state["best"], state["validation"]
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.average is not None:
            self.average.load(state["average"])
        log.info("training goes on from step %d of %d", self.step, self.plan.num_steps)
        return True


def _autocast(options: TrainOptions, plan: Plan, device: torch.device) -> str | None:
    """Type of the device on which bfloat16 multiplies, or None."""
    wanted = options.precision == "bfloat16"
    if options.precision == "auto" and not plan.published:
        wanted = device.type == "cuda" or _has_bfloat16()
    return device.type if wanted else None


def _has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 natively; emulated it is slower than float32."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)
