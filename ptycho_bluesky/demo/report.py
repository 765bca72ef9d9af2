"""The report folder: pictures, a page for people, ``report.json`` for machines."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from jinja2 import Environment, PackageLoader, select_autoescape

from ptycho_bluesky.bench.rows import hardware, versions, write_report
from ptycho_bluesky.demo.results import DemoResult, rows

__all__ = ["write"]

COUNT_NAMES = ("generated", "received", "missed", "recovered", "inferred", "late", "rejected", "duplicates", "lost",
               "unaccounted")  # fmt: skip


def write(result: DemoResult, folder: Path, *, simulated: bool, summary: str) -> Path:
    """Write ``index.html`` and ``report.json`` into the folder.

    Parameters
    ----------
    result : DemoResult
        What was measured; its pictures lie in ``folder``.
    folder : path
        Report folder.
    simulated : bool
        Whether the frames were simulated; the page says so at its head.
    summary : str
        One sentence with the main figures.

    Returns
    -------
    path
        The page.
    """
    figures = rows(result)
    write_report(
        folder / "report.json",
        "demo-recorded" if not simulated else "demo",
        figures,
        options={name: str(value) for name, value in result.options.items()},
        runs=[{"uid": s.uid, "title": s.title, "purpose": s.purpose, "model_id": s.model_id, "outcome": s.outcome,
               "reason": s.reason, "frames": s.counts.as_dict(), "stage_s": dict(s.stage_s)} for s in result.scans],
        remarks=result.remarks,
    )  # fmt: skip
    environment = Environment(loader=PackageLoader("ptycho_bluesky.demo", "."), autoescape=select_autoescape())
    scans = [
        {**{f.name: getattr(scan, f.name) for f in dataclasses.fields(scan)}, "counts": scan.counts.as_dict()}
        for scan in result.scans
    ]
    page = environment.get_template("report.html.j2").render(
        result=result,
        scans=scans,
        kind="simulated frames" if simulated else "recorded frames",
        summary=summary,
        pictures=[(caption, file.relative_to(folder)) for caption, file in result.pictures.items()],
        count_names=COUNT_NAMES,
        rows=figures,
        hardware=hardware(),
        versions=versions(),
    )
    path = folder / "index.html"
    path.write_text(page)
    return path
