"""Finding the fastest engine for a model on this machine, while another one serves."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.inference.cache import EngineCache, cache_key
from ptycho_bluesky.inference.engine import Engine, EngineName, Precision
from ptycho_bluesky.inference.parity import Parity, compare, typical_frames
from ptycho_bluesky.inference.slot import ModelSlot
from ptycho_bluesky.models.onnx_file import parse, read_manifest

__all__ = ["CANDIDATES", "EngineChoice", "EngineTuner", "choose_engine", "remembered_engine"]

logger = logging.getLogger(__name__)

CANDIDATES: tuple[tuple[EngineName, Precision], ...] = (
    ("tensorrt", "float16"),
    ("onnxruntime-tensorrt", "float16"),
    ("torch-cuda", "float16"),
    ("onnxruntime-cuda", "float32"),
    ("openvino", "bfloat16"),
    ("openvino", "float32"),
    ("torch", "bfloat16"),
    ("onnxruntime", "float32"),
)
"""What is tried; what is not installed, has no device or is emulated is left out."""
ROUNDS = 3
TURN_S = 0.08
"""Time of a candidate in a round: eight candidates take less than two seconds."""
PARITY_FRAMES = 8
WAIT_FOR_SLOT_S = 30.0


@dataclass(frozen=True)
class EngineChoice:
    """What was found.

    Attributes
    ----------
    engine : Engine
        Ready.
    name, precision : str
        How to make it again.
    parity : Parity
    frames_per_s : dict of str to float
        Of every candidate that ran and reads the same phase.
    """

    engine: Engine
    name: EngineName
    precision: Precision
    parity: Parity
    frames_per_s: dict[str, float]


def choose_engine(
    content: bytes,
    *,
    num_threads: int = 2,
    batch_size: int = 8,
    precision: Precision = "auto",
    cache: EngineCache | None = None,
    frames: NDArray[Any] | None = None,
    candidates: Iterable[tuple[EngineName, Precision]] = CANDIDATES,
) -> EngineChoice:
    """Measure the engines of this machine and take the fastest that reads the same phase as single precision.

    Parameters
    ----------
    content : bytes
        Model file of ours.
    num_threads : int
        Threads for one batch.
    batch_size : int
        Frames of a batch in service.
    precision : str
        ``auto``, or the one to which the choice is bound.
    cache : EngineCache, optional
        Where the choice is remembered.
    frames : ndarray, shape (n, H, W), optional
        Counts to compare by; simulated ones by default.
    candidates : iterable of (str, str)

    Returns
    -------
    EngineChoice

    Raises
    ------
    InputError
        No engine runs the model.
    """
    frames = typical_frames(read_manifest(content), PARITY_FRAMES) if frames is None else frames
    reference = _reference(content, frames)
    batch = np.resize(frames, (batch_size, *frames.shape[1:])).astype(np.float32)
    engines: dict[tuple[EngineName, Precision], tuple[Engine, Parity]] = {}
    for name, each in candidates:
        if precision not in ("auto", each):
            continue
        engine = _candidate(content, name, each, num_threads)
        if engine is None:
            continue
        parity = compare(engine, reference, frames)
        if not parity.passed:
            logger.warning("%s differs by %.3f rad from single precision and is not used", engine.name, parity.rms_rad)
            continue
        engines[name, each] = engine, parity
    if not engines:
        raise InputError("model", "no engine of this machine runs it and reads the same phase", "check the model")
    rates = _rates({key: engine for key, (engine, _) in engines.items()}, batch)
    best = max(rates, key=lambda key: rates[key])
    engine, parity = engines[best]
    named = {"/".join(key): rate for key, rate in rates.items()}
    logger.info("fastest engine: %s, %.0f frames/s", engine.name, rates[best])
    entry = {"engine": best[0], "precision": best[1], "frames_per_s": named, "rms_rad": parity.rms_rad}
    (cache or EngineCache()).put(_key(content, num_threads, precision), entry)
    return EngineChoice(engine, *best, parity, named)


def remembered_engine(
    content: bytes, *, num_threads: int = 2, precision: Precision = "auto", cache: EngineCache | None = None
) -> Engine | None:
    """Engine that `choose_engine` took before for such a model, if it reads *this* one as single precision does.

    Returns
    -------
    Engine or None
        None when there was no choice, its runtime is gone, or this model fails the comparison.
    """
    entry = (cache or EngineCache()).get(_key(content, num_threads, precision))
    if entry is None or (entry.get("engine"), entry.get("precision")) not in CANDIDATES:
        return None
    name, each = cast("tuple[EngineName, Precision]", (entry["engine"], entry["precision"]))
    engine = _candidate(content, name, each, num_threads)
    if engine is None or (name, each) == ("onnxruntime", "float32"):
        return engine
    frames = typical_frames(read_manifest(content), PARITY_FRAMES)
    parity = compare(engine, _reference(content, frames), frames)
    if parity.passed:
        return engine
    logger.warning("%s differs by %.3f rad from single precision and is not used", engine.name, parity.rms_rad)
    return None


class EngineTuner:
    """Gives each model that comes into a slot the fastest engine, in the background.

    Parameters
    ----------
    slot : ModelSlot
        Where the engine is exchanged, between two batches.
    num_threads, batch_size, precision
        See `choose_engine`.
    cache : EngineCache, optional
    choose : callable, optional
        Takes the place of `choose_engine`.

    Notes
    -----
    Models that come while another one is measured wait; of several that wait only the last is measured. An edge that
    started from a remembered choice has nothing to measure.
    """

    def __init__(
        self,
        slot: ModelSlot,
        *,
        num_threads: int = 2,
        batch_size: int = 8,
        precision: Precision = "auto",
        cache: EngineCache | None = None,
        choose: Callable[..., EngineChoice] = choose_engine,
    ) -> None:
        self._slot, self._cache, self._choose = slot, cache or EngineCache(), choose
        self._num_threads, self._batch_size = num_threads, batch_size
        self._precision: Precision = precision
        self._waiting: tuple[bytes, str] | None = None
        self._condition = threading.Condition()
        self._stopped = False
        self._thread: threading.Thread | None = None

    def consider(self, content: bytes) -> None:
        """Look for a faster engine for a model that is in the slot or about to come; returns at once."""
        if self._cache.get(_key(content, self._num_threads, self._precision)) is not None:
            return
        with self._condition:
            self._waiting = (content, hashlib.sha256(content).hexdigest())
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="engine-tuner", daemon=True)
                self._thread.start()
            self._condition.notify()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Stop after the measurement under way."""
        with self._condition:
            self._stopped = True
            self._condition.notify()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._stopped or self._waiting is not None)
                if self._stopped or self._waiting is None:
                    return
                (content, model_id), self._waiting = self._waiting, None
            try:
                choice = self._choose(
                    content,
                    num_threads=self._num_threads,
                    batch_size=self._batch_size,
                    precision=self._precision,
                    cache=self._cache,
                )
            except Exception as error:  # noqa: BLE001 - runtimes fail in their own ways; the engine in use stays
                logger.warning("no faster engine for model %s: %s", model_id[:12], error)
                continue
            self._exchange(model_id, choice.engine)

    def _exchange(self, model_id: str, engine: Engine) -> None:
        """Put the engine in place, as soon as its model is there."""
        deadline = time.monotonic() + WAIT_FOR_SLOT_S
        while not self._slot.exchange_engine(model_id, engine) and time.monotonic() < deadline:
            with self._condition:
                if self._condition.wait_for(lambda: self._stopped or self._waiting is not None, timeout=0.1):
                    return


