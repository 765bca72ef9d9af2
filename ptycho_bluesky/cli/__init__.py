"""The command line, ``ptycho-bluesky``; modules here import nothing heavy before their command runs."""
