"""Results of edges that shared one stream, put together to what one edge would have had."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from ptycho_bluesky.errors import InputError
from ptycho_bluesky.records import FrameCounts
from ptycho_bluesky.stitching import merge_mosaics
from ptycho_bluesky.streaming.core import RunResult

__all__ = ["merge_results", "share_dir"]


def share_dir(edge_dir: Path, share: tuple[int, int]) -> Path:
    """Folder of the results of an edge that reads share ``(k, n)``; the edges' own folder for the whole stream."""
    k, n = share
    return edge_dir if n == 1 else edge_dir / f"share-{k}-of-{n}"


def merge_results(results: Sequence[RunResult]) -> RunResult:
    """Merge the results of one run.

    Parameters
    ----------
    results : sequence of RunResult
        One from each edge.

    Returns
    -------
    RunResult
        Mosaics merged, counts added; complete when all are. ``metadata["edges"]`` holds what each edge said.

    Raises
    ------
    InputError
        None is given, or they cannot be of one run.
    """
    mosaic = merge_mosaics([result.mosaic for result in results])
    names = [field.name for field in fields(FrameCounts)]
    counts = FrameCounts(**{name: sum(getattr(result.counts, name) for result in results) for name in names})
    if len(mosaic.frame_log["frame_index"]) != counts.generated:
        raise InputError(
            f"{counts.generated} frames in {len(mosaic.frame_log['frame_index'])} rows",
            "the shares of the edges must not overlap",
        )
    first = results[0]
    metadata = {**first.metadata, "edges": [dict(result.metadata) for result in results]}
    return RunResult(mosaic, counts, first.geometry, all(result.complete for result in results), metadata)
