"""``python -m simulated_iocs``: the same as ``ptycho-bluesky ioc``."""

import sys

import typer

from ptycho_bluesky.cli.ioc import command
from ptycho_bluesky.errors import InputError

if __name__ == "__main__":
    try:
        typer.run(command)
    except InputError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
