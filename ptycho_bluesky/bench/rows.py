"""The layout of every measured report: rows with unit, direction, baseline and target, beside hardware and versions."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

__all__ = ["Row", "hardware", "print_table", "table", "versions", "write_report"]

FILE_COLUMNS = 120
"""Width of a table that does not go to a terminal."""


@dataclass(frozen=True)
class Row:
    """One measured figure.

    Attributes
    ----------
    metric, unit : str
        Name and unit, "1" for a pure number.
    better : str
        ``higher`` or ``lower``.
    ours : float
        The figure.
    baseline : float or None
        What ``baseline_name`` scored in the same run.
    baseline_name : str
        Who or what the baseline is; where it has no figure, why.
    target : float or None
        What was asked.
    """

    metric: str
    unit: str
    better: Literal["higher", "lower"]
    ours: float
    baseline: float | None = None
    baseline_name: str = ""
    target: float | None = None

    @property
    def ratio(self) -> float | None:
        """How many times better than the baseline; above 1 always means that ours is better."""
        if self.baseline is None:
            return None
        over, under = (self.ours, self.baseline) if self.better == "higher" else (self.baseline, self.ours)
        return over / under if under else None

    @property
    def passed(self) -> bool | None:
        """Whether the target is met, from ``target`` and ``better`` alone; None without a target."""
        if self.target is None:
            return None
        return self.ours >= self.target if self.better == "higher" else self.ours <= self.target

    def as_dict(self) -> dict[str, Any]:
        """Row of the JSON report."""
        return {**asdict(self), "ratio": self.ratio, "passed": self.passed}


def hardware() -> dict[str, Any]:
    """Name the processor, its vector flags, cores, load and GPU of this machine."""
    name, flags = platform.processor(), ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        fields = dict(line.split(":", 1) for line in cpuinfo.read_text().split("\n\n")[0].splitlines() if ":" in line)
        named = {key.strip(): value.strip() for key, value in fields.items()}
        name, flags = named.get("model name", name), named.get("flags", "")
    wanted = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16", "amx_int8", "fma")
    return {
        "cpu": name,
        "vector_flags": [flag for flag in wanted if flag in flags.split()],
        "cores": os.cpu_count(),
        "load_average": list(os.getloadavg()),
        "gpu": _gpu_name(),
        "system": platform.platform(),
    }


def _gpu_name() -> str | None:
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a figure may depend on."""
    found = {"python": platform.python_version()}
    for name in ("ptycho_bluesky", "torch", "onnxruntime", "openvino", "nncf", "tensorrt", "numpy", "scipy",
                 "numba", "bluesky", "ophyd", "tiled", "bluesky-tiled-plugins", "caproto", "pvapy",
                 "h5py"):  # fmt: skip
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def write_report(path: Path, name: str, rows: Iterable[Row], **extra: Any) -> None:
    """Write ``{"name", "hardware", "versions", "rows", …}`` as JSON."""
    content = {
        "name": name,
        "hardware": hardware(),
        "versions": versions(),
        "rows": [row.as_dict() for row in rows],
        **extra,
    }
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def table(rows: Sequence[Row], title: str = "") -> Table:
    """Human table of the rows, for rich; baselines are named below it, and numbers never cut."""
    names = list(dict.fromkeys(row.baseline_name for row in rows if row.baseline_name))
    notes = "\n".join(f"({number}) {name}" for number, name in enumerate(names, 1))
    out = Table(title=title, box=SIMPLE_HEAD, caption=notes, caption_justify="left", pad_edge=False)
    for heading in ("metric", "unit", "ours", "baseline", "ratio", "target", "met"):
        left = heading in {"metric", "unit"}
        out.add_column(
            heading, justify="left" if left else "right", no_wrap=heading != "metric", overflow="fold"
        )  # fmt: skip
    for row in rows:
        note = f" ({names.index(row.baseline_name) + 1})" if row.baseline_name in names else ""
        baseline = note and f"–{note}" if row.baseline is None else f"{row.baseline:.4g}{note}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}×"
        sign = "≥" if row.better == "higher" else "≤"
        target = "" if row.target is None else f"{sign} {row.target:.4g}"
        met = {None: "", True: "yes", False: "no"}[row.passed]
        out.add_row(row.metric, row.unit, f"{row.ours:.4g}", baseline, ratio, target, met)
    return out


def print_table(rows: Iterable[Row], title: str = "", console: Console | None = None) -> None:
    """Print the table to standard output, or a console; into a file or pipe it is as wide as it needs."""
    console = console or Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=max(console.width, FILE_COLUMNS))
    console.print(table(list(rows), title))