def _key(content: bytes, num_threads: int, precision: Precision) -> str:
    """Speed depends on the graph, not on the weights."""
    model = parse(content)
    manifest = read_manifest(content)
    shapes = sorted((tensor.name, list(tensor.dims)) for tensor in model.graph.initializer)
    return cache_key(
        architecture=manifest.get("architecture", ""),
        image_shape=manifest.get("image_shape"),
        operators=[node.op_type for node in model.graph.node],
        shapes=shapes,
        num_threads=num_threads,
        precision=precision,
    )


def _reference(content: bytes, frames: NDArray[Any]) -> NDArray[np.float32]:
    from ptycho_bluesky.inference.onnx_engine import OnnxEngine

    return OnnxEngine(content, num_threads=1).infer(frames)


def _candidate(content: bytes, name: EngineName, precision: Precision, num_threads: int) -> Engine | None:
    from ptycho_bluesky.inference.load import make_engine

    if precision == "bfloat16" and not _has_bfloat16(name):
        return None
    try:
        return make_engine(content, name, num_threads, precision)
    except InputError as error:
        logger.debug("engine %s is left out: %s", name, error)
        return None


def _has_bfloat16(name: EngineName) -> bool:
    """Whether the runtime computes in bfloat16 here; emulated it is slower than float32."""
    try:
        if name == "openvino":
            from ptycho_bluesky.inference.openvino_engine import has_bfloat16
        else:
            from ptycho_bluesky.inference.torch_engine import has_bfloat16
    except ImportError:
        return False
    return has_bfloat16()


def _rates(
    engines: dict[tuple[EngineName, Precision], Engine], batch: NDArray[np.float32]
) -> dict[tuple[EngineName, Precision], float]:
    """Frames per second of each, the best of a few turns: the machine is doing other work."""
    best = dict.fromkeys(engines, 0.0)
    for _ in range(ROUNDS):
        for key, engine in engines.items():
            engine.infer(batch)
            began, calls = time.perf_counter(), 0
            while calls < 2 or time.perf_counter() - began < TURN_S:
                engine.infer(batch)
                calls += 1
            best[key] = max(best[key], calls * len(batch) / (time.perf_counter() - began))
    return best
