"""What a demo measured, and the rows of its report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from ptycho_bluesky.bench.rows import Row
from ptycho_bluesky.metrics import SsimResult
from ptycho_bluesky.records import FrameCounts

__all__ = ["DemoResult", "FixedPoint", "ScanResult", "rows"]

RISE_TARGET = 0.9
FINAL_TARGET = 0.6
PEARSON_TARGET = 0.85
PEARSON_MARGIN = 0.1


@dataclass(frozen=True)
class ScanResult:
    """One acquired scan.

    Attributes
    ----------
    number : int
        k of ``ssim_scan_<k>``, from 1; 0 for scans put aside.
    title : str
        What was scanned.
    purpose : str
        ``train``, ``reserved`` or ``test``.
    uid : str
        Run.
    counts : FrameCounts
        Accounting at the edge.
    ssim : SsimResult or None
        Live mosaic against the truth; None where no model read the scan.
    model_id : str
        Model that read it, "" for none.
    outcome, reason : str
        Decision of the gate.
    stage_s : dict
        Seconds of each stage.
    figures : dict
        Figures of the decision.
    """

    number: int
    title: str
    purpose: str
    uid: str
    counts: FrameCounts
    ssim: SsimResult | None
    model_id: str = ""
    outcome: str = ""
    reason: str = ""
    stage_s: Mapping[str, float] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FixedPoint:
    """The fixed scan, never learned from, read by the model that was serving after scan ``number``."""

    number: int
    model_id: str
    ssim: SsimResult


@dataclass
class DemoResult:
    """Everything that the report shows."""

    title: str
    options: Mapping[str, Any]
    scans: list[ScanResult] = field(default_factory=list)
    fixed: list[FixedPoint] = field(default_factory=list)
    pictures: dict[str, Path] = field(default_factory=dict)
    stage_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    heldout: dict[str, float] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    browse: str = ""

    def add_stage(self, name: str, seconds: float) -> None:
        """Add seconds to the total of a stage."""
        self.stage_s[name] += seconds


def _ssim_rows(name: str, result: SsimResult, target: float | None = None) -> Iterable[Row]:
    # A ratio to a constant image, which scores nearly 0, would say nothing: both stand in rows of their own.
    yield Row(f"ssim_{name}", "1", "higher", result.ssim, target=target)
    yield Row(f"ssim_constant_{name}", "1", "higher", result.constant)
    yield Row(f"ssim_blurred_{name}", "1", "higher", result.blurred)


def rows(result: DemoResult) -> list[Row]:
    """Rows of ``report.json``.

    Every SSIM stands beside that of a constant image and of the reference blurred to the probe's width.
    Counts are summed over all scans of the demo.
    """
    out: list[Row] = []
    for scan in result.scans:
        if scan.ssim is not None:
            out += _ssim_rows(f"scan_{scan.number}" if scan.purpose == "train" else scan.title, scan.ssim)
    for point in result.fixed:
        out += _ssim_rows(f"fixed_{point.number}", point.ssim)
    if result.fixed:
        out += _ssim_rows("final", result.fixed[-1].ssim, FINAL_TARGET)
    if len(result.fixed) > 2:
        rise: Any = spearmanr([p.number for p in result.fixed], [p.ssim.ssim for p in result.fixed])
        out.append(Row("ssim_fixed_spearman", "1", "higher", float(rise.statistic), target=RISE_TARGET))
    out += _heldout_rows(result.heldout)
    out += _count_rows(scan.counts for scan in result.scans)
    out += [Row(f"stage_{name}_s", "s", "lower", float(seconds)) for name, seconds in result.stage_s.items()]
    return out


def _heldout_rows(heldout: Mapping[str, float]) -> Iterable[Row]:
    if not heldout:
        return
    lookup = heldout["pearson_lookup"]
    target = max(PEARSON_TARGET, lookup + PEARSON_MARGIN)
    name = "label of the most similar training frame"
    yield Row("pearson_heldout", "1", "higher", heldout["pearson_heldout"], lookup, name, target)
    yield Row("pearson_lookup", "1", "higher", lookup)
    for metric in ("ssim_heldout", "ssim_constant_heldout", "ssim_blurred_heldout"):
        if metric in heldout:
            yield Row(metric, "1", "higher", heldout[metric])
    if "error_first" in heldout:
        first = heldout["error_first"]
        yield Row("diffraction_error_last", "1", "lower", heldout["error_last"], first, "first pass")


def _count_rows(counts: Iterable[FrameCounts]) -> Iterable[Row]:
    totals: dict[str, int] = defaultdict(int)
    for count in counts:
        for name, value in count.as_dict().items():
            totals[name] += value
    higher = {"generated", "received", "recovered", "inferred"}
    for name, value in totals.items():
        target = 0.0 if name in {"lost", "unaccounted"} else None
        yield Row(f"frames_{name}", "frames", "higher" if name in higher else "lower", float(value), target=target)
