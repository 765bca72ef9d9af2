"""``ptycho-bluesky session``: IPython with everything ready, or a script."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ptycho_bluesky.cli.options import ConfigOption, DataDirOption, VerboseOption, setup

__all__ = ["command"]


def command(
    script: Annotated[
        Path | None, typer.Option("--script", help="Run this Python file with the session's names, then end.")
    ] = None,
    code: Annotated[
        str | None, typer.Option("--code", "-e", help="Run this code with the session's names, then end.")
    ] = None,
    plot: Annotated[bool, typer.Option("--plot/--no-plot", help="Open the live plot.")] = True,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Scan: IPython with RunEngine, devices, plans, live plot and Tiled client.

    Names: RE, stage, detector, flyer, shutter, attenuator, energy, i0, the plans, c (Tiled) and db (its runs), session.

    Examples
    --------
    In the shell that opens:

        RE(fly_spiral(num_points=963, step_m=50e-9, exposure_s=0.4e-3, period_s=0.5e-3))

    and without one:

        ptycho-bluesky session -e "RE(fly_spiral(num_points=963, step_m=50e-9))"
    """
    settings = setup(config, verbose, data_dir=data_dir)
    from ptycho_bluesky.session.shell import run_code, run_shell

    if script is not None or code is not None:
        run_code(settings, script=script, code=code, live_plot=plot)
    else:
        run_shell(settings, live_plot=plot)
