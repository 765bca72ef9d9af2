"""``python -m simulated_iocs``: the same as ``ptycho-bluesky ioc``."""

import typer

from ptycho_bluesky.cli.ioc import command

if __name__ == "__main__":
    typer.run(command)
