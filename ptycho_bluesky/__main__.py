"""``python -m ptycho_bluesky``: the same as ``ptycho-bluesky``; torchrun starts it so on every rank."""

from ptycho_bluesky.cli.main import main

if __name__ == "__main__":
    main()
