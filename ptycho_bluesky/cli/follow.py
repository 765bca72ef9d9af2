"""``reconstruct --follow``: a scan reconstructed while its file is still being written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ptycho_bluesky.cli.scan_source import is_waited_for

if TYPE_CHECKING:
    from typing import Any

    from rich.console import Console

    from ptycho_bluesky.config import Settings
    from ptycho_bluesky.reconstruction import EngineOptions
    from ptycho_bluesky.records import Measurement, Reconstruction

__all__ = ["followed"]


def followed(
    source: str,
    options: EngineOptions,
    settings: Settings,
    stated: dict[str, float | None],
    patience_s: float,
    out: Path,
    console: Console,
    *,
    picture: bool,
) -> tuple[Measurement, Reconstruction]:
    """Follow a file to the end of its scan, or to Ctrl-C or SIGTERM, drawing the image so far beside ``out``.

    Parameters
    ----------
    source : str
        Path of the file; it need not be there yet.
    options : EngineOptions
    settings : Settings
    stated : dict
        Geometry, as `read_scan` takes it.
    patience_s : float
        The scan counts as over when nothing has come for so long.
    out : Path
        Product; it is written by the caller, from what is returned.
    console : Console
    picture : bool

    Returns
    -------
    Measurement
        The whole scan, as far as it is in the file.
    Reconstruction
        Of what was there when it was stopped; see `ptycho_bluesky.reconstruction.following.follow`.

    Raises
    ------
    InputError
        The file is of a format that does not grow, the engine takes no frames while it runs, or nothing came.
    """
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from ptycho_bluesky.io import GrowingFile, read_measurement
    from ptycho_bluesky.reconstruction.following import FollowOptions, follow
    from ptycho_bluesky.reconstruction.pictures import draw
    from ptycho_bluesky.workflow.signals import stop_on_signals

    is_waited_for(source)
    how: dict[str, Any] = {
        **stated,
        "detector": settings.detector,
        "orientation": settings.geometry.orientation if settings.geometry.orientation != "identity" else None,
    }
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(f"waiting for frames of {source}", total=None)

        def show(result: Reconstruction) -> None:
            if picture:
                draw(result, out.with_suffix(".png"))

        def told(frames: int, updates: int, error: float) -> None:
            bar.update(task, description=f"{frames} frames, {updates / frames:.1f} passes, error {error:.5f}")

        with stop_on_signals() as stop:
            result = follow(
                GrowingFile(source, **how), options, FollowOptions(patience_s=patience_s), show=show, progress=told,
                stop=stop,
            )  # fmt: skip
    return read_measurement(source, all_placed=False, **how), result
