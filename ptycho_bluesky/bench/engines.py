"""``bench engines``: frames per second of every engine and precision, and what speed costs in similarity."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_bluesky.bench.eager import eager
from ptycho_bluesky.bench.engine_models import HeldOut, search_int8
from ptycho_bluesky.bench.rows import Row
from ptycho_bluesky.bench.timing import Rates, measure_rates
from ptycho_bluesky.errors import InputError
from ptycho_bluesky.inference import Engine
from ptycho_bluesky.inference.cache import EngineCache
from ptycho_bluesky.inference.engine import EngineName, Precision
from ptycho_bluesky.inference.load import make_engine
from ptycho_bluesky.inference.parity import compare
from ptycho_bluesky.inference.quantise import MAX_SSIM_LOSS, QuantisedModel

__all__ = ["EngineBench", "EngineReport", "FrontierPoint", "run"]

logger = logging.getLogger(__name__)

CASES: tuple[tuple[EngineName, Precision], ...] = (
    ("torch", "float32"),
    ("torch", "bfloat16"),
    ("onnxruntime", "float32"),
    ("openvino", "float32"),
    ("openvino", "bfloat16"),
    ("torch-cuda", "float32"),
    ("torch-cuda", "float16"),
    ("onnxruntime-cuda", "float32"),
    ("onnxruntime-tensorrt", "float16"),
    ("tensorrt", "float16"),
)
"""Engines of the rows; what is not installed or has no device is left out and named in the report."""
SERVING_BATCH = 8
FLOAT_GAIN = 2.0
"""How many times faster than PyTorch in single precision the best floating-point engine is asked to be."""
BF16_GAIN = 1.2
"""… and than PyTorch under autocast."""
XAVIER_FRAMES_PER_S = 1180.0
"""Published rate of an AGX Xavier at batch 8 (850 µs a frame; Babu et al., Nat. Commun. 14, 7059, 2023)."""

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class EngineBench:
    """How it is measured.

    Attributes
    ----------
    batches : tuple of int
        Batch sizes; those of the serving batch, 8, are always measured.
    rounds : int
    seconds : float
        Of one case in one round.
    num_threads : int
    """

    batches: tuple[int, ...] = (1, 2, 4, 8, 16)
    rounds: int = 5
    seconds: float = 0.2
    num_threads: int = 2


@dataclass(frozen=True)
class FrontierPoint:
    """A model in one precision: how similar its stitched image is to the true object, and how fast it is.

    Attributes
    ----------
    model, precision : str
    ssim : float
    ssim_loss : float
        Against the reference model in single precision; negative when it reads better.
    frames_per_s : float
        By the fastest engine of this precision, batch 8.
    """

    model: str
    precision: str
    ssim: float
    ssim_loss: float
    frames_per_s: float


@dataclass
class EngineReport:
    """What was measured.

    Attributes
    ----------
    rows : list of Row
    frontier : list of FrontierPoint
        Fastest first.
    remarks : list of str
        What was left out and why, and what was compared with what.
    """

    rows: list[Row] = field(default_factory=list)
    frontier: list[FrontierPoint] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


@dataclass
class _Form:
    """A model in one precision at the frontier."""

    model: str
    precision: str
    engine: Engine
    ssim: float


def run(
    content: bytes,
    held_out: HeldOut,
    trained: Mapping[str, tuple[bytes, HeldOut]],
    options: EngineBench | None = None,
    progress: Progress | None = None,
) -> EngineReport:
    """Measure the engines on one model, and the frontier of speed against similarity over it and others.

    Parameters
    ----------
    content : bytes
        Model file of ours, of the engines' rows.
    held_out : HeldOut
        Frames that it was not trained on.
    trained : dict of str to (bytes, HeldOut)
        Models that were trained on the same data, by architecture: the frontier, the first of them the reference of
        every loss. Empty: the frontier is that of the one model.
    options : EngineBench, optional
    progress : callable, optional
        Called with (turns done, turns in all, what is done); the totals are 0 before the first turn.

    Returns
    -------
    EngineReport
    """
    options = options or EngineBench()
    report, cache = EngineReport(), EngineCache()
    say = _sayer(progress)
    frames = _frames(held_out, max(*options.batches, SERVING_BATCH))
    engines = _engines(content, options, report)
    own = next((name for name, (blob, _) in trained.items() if blob == content), "weights")
    models = {**trained, own: (content, held_out)}
    forms, quantised = _forms(models, options, cache, report, say)
    cases = _cases(content, engines, forms, frames, options)
    rates = measure_rates(cases, rounds=options.rounds, seconds=options.seconds, progress=progress)
    report.rows += _speed_rows(rates, engines, options)
    report.rows += _error_rows(engines, held_out)
    report.rows += _best_float_rows(rates, engines)
    report.rows += _int8_rows(rates, own, quantised.get(own))
    report.frontier = _frontier(rates, [form for form in forms if form.model in (trained or models)])
    report.rows += _frontier_rows(report.frontier)
    report.remarks.append(f"similarity of {len(held_out.scored)} held-out frames, stitched, with {held_out.reference}")
    return report


def _sayer(progress: Progress | None) -> Callable[[str], None]:
    def say(text: str) -> None:
        logger.debug(text)
        if progress is not None:
            progress(0, 0, text)

    return say


def _frames(held_out: HeldOut, num: int) -> NDArray[Any]:
    return np.ascontiguousarray(np.resize(held_out.scored, (num, *held_out.scored.shape[1:])))


def _engines(content: bytes, options: EngineBench, report: EngineReport) -> dict[str, Engine]:
    found: dict[str, Engine] = {}
    for name, precision in CASES:
        try:
            engine = make_engine(content, name, options.num_threads, precision)
        except InputError as error:
            report.remarks.append(f"{name} {precision} left out: {error}")
            continue
        found[f"{name}_{precision}"] = engine
    return found


def _forms(
    models: Mapping[str, tuple[bytes, HeldOut]],
    options: EngineBench,
    cache: EngineCache,
    report: EngineReport,
    say: Callable[[str], None],
) -> tuple[list[_Form], dict[str, QuantisedModel]]:
    """Every model in floating point and in integers, scored."""
    forms: list[_Form] = []
    quantised: dict[str, QuantisedModel] = {}
    floor: float | None = None
    for model, (blob, frames) in models.items():
        try:
            found = _model_forms(model, blob, frames, floor, options, cache, say)
        except InputError as error:
            report.remarks.append(f"{model}: {error}")
            continue
        forms += found[0]
        # every other model is asked to stay within the limit of the first one, integers included
        floor = forms[0].ssim - MAX_SSIM_LOSS if model != "weights" else floor
        quantised[model] = found[1]
        report.remarks.append(f"{model}: {found[1].reason}; all in integers: {found[1].ssim_loss_all:.4f}")
    return forms, quantised


def _model_forms(
    model: str,
    blob: bytes,
    held_out: HeldOut,
    floor: float | None,
    options: EngineBench,
    cache: EngineCache,
    say: Callable[[str], None],
) -> tuple[list[_Form], QuantisedModel]:
    threads = options.num_threads
    quantised, best = search_int8(
        blob,
        held_out,
        floor=None if model == "weights" else floor,
        num_threads=threads,
        cache=cache,
        progress=lambda text: say(f"{model} {text}"),
    )
    score = held_out.make_score(make_engine(blob, "onnxruntime", threads, "float32"))
    single, half = (make_engine(blob, "openvino", threads, each) for each in ("float32", "auto"))
    forms = [_Form(model, "float32", single, best)]
    if getattr(half, "precision", "float32") != "float32":
        forms.append(_Form(model, "bfloat16", half, score(half)))
    integers = make_engine(quantised.content, "openvino", threads, "auto")
    forms.append(_Form(model, "int8", integers, best - quantised.ssim_loss))
    if quantised.float_layers:
        every = make_engine(quantised.content_all, "openvino", threads, "auto")
        forms.append(_Form(model, "int8_all_layers", every, best - quantised.ssim_loss_all))
    return forms, quantised


def _cases(
    content: bytes, engines: dict[str, Engine], forms: list[_Form], frames: NDArray[Any], options: EngineBench
) -> dict[str, tuple[Callable[[], object], int]]:
    read, read_bf16 = (eager(content, bfloat16=half, num_threads=options.num_threads) for half in (False, True))
    cases: dict[str, tuple[Callable[[], object], int]] = {}
    for batch in sorted({*options.batches, SERVING_BATCH}):
        counts = np.ascontiguousarray(frames[:batch])
        floats = counts.astype(np.float32)
        cases[f"eager_batch{batch}"] = (lambda f=floats: read(f), batch)
        cases[f"eager_bf16_batch{batch}"] = (lambda f=floats: read_bf16(f), batch)
        for name, engine in engines.items():
            cases[f"{name}_batch{batch}"] = (lambda e=engine, c=counts: e.infer(c), batch)
    serving = np.ascontiguousarray(frames[:SERVING_BATCH])
    for form in forms:
        cases[_case(form)] = (lambda e=form.engine: e.infer(serving), SERVING_BATCH)
    return cases


def _case(form: _Form) -> str:
    return f"frontier {form.model} {form.precision}"


def _speed_rows(rates: Rates, engines: dict[str, Engine], options: EngineBench) -> list[Row]:
    rows = []
    for batch in sorted({*options.batches, SERVING_BATCH}):
        baseline = rates.median(f"eager_batch{batch}")
        for name in ("eager", "eager_bf16", *engines):
            metric = f"{name}_batch{batch}"
            rows.append(Row(metric, "frames/s", "higher", rates.median(metric), baseline, "eager"))
    return rows


def _error_rows(engines: dict[str, Engine], held_out: HeldOut) -> list[Row]:
    """Difference from single precision over the stitched pixels."""
    if "onnxruntime_float32" not in engines:
        return []
    frames = held_out.scored[:: max(1, len(held_out.scored) // 64)][:64]
    reference = engines["onnxruntime_float32"].infer(frames)
    rows = []
    for name, engine in engines.items():
        parity = compare(engine, reference, frames)
        rows.append(Row(f"{name}_rms_error_rad", "rad", "lower", parity.rms_rad))
        rows.append(Row(f"{name}_max_error_rad", "rad", "lower", parity.max_rad))
    return rows


def _best_float_rows(rates: Rates, engines: dict[str, Engine]) -> list[Row]:
    if not engines:
        return []
    best = max(rates.median(f"{name}_batch{SERVING_BATCH}") for name in engines)
    rows = []
    for metric, name, gain in (
        ("best_float_batch8", "eager", FLOAT_GAIN),
        ("best_float_batch8_vs_bf16", "eager_bf16", BF16_GAIN),
    ):
        baseline = rates.median(f"{name}_batch{SERVING_BATCH}")
        rows.append(Row(metric, "frames/s", "higher", best, baseline, name, gain * baseline))
    return rows


def _int8_rows(rates: Rates, own: str, quantised: QuantisedModel | None) -> list[Row]:
    if quantised is None:
        return []
    speed, baseline = rates.median(f"frontier {own} int8"), rates.median(f"eager_batch{SERVING_BATCH}")
    return [
        Row("int8_batch8", "frames/s", "higher", speed, baseline, "eager"),
        Row("int8_ssim_loss", "1", "lower", quantised.ssim_loss, None, "", MAX_SSIM_LOSS),
        Row("int8_all_layers_ssim_loss", "1", "lower", quantised.ssim_loss_all),
        Row("int8_float_layers", "1", "lower", float(len(quantised.float_layers))),
    ]


def _frontier(rates: Rates, forms: list[_Form]) -> list[FrontierPoint]:
    if not forms:
        return []
    reference = forms[0].ssim
    points = [
        FrontierPoint(form.model, form.precision, form.ssim, reference - form.ssim, rates.median(_case(form)))
        for form in forms
    ]
    return sorted(points, key=lambda point: -point.frames_per_s)


def _frontier_rows(frontier: list[FrontierPoint]) -> list[Row]:
    rows = []
    for point in frontier:
        name = f"{point.model}_{point.precision}"
        rows.append(Row(f"{name}_frontier_frames_per_s", "frames/s", "higher", point.frames_per_s))
        rows.append(Row(f"{name}_frontier_ssim", "1", "higher", point.ssim))
    within = [point for point in frontier if point.ssim_loss <= MAX_SSIM_LOSS]
    if within:
        best = within[0]
        name = f"AGX Xavier, published; ours: {best.model} {best.precision}"
        metric, xavier = "best_within_001_batch8_frames_per_s", XAVIER_FRAMES_PER_S
        rows.append(Row(metric, "frames/s", "higher", best.frames_per_s, xavier, name, xavier))
    return rows
